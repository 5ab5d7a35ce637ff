//! `bsz mount` and `bsz umount`.
//!
//! Without `--foreground` the program starts itself again as a daemon, and waits on a pipe until the daemon says
//! that the mount can be used, or why it cannot.

use super::{logfile, say_aside};
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::mount::{self, MetricsAddress, MountOptions, Prefetch};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What the daemon writes on its standard output once the mount can be used.
const READY: &str = "bszfs is ready";

/// How long a daemon may take to be ready. What does not answer is found out sooner where that can be.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Show compressed models as the plain files they were made from
///
/// MOUNTPOINT becomes a read-only view of SRC: each archive appears under its original name, size, mode and
/// time, everything else as it is. Returns when the mount can be used. `bsz umount`, SIGTERM and SIGINT end it.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz mount llama-packed/ /mnt/llama     llama-packed/model.bsz is /mnt/llama/model.safetensors
  bsz mount model.bsz view/              view/model.safetensors, and nothing else
  bsz mount --cache-size 4GiB a/ view/   more memory for what is read again and again
  bsz mount --foreground a/ view/        for a service manager; ends at SIGTERM or ^C
  bsz mount --log bsz.log a/ view/       what the daemon has to say; SIGHUP opens the file anew
  bsz mount --metrics 127.0.0.1:9420 a/ view/     figures for Prometheus; unix:PATH for a socket
  bsz mount --auto-unmount a/ view/      nothing is left at view/, even where the daemon is killed
  /srv/models /mnt/models bszfs allow_other,cache_size=4GiB,nofail 0 0    as a line of /etc/fstab")]
pub struct MountArgs {
    /// A directory with archives in it, or one archive
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// An existing directory, outside SRC; /dev/fd/N is the same as --fuse-fd N
    #[arg(required_unless_present = "fuse_fd", conflicts_with = "fuse_fd")]
    mountpoint: Option<PathBuf>,
    /// Memory for decoded data: bytes, or with a unit as in 512M or 2GiB [default: 1GiB, or an eighth of the
    /// memory where that is less]
    #[arg(long, value_name = "SIZE", value_parser = super::size::parse)]
    cache_size: Option<u64>,
    /// Threads that read archives and decode; some wait for the disk meanwhile, and as many again help where many read at
    /// once [default: two for each core, four at least]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// What to decode before it is read: `auto` is what follows in a file that is read in order, and the next layers as
    /// soon as layers are taken in order; N is no more than N layers; `cuda` has layers decoded by an NVIDIA GPU, which
    /// `auto` does where that turns out to be faster
    #[arg(long, value_name = "off|auto|N|cuda", default_value = "auto", value_parser = prefetch)]
    prefetch: Prefetch,
    /// Memory of the GPU for that, and as much of the host's, while layers are decoded
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = super::size::parse)]
    gpu_memory: u64,
    /// Let other users use the mount (ordinary users need user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    allow_other: bool,
    /// End the mount when its daemon dies, however it dies: a second process waits for that, and detaches it
    #[arg(long)]
    auto_unmount: bool,
    /// Serve what is mounted already, by who has opened /dev/fuse as descriptor N, called mount(2) with fd=N and left it
    /// open for us: in a container without the right to mount. Who mounted it unmounts it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    fuse_fd: Option<RawFd>,
    /// Append the log to FILE, which is made with mode 0600; when absent it goes to standard error in the foreground, and
    /// to the system's log in the background. SIGHUP opens it anew, as logrotate needs, and drops what the cache holds
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Answer Prometheus at /metrics of unix:PATH or 127.0.0.1:PORT, an address of this machine alone
    #[arg(long, value_name = "ADDRESS", value_parser = metrics)]
    metrics: Option<MetricsAddress>,
    /// Options as in /etc/fstab: allow_other, auto_unmount, cache_size=SIZE, threads=N, prefetch=off|auto|N|cuda,
    /// gpu_memory=SIZE, log=FILE, metrics=ADDRESS; those that say what any mount of bszfs is anyway (ro, nosuid, nodev,
    /// ...) or are for others (nofail, x-...) change nothing
    #[arg(short = 'o', value_name = "OPTION,...", value_delimiter = ',')]
    options: Vec<String>,
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
  bsz umount --lazy view/   although it is in use: files that are open can be read to their end
  bsz umount --stale        ends all mounts that nobody serves any more")]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(required_unless_present = "stale")]
    mountpoint: Option<PathBuf>,
    /// End the mounts whose daemons have died: all, or those at and below MOUNTPOINT
    #[arg(long)]
    stale: bool,
    /// Detach a mount that is in use: who has files open keeps them
    #[arg(short, long)]
    lazy: bool,
    /// Wait until the standard input ends, which a daemon holds; then detach its mount, should it have died. What
    /// `bsz mount --auto-unmount` starts
    #[arg(long, hide = true, requires = "mountpoint", conflicts_with_all = ["stale", "lazy"])]
    orphaned: bool,
}

