//! Mounts for tests: with a deadline, and always unmounted afterwards.

use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const BSZ: &str = env!("CARGO_BIN_EXE_bsz");

/// How long a test may take before its daemons are killed and it fails, even on a slow machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// How long a single step may take.
const STEP: Duration = Duration::from_secs(30);

/// Run a test that mounts. Without FUSE, it is skipped with a message.
pub fn mount_test(test: impl FnOnce(&Rig) + Send + 'static) {
    if std::fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        assert!(std::env::var_os("BSZ_REQUIRE_FUSE").is_none(), "/dev/fuse cannot be opened");
        return eprintln!("skipped: no /dev/fuse");
    }
    let rig =
        Arc::new(Rig { dir: tempfile::tempdir().expect("tempdir"), mounts: Mutex::default() });
    let (done, outcome) = mpsc::channel();
    let body = {
        let rig = rig.clone();
        thread::spawn(move || {
            // Dropped at the end, even after a panic.
            let _done: mpsc::Sender<()> = done;
            test(&rig);
        })
    };
    let in_time = outcome.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Disconnected);
    let states = rig.states();
    // This comes before joining: a thread that waits for a mount wakes up when its daemon dies.
    rig.clean_up();
    let result = body.join();
    assert!(in_time, "the test took longer than {DEADLINE:?}");
    if let Err(panic) = result {
        eprintln!("the daemons when the test failed:\n{states}");
        std::panic::resume_unwind(panic);
    }
}

/// A temporary directory, and the mounts that the test made.
pub struct Rig {
    dir: TempDir,
    mounts: Mutex<Vec<Mount>>,
}

/// A mount served by `bsz mount --foreground`.
#[derive(Clone)]
pub struct Mount {
    path: PathBuf,
    log: PathBuf,
    daemon: Arc<Mutex<Child>>,
}

impl Rig {
    /// A path in the temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory there.
    pub fn mkdir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).expect("mkdir");
        path
    }

    /// Mount `source` on the directory `name`, with further arguments.
    pub fn mount(&self, source: &Path, name: &str, args: &[&str]) -> Mount {
        self.mount_with(source, name, args, &[])
    }

    /// The same, with variables in the daemon's environment.
    pub fn mount_with(
        &self,
        source: &Path,
        name: &str,
        args: &[&str],
        envs: &[(&str, &Path)],
    ) -> Mount {
        let path = self.mkdir(name);
        let log_path = self.path(&format!("log-{}", self.mounts.lock().expect("mounts").len()));
        let log = std::fs::File::create(&log_path).expect("log");
        let daemon = Command::new(BSZ)
            .args(["mount", "--foreground"])
            .args(args)
            .args([source, &path])
            .envs(envs.iter().copied())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("bsz runs");
        let mount = Mount { path, log: log_path, daemon: Arc::new(Mutex::new(daemon)) };
        self.mounts.lock().expect("mounts").push(mount.clone());
        wait_for("the mount", || {
            assert!(!mount.has_exited(), "bsz mount failed: {}", mount.log());
            mount_line(&mount.path).is_some()
        });
        mount
    }

    fn states(&self) -> String {
        let mounts = self.mounts.lock().unwrap_or_else(|e| e.into_inner());
        let state = |mount: &Mount| {
            let status = mount.daemon.lock().unwrap_or_else(|e| e.into_inner()).try_wait();
            format!("{}: {status:?}\n{}", mount.path.display(), mount.log())
        };
        mounts.iter().map(state).collect()
    }

    fn clean_up(&self) {
        for mount in self.mounts.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let _ = mount.daemon.lock().unwrap_or_else(|e| e.into_inner()).kill();
        }
        // Everything that is still mounted here, including mounts of daemons that are not our
        // children.
        let root = self.dir.path().canonicalize().expect("canonical");
        for mountpoint in mountpoints().into_iter().filter(|m| m.starts_with(&root)) {
            let _ = run(Command::new(BSZ).args(["umount", "--lazy"]).arg(mountpoint));
        }
        for mount in self.mounts.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            wait_for("a killed daemon to end", || mount.has_exited());
        }
    }
}

impl Mount {
    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The log of its daemon.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn root(&self) -> &Path {
        &self.path
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.daemon.lock().expect("daemon"));
        kill_process(pid, signal).expect("the daemon is there");
    }

    pub fn has_exited(&self) -> bool {
        self.daemon.lock().unwrap_or_else(|e| e.into_inner()).try_wait().expect("wait").is_some()
    }

    /// Wait for the daemon to end, and return its exit code.
    pub fn exit_code(&self) -> Option<i32> {
        wait_for("the daemon to end", || self.has_exited());
        self.daemon.lock().expect("daemon").wait().expect("wait").code()
    }

    /// The status that the daemon reports.
    pub fn status(&self) -> serde_json::Value {
        let output = run(Command::new(BSZ).args(["status", "--json"]).arg(&self.path));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        all[0].clone()
    }

    pub fn is_mounted(&self) -> bool {
        mount_line(&self.path).is_some()
    }
}

/// The line of `/proc/mounts` for this mountpoint, if something is mounted there.
pub fn mount_line(mountpoint: &Path) -> Option<String> {
    // The temporary directory may be reached through symlinks; the mountpoint itself is not
    // resolved.
    let parent = mountpoint.parent().expect("parent").canonicalize().expect("canonical");
    let path = parent.join(mountpoint.file_name().expect("name"));
    mount_table().into_iter().find(|(at, _)| *at == path).map(|(_, line)| line)
}

fn mountpoints() -> Vec<PathBuf> {
    mount_table().into_iter().map(|(at, _)| at).collect()
}

fn mount_table() -> Vec<(PathBuf, String)> {
    use std::os::unix::ffi::OsStringExt;
    let table = std::fs::read("/proc/mounts").expect("/proc/mounts");
    // The kernel escapes the characters that would end a field as \ooo.
    let unescape = |field: &[u8]| {
        let mut bytes = Vec::new();
        let mut rest = field;
        while let Some((&first, tail)) = rest.split_first() {
            let code =
                tail.get(..3).filter(|_| first == b'\\').and_then(|c| std::str::from_utf8(c).ok());
            let byte = code.and_then(|code| u8::from_str_radix(code, 8).ok());
            bytes.push(byte.unwrap_or(first));
            rest = &tail[if byte.is_some() { 3 } else { 0 }..];
        }
        PathBuf::from(std::ffi::OsString::from_vec(bytes))
    };
    let lines = table.split(|&b| b == b'\n');
    let place = |line: &[u8]| {
        let at = line.split(|&b| b == b' ').nth(1)?;
        Some((unescape(at), String::from_utf8_lossy(line).into_owned()))
    };
    lines.filter_map(place).collect()
}

/// Wait until a condition holds, or fail.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < STEP, "waited {STEP:?} for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Run a command that must end by itself.
pub fn run(command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let pid = Pid::from_child(&child);
    let (tell, told) = mpsc::channel();
    let collect = thread::spawn(move || tell.send(child.wait_with_output().expect("output")));
    told.recv_timeout(STEP).unwrap_or_else(|_| {
        let _ = kill_process(pid, Signal::KILL);
        let _ = collect.join();
        panic!("{command:?} took longer than {STEP:?}");
    })
}

/// Run `bsz`, which must succeed.
pub fn bsz<I: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = I>) {
    let output = run(Command::new(BSZ).args(args));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Run `bsz`, which must exit with 1, and return what it prints on standard error.
pub fn bsz_fails<I: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = I>) -> String {
    let output = run(Command::new(BSZ).args(args));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("bsz: "), "{said}");
    said
}
