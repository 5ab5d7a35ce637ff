//! `bsz mount` and `bsz umount`.
//!
//! Without `--foreground` the program starts itself again as a daemon, and waits on a pipe until the daemon says
//! that the mount can be used, or why it cannot.

use crate::error::{Context, Error, Result};
use crate::mount::{self, MountOptions};
use clap::Args;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What the daemon writes on its standard output once the mount can be used.
const READY: &str = "bszfs is ready";

/// Show compressed models as the plain files they were made from
///
/// MOUNTPOINT becomes a read-only view of SRC: each archive appears under its original name, size, mode and
/// time, everything else as it is. Returns when the mount can be used. `bsz umount`, SIGTERM and SIGINT end it.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz mount llama-packed/ /mnt/llama     llama-packed/model.bsz is /mnt/llama/model.safetensors
  bsz mount model.bsz view/              view/model.safetensors, and nothing else
  bsz mount --cache-size 4GiB a/ view/   more memory for what is read again and again
  bsz mount --foreground a/ view/        for a service manager; ends at SIGTERM or ^C")]
pub struct MountArgs {
    /// A directory with archives in it, or one archive
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// An existing directory, outside SRC
    mountpoint: PathBuf,
    /// Memory for decoded data: bytes, or with a unit as in 512M or 2GiB [default: 1GiB, or an eighth of the
    /// memory where that is less]
    #[arg(long, value_name = "SIZE", value_parser = super::size::parse)]
    cache_size: Option<u64>,
    /// Threads that decode [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Let other users use the mount (ordinary users need user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    allow_other: bool,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Become a daemon: started by `bsz mount`, which reads the pipe that is our standard output
    #[arg(long, hide = true)]
    daemon: bool,
}

/// End a mount
#[derive(Args)]
#[command(after_help = "Examples:
  bsz umount view/          ends the mount, also one whose daemon has died
  bsz umount --lazy view/   although it is in use: files that are open can be read to their end")]
pub struct UmountArgs {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Detach a mount that is in use: who has files open keeps them
    #[arg(short, long)]
    lazy: bool,
}

impl MountArgs {
    fn options(&self) -> MountOptions {
        MountOptions {
            source: self.source.clone(),
            mountpoint: self.mountpoint.clone(),
            cache_bytes: self.cache_size.unwrap_or_else(mount::default_cache_bytes),
            threads: self
                .threads
                .or_else(|| std::thread::available_parallelism().ok())
                .map_or(1, usize::from),
            allow_other: self.allow_other,
        }
    }
}

/// `bsz mount`
pub fn mount(args: MountArgs) -> Result<()> {
    let options = args.options();
    if args.daemon {
        // Away from the terminal, its signals, and the directory in which the user happened to be.
        rustix::process::setsid().about("setsid")?;
        return mount::run(&options, || {
            // If nobody reads it any more, the mount is there all the same.
            let _ = writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush());
        });
    }
    if args.foreground {
        return mount::run(&options, || {});
    }
    launch(&options)
}

/// `bsz umount`
pub fn umount(args: UmountArgs) -> Result<()> {
    match args.lazy {
        true => mount::detach(&args.mountpoint),
        false => mount::unmount(&args.mountpoint),
    }
}

/// Mount in a daemon, and return when the mount can be used.
pub(super) fn launch(o: &MountOptions) -> Result<()> {
    let (reader, writer) = io::pipe().about("pipe")?;
    let mut command = Command::new(std::env::current_exe().about("this program")?);
    command
        .arg0("bsz")
        .args(["mount", "--daemon"])
        .arg(format!("--cache-size={}", o.cache_bytes))
        .arg(format!("--threads={}", o.threads))
        .args(o.allow_other.then_some("--allow-other"))
        .args(log_flags())
        .arg("--")
        .arg(std::path::absolute(&o.source).about_path(&o.source)?)
        .arg(std::path::absolute(&o.mountpoint).about_path(&o.mountpoint)?)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone().about("pipe")?)
        .stderr(writer);
    let mut daemon = command.spawn().about("the daemon")?;
    // It holds our ends of the pipe, which must end when the daemon does.
    drop(command);
    match relay(reader).about("the daemon")? {
        Outcome::Ready => Ok(()),
        Outcome::Failed(why) => {
            let status = daemon.wait().about("the daemon")?;
            Err(Error::invalid(why.unwrap_or_else(|| format!("the daemon ended ({status})"))))
        }
    }
}

enum Outcome {
    Ready,
    /// With the daemon's last word, if it said why.
    Failed(Option<String>),
}

/// Pass on what the daemon says until it is ready, or ends.
fn relay(reader: PipeReader) -> io::Result<Outcome> {
    let mut why = None;
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        match (line.strip_prefix("bsz: "), &mut why) {
            _ if line == READY => return Ok(Outcome::Ready),
            (Some(error), _) => why = Some(error.to_owned()),
            (None, Some(why)) => *why = format!("{why}\n{line}"),
            (None, None) => writeln!(io::stderr(), "{line}")?,
        }
    }
    Ok(Outcome::Failed(why))
}

/// The daemon logs as much as we were asked to; where the environment says how much, it inherits that.
fn log_flags() -> &'static [&'static str] {
    match log::max_level() {
        _ if std::env::var_os("BSZ_LOG").or(std::env::var_os("RUST_LOG")).is_some() => &[],
        log::LevelFilter::Off | log::LevelFilter::Error => &["-q"],
        log::LevelFilter::Warn => &[],
        log::LevelFilter::Info => &["-v"],
        log::LevelFilter::Debug => &["-vv"],
        log::LevelFilter::Trace => &["-vvv"],
    }
}