fn prefetch(text: &str) -> std::result::Result<Prefetch, String> {
    match text {
        "off" => Ok(Prefetch::Off),
        "auto" => Ok(Prefetch::Auto),
        "cuda" => Ok(Prefetch::Cuda),
        n => n
            .parse()
            .map(Prefetch::Layers)
            .map_err(|_| "neither off nor auto nor cuda nor a number of layers".into()),
    }
}

fn metrics(text: &str) -> std::result::Result<MetricsAddress, String> {
    let absolute = |address| match address {
        MetricsAddress::Unix(path) => {
            Ok(MetricsAddress::Unix(std::path::absolute(&path).about_path(&path)?))
        }
        loopback => Ok(loopback),
    };
    text.parse().and_then(absolute).map_err(|e| e.to_string())
}

/// Options of any mount that are true of ours anyway, or that others look at.
const GENERAL: [&str; 26] = [
    "defaults",
    "ro",
    "rw",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "async",
    "default_permissions",
    "lazytime",
];

impl MountArgs {
    /// Take an option of `-o`.
    fn apply(&mut self, option: &str) -> Result<()> {
        let wrong = |why: String| Error::invalid(why).about(format_args!("-o {option}"));
        match option.split_once('=').unwrap_or((option, "")) {
            ("allow_other", "") => self.allow_other = true,
            ("auto_unmount", "") => self.auto_unmount = true,
            ("cache_size", size) => {
                self.cache_size = Some(super::size::parse(size).map_err(wrong)?)
            }
            ("threads", n) => {
                self.threads =
                    Some(n.parse().map_err(|_| wrong("not a number of threads".into()))?);
            }
            ("prefetch", how) => self.prefetch = prefetch(how).map_err(wrong)?,
            ("gpu_memory", size) => self.gpu_memory = super::size::parse(size).map_err(wrong)?,
            ("metrics", address) => self.metrics = Some(metrics(address).map_err(wrong)?),
            ("log", file) if !file.is_empty() => self.log = Some(file.into()),
            (name, _) if name.starts_with("x-") || name.starts_with("comment") => {}
            (name, "") if name.is_empty() || GENERAL.contains(&name) => {}
            _ => return Err(wrong("is no option of bszfs; bsz mount --help lists them".into())),
        }
        Ok(())
    }

    fn options(&self) -> MountOptions {
        let descriptor = || self.fuse_fd.map(|n| format!("/dev/fd/{n}").into());
        MountOptions {
            source: self.source.clone(),
            mountpoint: self.mountpoint.clone().or_else(descriptor).unwrap_or_default(),
            cache_bytes: self.cache_size.unwrap_or_else(mount::default_cache_bytes),
            threads: self.threads.map_or_else(mount::default_threads, usize::from),
            prefetch: self.prefetch,
            gpu_memory: self.gpu_memory,
            allow_other: self.allow_other,
            metrics: self.metrics.clone(),
        }
    }
}

