//! `bsz doctor`: what bszfs needs on this machine, or from a URL, and what is missing.

use super::finding::{Finding, Verdict};
use super::report::{Output, table};
use crate::error::{Error, Result};
use crate::{codec, escape, mount};
use clap::Args;
use std::fs::File;

/// Check this machine for bszfs, and show the command that fixes each problem
#[derive(Args)]
#[command(after_help = "Examples:
  bsz doctor           one line per check; exits 1 if nothing can be mounted
  bsz doctor --json    the same as JSON
  bsz doctor s3://models/llama/
                       whether a URL can be read, by which credentials, and how fast it is")]
pub struct DoctorArgs {
    /// Check this URL instead
    #[cfg(feature = "remote")]
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `bsz doctor`
pub fn doctor(args: &DoctorArgs, quiet: bool) -> Result<()> {
    let output = Output::new(args.json, quiet);
    #[cfg(feature = "remote")]
    if let Some(url) = &args.url {
        return report(output, &super::doctor_url::findings(url), "the URL cannot be read");
    }
    report(output, &machine(), "nothing can be mounted here")
}

/// The checks of this machine.
fn machine() -> Vec<Finding> {
    let [dead, hung] = unserved_mounts();
    vec![
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
        hung,
    ]
}

/// Print findings. One that is bad is an error, which says `why`.
fn report(output: Output, findings: &[Finding], why: &'static str) -> Result<()> {
    let row = |f: &Finding| {
        let state = match f.state {
            Verdict::Good => "good",
            Verdict::Fair => "fair",
            Verdict::Bad => "BAD",
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
    let cannot = findings.iter().any(|f| f.state == Verdict::Bad);
    output.finish(&findings)?;
    if cannot { Err(Error::invalid(why).about("doctor")) } else { Ok(()) }
}

fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let number = |part: Option<&str>| part?.parse::<u32>().ok();
    let mut parts = release.trim().split(['.', '-']);
    let version = (number(parts.next()), number(parts.next()));
    let found = format!("Linux {}", release.trim());
    match version {
        (Some(major), Some(minor)) if (major, minor) >= (5, 6) => {
            Finding::new("kernel", Verdict::Good, found)
        }
        _ => Finding::new(
            "kernel",
            Verdict::Fair,
            format!("{found}: only tested with 5.6 and later"),
        ),
    }
}

fn fuse() -> Finding {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::new("FUSE", Verdict::Good, "/dev/fuse can be opened"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Finding::new(
            "FUSE",
            Verdict::Bad,
            "/dev/fuse is missing",
        )
        .mend(
            "modprobe fuse; in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN",
        ),
        Err(e) => Finding::new("FUSE", Verdict::Bad, format!("/dev/fuse: {e}"))
            .mend("chmod 666 /dev/fuse"),
    }
}

fn helper() -> Finding {
    let root = rustix::process::geteuid().is_root();
    match (mount::helper(), root) {
        (Some(path), _) => Finding::new("fusermount3", Verdict::Good, escape::path(&path)),
        (None, true) => {
            Finding::new("fusermount3", Verdict::Good, "missing, but root mounts without it")
        }
        (None, false) => Finding::new("fusermount3", Verdict::Bad, "missing")
            .mend("apt-get install fuse3 or dnf install fuse3"),
    }
}

fn other_users() -> Finding {
    let set = std::fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|conf| conf.lines().any(|line| line.trim() == "user_allow_other"));
    let what = "other users";
    if set || rustix::process::geteuid().is_root() {
        return Finding::new(what, Verdict::Good, "--allow-other is permitted");
    }
    Finding::new(what, Verdict::Fair, "only root may use --allow-other")
        .mend("as root: echo user_allow_other >>/etc/fuse.conf")
}

fn readahead() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::new("readahead", Verdict::Good, "mounts get 1 MiB");
    }
    Finding::new(
        "readahead",
        Verdict::Fair,
        "mounts get the kernel default of 128 KiB, which only root can raise",
    )
}

fn open_files() -> Finding {
    use rustix::process::{Resource, getrlimit};
    let what = "open files";
    match getrlimit(Resource::Nofile).maximum {
        Some(n) if n < 1024 => {
            Finding::new(what, Verdict::Fair, format!("at most {n}; each open archive needs one"))
                .mend("ulimit -Hn 65536")
        }
        Some(n) => Finding::new(what, Verdict::Good, format!("at most {n}")),
        None => Finding::new(what, Verdict::Good, "no limit"),
    }
}

fn memory() -> Finding {
    let bytes = mount::default_cache_bytes();
    let found = format!("the cache of a mount is limited to {} MiB by default", bytes >> 20);
    Finding::new("memory", if bytes < 64 << 20 { Verdict::Fair } else { Verdict::Good }, found)
}

fn decoders() -> Finding {
    let names: Vec<&str> = codec::decoders().iter().map(|d| d.name()).collect();
    let state = if names.len() > 1 { Verdict::Good } else { Verdict::Fair };
    let used = codec::fastest();
    Finding::new(
        "processor",
        state,
        format!("decodes with {}; supports {}", used.name(), names.join(", ")),
    )
}

#[cfg(feature = "cuda")]
fn gpu() -> Finding {
    match crate::gpu::Gpu::open(0) {
        Ok(gpu) => Finding::new("CUDA", Verdict::Good, gpu.name()),
        Err(e) => Finding::new("CUDA", Verdict::Good, format!("not used: {e}")),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Finding {
    Finding::new("CUDA", Verdict::Good, "not used: this bsz was built without CUDA")
}

/// Mounts whose daemons have died, and mounts whose daemons do not respond.
fn unserved_mounts() -> [Finding; 2] {
    let names = ["dead mounts", "hung mounts"];
    let unserved = match mount::unserved(None) {
        Ok(unserved) => unserved,
        Err(e) => return names.map(|what| Finding::new(what, Verdict::Fair, e.to_string())),
    };
    let finding = |what, mounts: &[std::path::PathBuf], mend: &dyn Fn(&str) -> String| match mounts
    {
        [] => Finding::new(what, Verdict::Good, "none"),
        [first, ..] => {
            let first = escape::path(first);
            Finding::new(what, Verdict::Fair, format!("{}, for example {first}", mounts.len()))
                .mend(mend(&first))
        }
    };
    [
        finding(names[0], &unserved.dead, &|_| "bsz umount --stale".to_owned()),
        finding(names[1], &unserved.silent, &|first| format!("bsz umount --lazy {first}")),
    ]
}
