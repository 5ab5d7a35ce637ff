//! `bsz demo`: one model packed, mounted, loaded and compared, with the commands a user would type.

use super::{generate, interrupt, report};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::{Header, Naming, header_len};
use crate::program::this_program;
use crate::{escape, input, mount};
use clap::Args;
use sha2::{Digest, Sha256};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Pack, mount, load and compare one model, then clean up
#[derive(Args)]
#[command(after_help = "Examples:
  bsz demo                     uses a generated model of about 60 MB
  bsz demo model.safetensors   uses your own model, which is only read")]
pub struct DemoArgs {
    /// Use this model instead of a generated one
    file: Option<PathBuf>,
}

/// Bytes per read when a file is loaded.
const BLOCK: usize = 4 << 20;
/// How long a mount may take to appear, and its daemon to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// `bsz demo`. Everything it made is removed before it returns, even after an error or a signal.
pub fn demo(args: DemoArgs) -> Result<()> {
    let stage = Stage::new()?;
    let (source, plain) = stage.model(args.file)?;
    let name =
        plain.file_name().ok_or_else(|| Error::invalid("has no file name").about_path(&plain))?;
    let archive = stage.make_dir("packed")?.join(Naming::of(name).archive_name(name));

    let packing = Instant::now();
    stage.bsz(&["pack".as_ref(), source.as_ref(), "-o".as_ref(), "packed".as_ref()])?;
    let packing = packing.elapsed().as_secs_f64();
    let size = |path: &Path| fs::metadata(path).about_path(path).map(|m| m.len());
    let (original, stored) = (size(&plain)?, size(&archive)?);

    let mounted = stage.mount()?;
    if mounted.is_none() {
        say("# FUSE cannot mount here; unpack the same archive instead")?;
        let archive = Path::new("packed").join(Naming::of(name).archive_name(name));
        stage.bsz(&["unpack".as_ref(), archive.as_ref(), "-o".as_ref(), "view".as_ref()])?;
    }
    let view = stage.path("view").join(name);
    say("# load both completely, and compare every tensor")?;
    let seconds = |path: &Path| stage.load(path).map(|seconds| format!("{seconds:.3} s"));
    let (loaded, first, again) = (seconds(&plain)?, seconds(&view)?, seconds(&view)?);
    let (expected, found) = (stage.digests(&plain)?, stage.digests(&view)?);
    let same = expected.tensors.iter().zip(&found.tensors).filter(|(a, b)| a == b).count();

    let how = if mounted.is_some() { "mounted" } else { "unpacked" };
    let speed = format!("{packing:.2} s, {}", report::rate(original, packing));
    let rows = [
        ["", "plain", how],
        ["size on disk", &report::bytes(original), &report::bytes(stored)],
        ["", "", &report::ratio(stored, original)],
        ["pack and verify", "", &speed],
        ["load, first", &loaded, &first],
        ["load, again", "", &again],
        ["SHA-256", &expected.short(), &found.short()],
        ["tensors identical", &expected.tensors.len().to_string(), &same.to_string()],
    ];
    let rows = rows.map(|row| row.map(String::from).to_vec());
    say("")?;
    report::table(&rows, &[1, 2]).iter().try_for_each(say)?;
    if let Some(mounted) = mounted {
        say("")?;
        stage.bsz(&["umount".as_ref(), "view".as_ref()])?;
        drop(mounted);
    }
    if expected != found {
        return Err(Error::corrupt("the view differs from the original").about_path(&view));
    }
    stage.dir.close().about("the temporary directory")?;
    say("")?;
    say("identical to the last bit; nothing is left behind")
}

/// Print one line. If nobody reads it any more, the error ends the demo.
fn say(text: impl AsRef<str>) -> Result<()> {
    writeln!(io::stdout(), "{}", escape::text(text.as_ref())).about("standard output")
}

/// The SHA-256 of each tensor by name, and of the whole file.
#[derive(PartialEq)]
struct Digests {
    tensors: Vec<(String, [u8; 32])>,
    file: [u8; 32],
}

impl Digests {
    fn short(&self) -> String {
        let hex: String = self.file[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        hex + "..."
    }
}

/// The temporary directory of a demo, and the signals that end it early.
struct Stage {
    dir: tempfile::TempDir,
    interrupted: Arc<AtomicBool>,
}

impl Stage {
    fn new() -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in interrupt::wanted(&[SIGHUP, SIGINT, SIGTERM]) {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .about("signal handler")?;
        }
        let dir = tempfile::Builder::new().prefix("bsz-demo.").tempdir();
        Ok(Self { dir: dir.about("a temporary directory")?, interrupted })
    }