/// `bsz mount`
pub fn mount(mut args: MountArgs) -> Result<()> {
    for option in std::mem::take(&mut args.options) {
        args.apply(&option)?;
    }
    let options = args.options();
    if args.daemon {
        mount::close_inherited(options.descriptor())?;
    }
    if args.auto_unmount && options.mountpoint.starts_with("/dev/fd") {
        return Err(
            Error::invalid("who mounted the descriptor unmounts it").about("--auto-unmount")
        );
    }
    let log = args.log.map(|file| std::path::absolute(&file).about_path(&file)).transpose()?;
    if let Some(file) = log.as_ref().filter(|_| args.daemon || args.foreground) {
        logfile::redirect(file)?;
    }
    // Before there is a mount, for a daemon may be killed at once.
    let guard = || {
        if args.auto_unmount
            && let Err(e) = start_guard(&options.mountpoint)
        {
            log::warn!("--auto-unmount: a killed daemon will leave its mount: {e}");
        }
    };
    if args.daemon {
        // Away from the terminal, its signals, and the directory in which the user happened to be.
        rustix::process::setsid().about("setsid")?;
        // Where standard error leads, nobody reads it once the mount is ready.
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
        guard();
        let ready = || {
            if log.is_none() {
                logfile::use_the_systems();
            }
            // If nobody reads it any more, `bsz mount` was ended, and is to leave no mount.
            writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush()).about("bsz mount")
        };
        return mount::run(&options, ready, logfile::reopen);
    }
    if args.foreground {
        guard();
        let ready = || {
            tell_manager();
            Ok(())
        };
        return mount::run(&options, ready, logfile::reopen);
    }
    launch(&options, log.as_deref(), args.auto_unmount)
}

/// `bsz umount`
pub fn umount(args: UmountArgs) -> Result<()> {
    match args.mountpoint {
        Some(mountpoint) if args.orphaned => {
            // Whatever comes, and whatever goes wrong: it is over when nothing comes any more.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            mount::clear_orphan(&mountpoint)
        }
        below if args.stale => {
            let unserved = mount::unserved(below.as_deref())?;
            for silent in &unserved.silent {
                let why =
                    "its daemon does not answer, but has not died; `bsz umount --lazy` ends it";
                super::complain(&Error::invalid(why).about_path(silent));
            }
            super::for_each("umount", &unserved.dead, |mountpoint| mount::detach(mountpoint))
        }
        Some(mountpoint) if args.lazy => mount::detach(&mountpoint),
        Some(mountpoint) => mount::unmount(&mountpoint),
        None => Ok(()),
    }
}

/// Have another process, which ends after this one, see to the mount that this one may leave.
fn start_guard(mountpoint: &Path) -> Result<()> {
    let mut guard = mount::this_program()
        .args(["umount", "--orphaned", "--"])
        .arg(std::path::absolute(mountpoint).about_path(mountpoint)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // A terminal's ^C is for us alone.
        .process_group(0)
        .spawn()
        .about("the guard")?;
    // Our end of the pipe stays open as long as we live.
    std::mem::forget(guard.stdin.take());
    Ok(())
}

/// Tell a service manager that waits for it that the mount can be used: sd_notify(3).
fn tell_manager() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let tell = || {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&socket)?,
        };
        UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)
    };
    if let Err(e) = tell() {
        log::warn!(
            "the service manager cannot be told that the mount is ready: {}: {e}",
            escape::path(&socket)
        );
    }
}

