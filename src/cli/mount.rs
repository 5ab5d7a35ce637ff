//! `bsz mount`, and the helper through which mount(8) runs it.
//!
//! Whatever spelling an option has (a flag, `-o`, a line of /etc/fstab), it becomes a long flag of
//! one normalised command line. That line is parsed here, and is what a daemon is started with.

use super::mount_options::{HEADING, Unknown, normalise};
#[cfg(feature = "remote")]
use super::mount_url::UrlArgs;
use super::{daemon, guard, logfile, size};
use crate::error::{Error, Result};
use crate::mount::{self, MetricsAddress, MountOptions};
use crate::program;
use crate::readahead::Prefetch;
use crate::store::{self, Pack, PackPolicy};
use clap::{ArgMatches, Args, FromArgMatches, ValueHint};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

/// Show compressed models as the plain files they were made from
///
/// MOUNTPOINT becomes a read-only view of SRC. Each archive appears with its original name, size,
/// mode and modification time; all other files appear unchanged. Without MOUNTPOINT, SRC shows
/// itself, and its files can be changed; with --pack, models are packed in the background. SRC may
/// be a URL: s3://, gs://, az://, https:// or hf://. The command returns once the mount is ready.
/// `bsz umount`, SIGTERM or SIGINT ends the mount.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz mount llama-packed/ /mnt/llama     llama-packed/model.bsz is /mnt/llama/model.safetensors
  bsz mount model.bsz view/              view/model.safetensors, and nothing else
  bsz mount s3://bucket/llama /mnt/llama     object storage; hf://org/repo is a hub's repository
  bsz mount --pack idle models/          models/ compresses itself while it is used
  bsz mount --cache-size 4GiB a/ view/   a larger cache, for data that is read repeatedly
  bsz mount --foreground a/ view/        for a service manager; SIGTERM or ^C ends it
  bsz mount --log bsz.log a/ view/       log to a file; SIGHUP reopens it
  bsz mount --metrics 127.0.0.1:9420 a/ view/     serve Prometheus; unix:PATH for a socket
  bsz mount --auto-unmount a/ view/      leave no mount behind, even if the daemon is killed
  /srv/models /mnt/models bszfs allow_other,cache_size=4GiB,nofail 0 0    a line of /etc/fstab")]
