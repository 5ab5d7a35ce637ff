//! Signals and limits: an interrupted process removes its unfinished files, and the file size limit
//! is an error instead of a signal.

use crate::error::{Context, Result};
use crate::output;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::thread;

/// The signals that end a process by default, and leave it the time to clean up.
const ENDING: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGXCPU];

/// From now on, remove the temporary files, and abort uploads, before a signal ends the process.
pub fn clean_up_when_interrupted() -> Result<()> {
    let mut signals = Signals::new(wanted(&ENDING)).about("signal handler")?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            output::abandon();
            #[cfg(feature = "remote")]
            crate::remote::abandon();
            let _ = emulate_default_handler(signal);
        }
    };
    thread::Builder::new().name("bsz-signals".into()).spawn(wait).map(drop).about("signal handler")
}

/// Make writes beyond the file size limit (`ulimit -f`) fail instead of ending the process.
pub fn have_writes_fail_at_limits() {
    // Any handler does. If it cannot be installed, the default behaviour remains.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// Those of `signals` that this process was not started to ignore. Under nohup(1), or in the
/// background of a shell, some are.
pub fn wanted(signals: &[i32]) -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    signals.iter().copied().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}