/// Mount in a daemon, which logs to the file at the absolute path `log`, and return when the mount can be used.
pub(super) fn launch(o: &MountOptions, log: Option<&Path>, auto_unmount: bool) -> Result<()> {
    let (reader, writer) = io::pipe().about("pipe")?;
    let mut command = mount::this_program();
    command
        .args(["mount", "--daemon"])
        .arg(format!("--cache-size={}", o.cache_bytes))
        .arg(format!("--threads={}", o.threads))
        .arg(match o.prefetch {
            Prefetch::Off => "--prefetch=off".to_owned(),
            Prefetch::Auto => "--prefetch=auto".to_owned(),
            Prefetch::Layers(n) => format!("--prefetch={n}"),
            Prefetch::Cuda => "--prefetch=cuda".to_owned(),
        })
        .arg(format!("--gpu-memory={}", o.gpu_memory))
        .args(o.allow_other.then_some("--allow-other"))
        .args(auto_unmount.then_some("--auto-unmount"))
        .args(log_flags())
        .args(o.metrics.iter().map(|address| match address {
            MetricsAddress::Unix(path) => {
                let mut flag = OsString::from("--metrics=unix:");
                flag.push(path);
                flag
            }
            MetricsAddress::Loopback(address) => format!("--metrics={address}").into(),
        }))
        .args(log.iter().flat_map(|file| [OsStr::new("--log"), file.as_os_str()]))
        .arg("--")
        .arg(std::path::absolute(&o.source).about_path(&o.source)?)
        .arg(std::path::absolute(&o.mountpoint).about_path(&o.mountpoint)?)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().about("pipe")?)
        .stderr(writer);
    let mut daemon = command.spawn().about("the daemon")?;
    // It holds our ends of the pipe, which must end when the daemon does.
    drop(command);
    match relay(Patient { pipe: reader, until: Instant::now() + READY_WITHIN }) {
        Err(e) if e.kind() == io::ErrorKind::TimedOut => {
            // It may wait for what no signal ends, and is not waited for.
            let _ = daemon.kill();
            Err(e).about("the daemon")
        }
        Err(e) => Err(e).about("the daemon"),
        Ok(Outcome::Ready) => Ok(()),
        Ok(Outcome::Failed(why)) => {
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

/// A pipe that is read until some time.
struct Patient {
    pipe: PipeReader,
    until: Instant,
}

impl Read for Patient {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], Some(&left))? {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "is not ready after a minute: its source does not answer, or a GPU",
            )),
            _ => self.pipe.read(out),
        }
    }
}

/// Pass on what the daemon says until it is ready, or ends.
fn relay(reader: Patient) -> io::Result<Outcome> {
    let mut why: Option<String> = None;
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        match line.strip_prefix("bsz: ") {
            _ if line == READY => return Ok(Outcome::Ready),
            // The last one is why it ended.
            Some(error) => {
                if let Some(before) = why.replace(error.to_owned()) {
                    say_aside(&format!("bsz: {before}"));
                }
            }
            None => say_aside(&line),
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

/// What mount(8) runs as `mount.bszfs SRC MOUNTPOINT [-sfnv] [-o OPTIONS]`
#[derive(Args)]
#[command(after_help = "Examples:
  mount -t bszfs /srv/models /mnt/models -o allow_other    has mount(8) run this")]
pub struct HelperArgs {
    source: PathBuf,
    mountpoint: PathBuf,
    /// Tolerate options that are unknown
    #[arg(short)]
    sloppy: bool,
    /// Do everything but mount
    #[arg(short)]
    fake: bool,
    /// Nothing is written to /etc/mtab anyway
    #[arg(short)]
    n: bool,
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
    #[arg(short = 'o', value_name = "OPTION,...", value_delimiter = ',')]
    options: Vec<String>,
}

/// `bsz mount-helper`
pub fn helper(args: HelperArgs) -> Result<()> {
    let mut mount_args = MountArgs {
        source: args.source,
        mountpoint: Some(args.mountpoint),
        cache_size: None,
        threads: None,
        prefetch: Prefetch::Auto,
        gpu_memory: 256 << 20,
        allow_other: false,
        auto_unmount: false,
        fuse_fd: None,
        log: None,
        metrics: None,
        options: Vec::new(),
        foreground: false,
        daemon: false,
    };
    for option in &args.options {
        match mount_args.apply(option) {
            Err(e) if !args.sloppy => return Err(e),
            _ => {}
        }
    }
    if args.fake { Ok(()) } else { mount(mount_args) }
}