pub struct MountArgs {
    /// A directory with archives in it, or one archive; or the URL of either
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// An existing directory outside SRC; SRC itself if left out; /dev/fd/N means --fuse-fd N
    #[arg(conflicts_with = "fuse_fd")]
    mountpoint: Option<PathBuf>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Serve the open /dev/fuse at descriptor N, which another process has mounted (mount(2) with
    /// fd=N): for containers that may not mount. Whoever mounted it unmounts it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    fuse_fd: Option<RawFd>,
    /// Set mount options as in /etc/fstab: those below, with _ for -, as in cache_size=4GiB.
    /// General options (ro, nosuid, nofail, x-...) are accepted and change nothing
    #[arg(short = 'o', value_name = "OPTION,...", value_delimiter = ',')]
    options: Vec<String>,
    /// Limit the memory for decoded data [default: 1GiB, or an eighth of the memory if that is
    /// less]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = HEADING)]
    cache_size: Option<u64>,
    /// Use N threads to read and decode archives; while some wait for the disk, up to N more help
    /// if there are many readers [default: two per core, at least four]
    #[arg(long, value_name = "N", value_parser = threads, help_heading = HEADING)]
    threads: Option<NonZeroUsize>,
    /// Choose what to decode before it is read: `auto` follows sequential reads, and decodes the
    /// next layers once layers are read in order; N limits that to N layers; `cuda` decodes layers
    /// on an NVIDIA GPU, which helps only where reads wait for the cores
    #[arg(
        long,
        value_name = "off|auto|N|cuda",
        default_value = "auto",
        value_parser = prefetch,
        help_heading = HEADING
    )]
    prefetch: Prefetch,
    /// Limit the GPU memory used for decoding, and the host memory used beside it
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "256MiB",
        value_parser = size::parse,
        help_heading = HEADING
    )]
    gpu_memory: u64,
    /// Decode on this GPU, as the CUDA driver counts them
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = HEADING)]
    gpu: u32,
    /// Let files be changed, also if MOUNTPOINT is given
    #[arg(long, conflicts_with = "read_only", help_heading = HEADING)]
    read_write: bool,
    /// Let nothing be changed, also if MOUNTPOINT is left out
    #[arg(long, help_heading = HEADING)]
    read_only: bool,
    /// Choose when files of a read-write mount are packed: `idle` while the machine has nothing
    /// better to do, `now` as soon as they have settled
    #[arg(
        long,
        value_name = "off|idle|now",
        default_value = "off",
        value_parser = pack,
        help_heading = HEADING
    )]
    pack: Pack,
    /// Pack a file once it has been closed and unchanged for so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", help_heading = HEADING)]
    settle: u64,
    /// Leave smaller files plain
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "1MiB",
        value_parser = size::parse,
        help_heading = HEADING
    )]
    min_size: u64,
    /// Let other users access the mount (ordinary users need user_allow_other in /etc/fuse.conf)
    #[arg(long, help_heading = HEADING)]
    allow_other: bool,
    /// Look for bases in DIR, too, if they are not beside the archives that need them; may be
    /// repeated [default: the directories in BSZ_BASES]
    #[arg(long, value_name = "DIR", help_heading = HEADING)]
    bases: Vec<PathBuf>,
    /// Unmount when the daemon dies for any reason: a second process waits for its death
    #[arg(long, help_heading = HEADING)]
    auto_unmount: bool,
    /// Append the log to FILE, created with mode 0600 [default: standard error in the foreground,
    /// the system log in the background]. SIGHUP reopens FILE, as logrotate needs, and empties
    /// the cache
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    log: Option<PathBuf>,
    /// Serve Prometheus metrics at /metrics of unix:PATH or 127.0.0.1:PORT (loopback only)
    #[arg(
        long,
        value_name = "ADDRESS",
        value_parser = metrics,
        value_hint = ValueHint::Url,
        help_heading = HEADING
    )]
    metrics: Option<MetricsAddress>,
    #[cfg(feature = "remote")]
    #[command(flatten)]
    url: UrlArgs,
    /// Be the daemon that `bsz mount` starts; standard output and standard error are its pipe
    #[arg(long, hide = true)]
    daemon: bool,
}

fn threads(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "must be a number of threads, at least 1")
}

fn prefetch(text: &str) -> Result<Prefetch, &'static str> {
    match text {
        "off" => Ok(Prefetch::Off),
        "auto" => Ok(Prefetch::Auto),
        "cuda" => Ok(Prefetch::Cuda),
        n => n
            .parse()
            .map(Prefetch::Layers)
            .map_err(|_| "must be off, auto, cuda or a number of layers"),
    }
}

fn pack(text: &str) -> Result<Pack, &'static str> {
    [Pack::Off, Pack::Idle, Pack::Now]
        .into_iter()
        .find(|pack| pack.name() == text)
        .ok_or("must be off, idle or now")
}

fn metrics(text: &str) -> Result<MetricsAddress> {
    text.parse()
}

impl MountArgs {
    fn definitions() -> clap::Command {
        // The last of several wins, so that an option of `-o` overrides a flag.
        let command = clap::Command::new("mount").no_binary_name(true).args_override_self(true);
        Self::augment_args(command)
    }

    fn parse(line: &[OsString]) -> Result<Self> {
        let matches = Self::definitions().try_get_matches_from(line);
        let parsed = matches.and_then(|matches| Self::from_arg_matches(&matches));
        parsed.map_err(|e| Error::invalid(e.to_string()))
    }

