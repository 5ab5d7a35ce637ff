//! The systemd unit of a store.

use crate::error::{Context, Error, Result};
use rustix::process::geteuid;
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The instance of `bszfs-store@.service` for one directory.
pub(super) struct Service {
    pub unit: String,
    /// Whether it belongs to the system, or to the user.
    is_system: bool,
}

impl Service {
    /// The unit of the store `dir`; `None` where systemd does not run.
    pub fn of(dir: &Path, is_system: bool) -> Option<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR");
        let runs_for_user = || runtime.is_some_and(|dir| Path::new(&dir).join("systemd").is_dir());
        let runs = Path::new("/run/systemd/system").is_dir() && (is_system || runs_for_user());
        let unit = format!("bszfs-store@{}.service", escaped(dir));
        runs.then_some(Self { unit, is_system })
    }

    /// `systemctl`, for people to type.
    pub fn systemctl_name(&self) -> &'static str {
        if self.is_system { "systemctl" } else { "systemctl --user" }
    }

    /// Have it run now, and from the next start of the machine.
    pub fn enable(&self) -> Result<()> {
        self.systemctl(&["enable", "--now"]).inspect_err(|_| {
            // It would fail at the next start of the machine as well. The first error counts.
            let _ = self.disable(true);
        })
    }

    /// Whether it is ended when its user logs out.
    pub fn ends_at_logout(&self) -> bool {
        let uid = geteuid().as_raw().to_string();
        let question = ["show-user", "--property=Linger", "--value", &uid];
        let ask = || Command::new("loginctl").args(question).stdin(Stdio::null()).output();
        !self.is_system && ask().is_ok_and(|output| output.stdout.starts_with(b"no"))
    }

    /// Have it no longer started. If it `runs` without a mount, it is stopped.
    pub fn disable(&self, runs: bool) -> Result<()> {
        self.systemctl(if runs { &["disable", "--now"] } else { &["disable"] })
    }

    /// Whether it is enabled, or runs.
    pub fn is_known(&self) -> bool {
        ["is-enabled", "is-active"]
            .iter()
            .any(|what| self.run(&[what, "--quiet"]).is_ok_and(|output| output.status.success()))
    }

    fn systemctl(&self, what: &[&str]) -> Result<()> {
        let output = self.run(what)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        // The lines about links that were made or removed say nothing about the failure.
        let is_news = |line: &&str| line.starts_with("Created ") || line.starts_with("Removed ");
        let why: Vec<&str> = said.lines().filter(|line| !is_news(line)).collect();
        let why = if why.is_empty() { "failed".into() } else { why.join(" ") };
        let about = format!("{} {} {}", self.systemctl_name(), what.join(" "), self.unit);
        Err(Error::invalid(why).about(about))
    }

    fn run(&self, what: &[&str]) -> Result<Output> {
        let mut command = Command::new("systemctl");
        if !self.is_system {
            command.arg("--user");
        }
        command.args(what).arg(&self.unit).stdin(Stdio::null()).output().about("systemctl")
    }
}

/// A path as the instance of a unit, as by `systemd-escape --path` (systemd.unit(5)).
fn escaped(path: &Path) -> String {
    let text = path.as_os_str().as_bytes().split(|&byte| byte == b'/');
    let parts: Vec<&[u8]> = text.filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return "-".into();
    }
    let mut escaped = String::new();
    for (i, &byte) in parts.join(&b'/').iter().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if i > 0 => escaped.push('.'),
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b':' | b'_' => escaped.push(byte.into()),
            // Writing to a string does not fail.
            _ => drop(write!(escaped, "\\x{byte:02x}")),
        }
    }
    escaped
}

/// An absolute path as it is given to people in a command.
pub(super) fn quoted(path: &OsStr) -> String {
    let shown = crate::escape::path(Path::new(path)).into_owned();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if shown.chars().all(is_plain) { shown } else { format!("'{}'", shown.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_as_systemd_does() {
        for (path, unit) in [
            ("/", "-"),
            ("/srv/models", "srv-models"),
            ("/srv//two models/", r"srv-two\x20models"),
            ("/home/a/.cache/hf-hub", r"home-a-.cache-hf\x2dhub"),
            ("/.x/é", r"\x2ex-\xc3\xa9"),
        ] {
            assert_eq!(escaped(Path::new(path)), unit);
            let theirs = Command::new("systemd-escape").args(["--path", path]).output();
            if let Ok(theirs) = theirs {
                assert_eq!(String::from_utf8_lossy(&theirs.stdout).trim_end(), unit);
            }
        }
    }
}
