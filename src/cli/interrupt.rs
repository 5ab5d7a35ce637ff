//! Ctrl-C and its like while files are written: what is half-written goes with the process.

use crate::error::{Context, Result};
use crate::output;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::thread;

/// From now on, SIGINT and SIGTERM remove the temporary files before they end the process as they always do.
pub fn clean_up_when_interrupted() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).about("signal handler")?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            output::abandon();
            let _ = emulate_default_handler(signal);
        }
    };
    thread::Builder::new().name("bsz-signals".into()).spawn(wait).map(drop).about("signal handler")
}