    fn is_over_itself(&self) -> bool {
        self.mountpoint.is_none() && self.fuse_fd.is_none()
    }

    fn pack_policy(&self) -> PackPolicy {
        let settle = Duration::from_secs(self.settle);
        PackPolicy { pack: self.pack, settle, min_size: self.min_size }
    }

    fn options(&self) -> Result<MountOptions> {
        let cache_bytes = self.cache_size.unwrap_or_else(mount::default_cache_bytes);
        #[cfg(feature = "remote")]
        let (remote, cache_bytes) =
            self.url.mount(&self.source, self.is_over_itself() || self.read_write, cache_bytes)?;
        let descriptor = || self.fuse_fd.map(|n| format!("/dev/fd/{n}").into());
        Ok(MountOptions {
            source: self.source.clone(),
            mountpoint: self
                .mountpoint
                .clone()
                .or_else(descriptor)
                .unwrap_or_else(|| self.source.clone()),
            over_itself: self.is_over_itself() || self.read_write,
            read_write: self.read_write || self.is_over_itself() && !self.read_only,
            cache_bytes,
            threads: self.threads.map_or_else(mount::default_threads, usize::from),
            prefetch: self.prefetch,
            gpu_memory: self.gpu_memory,
            gpu: self.gpu,
            allow_other: self.allow_other,
            metrics: self.metrics.clone(),
            #[cfg(feature = "remote")]
            remote,
        })
    }

    /// How long a daemon may take to become ready.
    fn ready_within(&self) -> Duration {
        #[cfg(feature = "remote")]
        return daemon::READY_WITHIN + self.url.ready_within(&self.source);
        #[cfg(not(feature = "remote"))]
        daemon::READY_WITHIN
    }
}

