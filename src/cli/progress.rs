//! The progress bar: bytes, rate and time left, on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::Path;

/// A bar on standard error, or nothing where that is not a terminal or the user wants quiet.
pub struct Bar(ProgressBar);

impl Bar {
    pub fn new(quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style = ProgressStyle::with_template(
            "{msg} {bar:24} {decimal_bytes:>9} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left",
        );
        let bar = ProgressBar::with_draw_target(Some(0), target);
        // The template is a constant; should it ever be wrong, the default bar still shows the work.
        Self(style.map_or(bar.clone(), |style| bar.with_style(style)))
    }

    /// Start on `bytes` of `path`, doing what `verb` says.
    pub fn start(&self, verb: &str, path: &Path, bytes: u64) {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        self.0.reset();
        self.0.set_length(bytes);
        self.0.set_message(format!("{verb} {}", super::report::printable(&name)));
    }

    /// `bytes` more are done.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Print something else without the bar in its way.
    pub fn aside(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
