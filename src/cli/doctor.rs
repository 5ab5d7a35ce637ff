//! `bsz doctor`: what this machine has and lacks for bszfs.

use super::report::{Output, table};
use crate::error::{Error, Result};
use crate::{codec, escape, mount};
use clap::Args;
use serde::Serialize;
use std::fs::File;

/// Say what this machine has and lacks for bszfs, and the command that mends it
#[derive(Args)]
#[command(after_help = "Examples:
  bsz doctor           a line for each thing; exits 1 if nothing can be mounted
  bsz doctor --json    the same for a program to read")]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Good,
    /// It would be better otherwise.
    Fair,
    /// Without it nothing can be mounted.
    Bad,
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn new(what: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { what, state, found: found.into(), mend: None }
    }

    fn mend(self, command: impl Into<String>) -> Self {
        Self { mend: Some(command.into()), ..self }
    }
}

/// `bsz doctor`
pub fn doctor(args: &DoctorArgs, quiet: bool) -> Result<()> {
    let [dead, mute] = unserved_mounts();
    let findings = [
        kernel(),
        fuse(),
        helper(),
        other_users(),
        readahead(),
        open_files(),
        memory(),
        decoders(),
        gpu(),
        dead,
        mute,
    ];
    let output = Output::new(args.json, quiet);
    let row = |f: &Finding| {
        let state = match f.state {
            State::Good => "good",
            State::Fair => "fair",
            State::Bad => "BAD",
        };
        vec![f.what.to_owned(), state.to_owned(), f.found.clone()]
    };
    let lines = table(&findings.iter().map(row).collect::<Vec<_>>(), &[]);
    for (finding, line) in findings.iter().zip(lines) {
        output.line(line);
        if let Some(command) = &finding.mend {
            output.line(format!("    {command}"));
        }
    }
    let cannot = findings.iter().any(|f| f.state == State::Bad);
    output.finish(&findings)?;
    if cannot { Err(Error::invalid("nothing can be mounted here").about("doctor")) } else { Ok(()) }
}

fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let number = |part: Option<&str>| part?.parse::<u32>().ok();
    let mut parts = release.trim().split(['.', '-']);
    let version = (number(parts.next()), number(parts.next()));
    let found = format!("Linux {}", release.trim());
    match version {
        (Some(major), Some(minor)) if (major, minor) >= (5, 6) => {
            Finding::new("kernel", State::Good, found)
        }
        _ => Finding::new("kernel", State::Fair, format!("{found}: tried with 5.6 and newer only")),
    }
}

fn fuse() -> Finding {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::new("FUSE", State::Good, "/dev/fuse can be opened"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Finding::new(
            "FUSE",
            State::Bad,
            "there is no /dev/fuse",
        )
        .mend(
            "modprobe fuse; in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN",
        ),
        Err(e) => {
            Finding::new("FUSE", State::Bad, format!("/dev/fuse: {e}")).mend("chmod 666 /dev/fuse")
        }
    }
}

fn helper() -> Finding {
    let root = rustix::process::geteuid().is_root();
    match (mount::helper(), root) {
        (Some(path), _) => Finding::new("fusermount3", State::Good, escape::path(&path)),
        (None, true) => Finding::new("fusermount3", State::Good, "not there; root mounts without"),
        (None, false) => Finding::new("fusermount3", State::Bad, "not there")
            .mend("apt-get install fuse3, or dnf install fuse3"),
    }
}

fn other_users() -> Finding {
    let set = std::fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|conf| conf.lines().any(|line| line.trim() == "user_allow_other"));
    let what = "other users";
    if set || rustix::process::geteuid().is_root() {
        return Finding::new(what, State::Good, "--allow-other may be used");
    }
    Finding::new(what, State::Fair, "--allow-other is root's alone")
        .mend("echo user_allow_other >>/etc/fuse.conf, as root")
}

fn readahead() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::new("readahead", State::Good, "mounts get 1 MiB");
    }
    Finding::new(
        "readahead",
        State::Fair,
        "mounts get the kernel's 128 KiB; only root may raise it",
    )
}

fn open_files() -> Finding {
    use rustix::process::{Resource, getrlimit};
    let what = "open files";
    match getrlimit(Resource::Nofile).maximum {
        Some(n) if n < 1024 => {
            Finding::new(what, State::Fair, format!("{n} at most; an open archive is one"))
                .mend("ulimit -Hn 65536")
        }
        Some(n) => Finding::new(what, State::Good, format!("{n} at most")),
        None => Finding::new(what, State::Good, "no limit"),
    }
}

fn memory() -> Finding {
    let bytes = mount::default_cache_bytes();
    let found = format!("a mount's cache takes {} MiB unless told otherwise", bytes >> 20);
    Finding::new("memory", if bytes < 64 << 20 { State::Fair } else { State::Good }, found)
}

fn decoders() -> Finding {
    let names: Vec<&str> = codec::decoders().iter().map(|d| d.name()).collect();
    let state = if names.len() > 1 { State::Good } else { State::Fair };
    let used = codec::fastest();
    Finding::new(
        "processor",
        state,
        format!("decodes with {}; has {}", used.name(), names.join(", ")),
    )
}

#[cfg(feature = "cuda")]
fn gpu() -> Finding {
    match crate::gpu::Gpu::open() {
        Ok(gpu) => Finding::new("CUDA", State::Good, gpu.name()),
        Err(e) => Finding::new("CUDA", State::Good, format!("not used: {e}")),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Finding {
    Finding::new("CUDA", State::Good, "not used: this bsz was built without")
}

/// Mounts whose daemons have died, and such whose daemons do not answer.
fn unserved_mounts() -> [Finding; 2] {
    let names = ["dead mounts", "mute mounts"];
    let unserved = match mount::unserved(None) {
        Ok(unserved) => unserved,
        Err(e) => return names.map(|what| Finding::new(what, State::Fair, e.to_string())),
    };
    let finding = |what, mounts: &[std::path::PathBuf], mend: &dyn Fn(&str) -> String| match mounts
    {
        [] => Finding::new(what, State::Good, "none"),
        [first, ..] => {
            let first = escape::path(first);
            Finding::new(what, State::Fair, format!("{}, {first} is one", mounts.len()))
                .mend(mend(&first))
        }
    };
    [
        finding(names[0], &unserved.dead, &|_| "bsz umount --stale".to_owned()),
        finding(names[1], &unserved.silent, &|first| format!("bsz umount --lazy {first}")),
    ]
}