/// The arguments of `bsz mount` as they were given: matched, but with `-o` still to be merged.
pub struct Given {
    matches: ArgMatches,
    options: Vec<String>,
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let args = MountArgs::from_arg_matches(matches)?;
        Ok(Self { matches: matches.clone(), options: args.options })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Given {
    fn augment_args(command: clap::Command) -> clap::Command {
        MountArgs::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        MountArgs::augment_args_for_update(command)
    }
}

/// `bsz mount`
pub fn mount(given: Given) -> Result<()> {
    run(&normalise(&MountArgs::definitions(), &given.matches, &given.options, Unknown::Refuse)?)
}

/// Mount by a normalised command line.
fn run(line: &[OsString]) -> Result<()> {
    let args = MountArgs::parse(line)?;
    let options = args.options()?;
    super::bases::apply(&args.bases);
    if args.daemon {
        program::close_inherited(options.descriptor())?;
    }
    if args.auto_unmount && options.mountpoint.starts_with("/dev/fd") {
        let why = "cannot be combined with --fuse-fd: whoever mounted the descriptor unmounts it";
        return Err(Error::invalid(why).about("--auto-unmount"));
    }
    if !args.daemon && !args.foreground {
        return daemon::launch(line, args.ready_within());
    }
    if let Some(file) = &args.log {
        logfile::redirect(file)?;
    }
    if args.daemon {
        daemon::detach()?;
    }
    // Before there is a mount, since a daemon may be killed at any time.
    if args.auto_unmount
        && let Err(e) = guard::start(&options.mountpoint)
    {
        log::warn!("--auto-unmount: a killed daemon will leave its mount behind: {e}");
    }
    let ready = || match args.daemon {
        true => daemon::report_ready(args.log.is_some()),
        false => {
            daemon::notify_service_manager();
            Ok(())
        }
    };
    match options.read_write {
        true => store::run(&options, args.pack_policy(), ready, logfile::reopen),
        false => mount::run(&options, ready, logfile::reopen),
    }
}

/// Mount on behalf of mount(8), which runs `mount.bszfs SRC MOUNTPOINT [-sfnv] [-o OPTIONS]`
#[derive(Args)]
#[command(after_help = "Examples:
  mount -t bszfs /srv/models /mnt/models -o allow_other    makes mount(8) run this")]
pub struct HelperArgs {
    source: PathBuf,
    mountpoint: PathBuf,
    /// Tolerate unknown mount options
    #[arg(short)]
    sloppy: bool,
    /// Check everything, but do not mount
    #[arg(short)]
    fake: bool,
    /// Accepted and ignored: nothing is written to /etc/mtab anyway
    #[arg(short)]
    n: bool,
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
    #[arg(short = 'o', value_name = "OPTION,...", value_delimiter = ',')]
    options: Vec<String>,
}

/// `bsz mount-helper`
pub fn helper(args: HelperArgs) -> Result<()> {
    let unknown = if args.sloppy { Unknown::Ignore } else { Unknown::Refuse };
    let definitions = MountArgs::definitions();
    let line = [OsString::from("--"), args.source.into(), args.mountpoint.into()];
    let matches = definitions.clone().try_get_matches_from(line);
    let matches = matches.map_err(|e| Error::invalid(e.to_string()))?;
    let line = normalise(&definitions, &matches, &args.options, unknown)?;
    if args.fake { Ok(()) } else { run(&line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(line: &[&str]) -> Given {
        let matches = MountArgs::definitions().get_matches_from(line);
        Given::from_arg_matches(&matches).expect("valid")
    }

    fn parse(line: &[&str]) -> MountArgs {
        let given = given(line);
        let line =
            normalise(&MountArgs::definitions(), &given.matches, &given.options, Unknown::Refuse);
        MountArgs::parse(&line.expect("valid")).expect("valid")
    }

    #[test]
    fn every_mount_option_can_be_given_both_ways() {
        for (flag, option) in [
            (&["--cache-size=3MiB"][..], "cache_size=3MiB"),
            (&["--threads=2"], "threads=2"),
            (&["--prefetch=2"], "prefetch=2"),
            (&["--gpu-memory=1GiB"], "gpu_memory=1GiB"),
            (&["--gpu=3"], "gpu=3"),
            (&["--allow-other"], "allow_other"),
            (&["--metrics=unix:x"], "metrics=unix:x"),
        ] {
            let options = |line: &[&str]| format!("{:?}", parse(line).options().expect("valid"));
            let by_flag = options(&[flag, &["/a", "/b"]].concat());
            assert_eq!(by_flag, options(&["/a", "/b", "-o", option]));
            assert_ne!(by_flag, options(&["/a", "/b"]));
        }
        assert!(parse(&["-o", "ro,auto_unmount", "/a", "/b"]).auto_unmount);
        assert_eq!(parse(&["-o", "log=/l", "/a", "/b"]).log, Some("/l".into()));
    }

    #[cfg(feature = "remote")]
    #[test]
    fn urls_are_taken_as_they_are_with_their_options() {
        let url = "s3://models/llama";
        let args = parse(&[url, "m", "-o", "disk_cache=c,metadata_ttl=forever,require_etag"]);
        assert_eq!(args.source, PathBuf::from(url));
        assert!(args.mountpoint.as_ref().is_some_and(|at| at.is_absolute()));
        assert!(args.url.metadata_ttl.0.is_none() && args.url.require_etag);
        let plain = parse(&[url, "/m", "--remote-timeout=7"]).options().expect("valid");
        let remote = plain.remote.expect("a URL");
        assert_eq!((remote.url.as_str(), remote.options.deadlines.total.as_secs()), (url, 7));
        assert!(plain.cache_bytes + remote.options.memory <= mount::default_cache_bytes());
        for bad in [&[url][..], &["--read-write", url, "/m"]] {
            assert!(parse(bad).options().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_option_overrides_a_flag() {
        let args = parse(&["--cache-size=1", "-o", "cache_size=2,cache_size=3", "/a", "/b"]);
        assert_eq!(args.cache_size, Some(3));
    }
}
