//! Signals and limits: what is half-written goes with the process, and a limit is an error.

use crate::error::{Context, Result};
use crate::output;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::thread;

/// The signals that end a process which could clean up before.
const ENDING: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGXCPU];

/// From now on, what ends the process removes the temporary files before.
pub fn clean_up_when_interrupted() -> Result<()> {
    let mut signals = Signals::new(wanted(&ENDING)).about("signal handler")?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            output::abandon();
            let _ = emulate_default_handler(signal);
        }
    };
    thread::Builder::new().name("bsz-signals".into()).spawn(wait).map(drop).about("signal handler")
}

/// Have a file that grows beyond the user's limit (`ulimit -f`) be an error of who writes it, and not the end of the
/// process.
pub fn have_writes_fail_at_limits() {
    // A handler is all it takes; without one the process ends, as any other does.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// Those of `signals` that this process was not started to ignore, as nohup(1) has it, or a shell in the background.
pub fn wanted(signals: &[i32]) -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    signals.iter().copied().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}