    /// The model, as what is packed and as a file: `file`, or a generated one.
    fn model(&self, file: Option<PathBuf>) -> Result<(PathBuf, PathBuf)> {
        if let Some(file) = file {
            let file = file.canonicalize().about_path(&file)?;
            input::open(&file)?;
            return Ok((file.clone(), file));
        }
        say("# generate a model: Llama layout, BF16, Gaussian weights from a fixed seed")?;
        generate::model(&self.make_dir("model")?)?;
        Ok(("model".into(), self.path("model/model.safetensors")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path).about_path(&path)?;
        Ok(path)
    }

    fn check(&self) -> Result<()> {
        match self.interrupted.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Io, "interrupted").about("demo")),
            false => Ok(()),
        }
    }

    /// Show a command of this program, and start it in the temporary directory.
    fn start(&self, args: &[&OsStr]) -> Result<Child> {
        self.check()?;
        let shown: Vec<_> = args.iter().map(|arg| escape::path(*arg)).collect();
        say(format!("$ bsz {}", shown.join(" ")))?;
        let mut command = this_program();
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).spawn().about("bsz")
    }

    /// Run a command of this program to its end.
    fn bsz(&self, args: &[&OsStr]) -> Result<()> {
        let mut child = self.start(args)?;
        let status = loop {
            if let Some(status) = child.try_wait().about("bsz")? {
                break status;
            }
            if let Err(interrupted) = self.check() {
                end(&mut child);
                return Err(interrupted);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if status.success() { Ok(()) } else { Err(Error::invalid(status.to_string()).about("bsz")) }
    }

    /// Mount `packed` on `view`; `None` if this machine does not allow that.
    fn mount(&self) -> Result<Option<Mounted>> {
        let view = self.make_dir("view")?;
        let device = File::options().read(true).write(true).open("/dev/fuse");
        if let Err(e) = device {
            say(format!("# /dev/fuse: {e}"))?;
            return Ok(None);
        }
        let child = self.start(&[
            "mount".as_ref(),
            "--foreground".as_ref(),
            "packed".as_ref(),
            "view".as_ref(),
        ])?;
        let mut mounted = Mounted { child, on: view };
        let begun = Instant::now();
        let place = self.dir.path().canonicalize().about("the temporary directory")?.join("view");
        while !mount::mounts()?.contains(&place) {
            self.check()?;
            if mounted.ended()?.is_some() || begun.elapsed() > PATIENCE {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Some(mounted))
    }

    /// The seconds it takes to read all of `path` in order.
    fn load(&self, path: &Path) -> Result<f64> {
        let begun = Instant::now();
        let file = input::open(path)?;
        let bytes = file.metadata().about_path(path)?.len();
        self.blocks(path, &file, 0..bytes, |_| {})?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Pass the bytes of `range` to `each`, block by block.
    fn blocks(
        &self,
        path: &Path,
        file: &File,
        range: std::ops::Range<u64>,
        mut each: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut block = vec![0; BLOCK.min((range.end - range.start) as usize)];
        let mut offset = range.start;
        while offset < range.end {
            self.check()?;
            let here = block.len().min((range.end - offset) as usize);
            file.read_exact_at(&mut block[..here], offset).about_path(path)?;
            each(&block[..here]);
            offset += here as u64;
        }
        Ok(())
    }

    fn digests(&self, path: &Path) -> Result<Digests> {
        let file = input::open(path)?;
        let end = file.metadata().about_path(path)?.len();
        let digest = |range| {
            let mut hash = Sha256::new();
            self.blocks(path, &file, range, |block| hash.update(block))
                .map(|()| hash.finalize().into())
        };
        let mut tensors = Vec::new();
        for tensor in header(&file, end).unwrap_or_default().tensors {
            tensors.push((tensor.name, digest(tensor.start..tensor.end)?));
        }
        Ok(Digests { tensors, file: digest(0..end)? })
    }
}

/// The safetensors header; `None` if the file has none.
fn header(file: &File, end: u64) -> Option<Header> {
    let mut prefix = [0; 8];
    file.read_exact_at(&mut prefix, 0).ok()?;
    let mut json = vec![0; header_len(prefix, end)? as usize];
    file.read_exact_at(&mut json, 8).ok()?;
    Header::parse(&json, end)
}

/// A mount, unmounted when dropped.
struct Mounted {
    child: Child,
    on: PathBuf,
}

impl Mounted {
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().about("bsz mount")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Ok(None) = self.ended()
            && let Err(e) = mount::unmount(&self.on)
        {
            log::debug!("unmounting: {e}");
        }
        let begun = Instant::now();
        while matches!(self.ended(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                return end(&mut self.child);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Kill a child, which may have ended by itself.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
