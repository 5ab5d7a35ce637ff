//! Servers that others wrote, as `tests/prepare remote` installs them: every file of a directory is
//! exact. Without `BSZ_REMOTE_SERVERS`, servers that are not installed are left out.

mod common;

use common::mounts::mount_test;
use common::places::root;
use common::program::{Ran, bsz, names, packed_objects as packed, run, same_tree};
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A server, which ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Start a server, and wait until it listens.
fn start(command: &mut Command, port: u16) -> Running {
    let running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let running = Running(running.expect("the server starts"));
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(90), "the server does not listen");
        thread::sleep(Duration::from_millis(50));
    }
    running
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A program by its name or path, if it is installed.
fn program(candidates: &[PathBuf]) -> Option<PathBuf> {
    let found = candidates.iter().find(|path| {
        Command::new(path)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    });
    if found.is_none() {
        let required = std::env::var_os("BSZ_REMOTE_SERVERS").is_some();
        assert!(!required, "not installed: {candidates:?} (tests/prepare remote)");
        eprintln!("left out: {candidates:?} is not installed");
    }
    found.cloned()
}

fn environment(port: u16) -> [(&'static str, String); 5] {
    [
        ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_ACCESS_KEY_ID", "key".into()),
        ("AWS_SECRET_ACCESS_KEY", "SECRET".into()),
        ("AWS_REGION", "us-east-1".into()),
    ]
}

fn s3(dir: &Path, port: u16, args: &[&str]) -> Ran {
    let mut command = bsz();
    command.envs(environment(port)).args(args).current_dir(dir);
    command.output().expect("bsz runs").into()
}

/// Every file of `s` is exact through a mount of `url`, and so is a second look.
fn mounted(dir: &Path, url: &str, port: u16) {
    let (url, from) = (url.to_owned(), dir.join("s"));
    mount_test(move |rig| {
        let environment = environment(port);
        let env: Vec<_> = environment.iter().map(|(name, v)| (*name, Path::new(v))).collect();
        let mount = rig.mount_with(Path::new(&url), "m", &[], &env);
        same_tree(&from, mount.root());
        let name = "model-00002-of-00003.safetensors";
        let (original, file) = (fs::read(from.join(name)), fs::File::open(mount.path(name)));
        let (original, file) = (original.expect("read"), file.expect("opens"));
        for at in (0..original.len() - 5000).step_by(7001).rev() {
            let mut bytes = vec![0; 5000];
            file.read_exact_at(&mut bytes, at as u64).expect("reads");
            assert!(bytes == original[at..at + 5000], "at {at}");
        }
        assert_eq!(mount.status()["remote"]["failed"], 0, "{}", mount.status());
    });
}

/// Every command on the directory `s3://bucket/p`, which holds what `p` does.
fn all_commands(dir: &Path, port: u16) {
    let bsz = |args: &[&str]| s3(dir, port, args);
    bsz(&["unpack", "s3://bucket/p", "-o", "u"]).ok();
    same_tree(&dir.join("s"), &dir.join("u"));
    bsz(&["verify", "s3://bucket/p/"]).ok();
    mounted(dir, "s3://bucket/p", port);
    let info = bsz(&["info", "--json", "s3://bucket/"]).ok().json();
    assert_eq!(info["archives"].as_array().expect("archives").len(), 4, "{info}");
    let one = "s3://bucket/p/model-00001-of-00003.bsz";
    let shown = bsz(&["info", one]).ok().stdout;
    assert!(shown.starts_with(&format!("{one}: ")), "{shown}");
    for _ in 0..2 {
        bsz(&["verify", one, "--disk-cache", "cache"]).ok();
    }
    bsz(&["info", "s3://bucket/none"]).fails_about("s3://bucket/none", "no such object");
    let before = names(dir);
    bsz(&["unpack", "s3://bucket/p/tokenizer.json"])
        .fails_about("s3://bucket/p/tokenizer.json", "not a .bsz archive");
    assert_eq!(names(dir), before);
}

/// Replace `s3://bucket/large` by the local file while it is open through a mount whose listing is
/// used for ever: those who have it open are told, and others see what has replaced it.
fn replaced(dir: &Path, port: u16) {
    let dir = dir.to_owned();
    mount_test(move |rig| {
        let environment = environment(port);
        let env: Vec<_> = environment.iter().map(|(name, v)| (*name, Path::new(v))).collect();
        let options = ["--metadata-ttl", "forever"];
        let mount = rig.mount_with(Path::new("s3://bucket"), "m", &options, &env);
        let open = fs::File::open(mount.path("large")).expect("opens");
        let mut bytes = [0; 4096];
        open.read_exact_at(&mut bytes, 0).expect("reads");
        s3(&dir, port, &["cp", "--force", "large", "s3://bucket/large"]).ok();
        let e = open.read_exact_at(&mut bytes, 60_000_000).expect_err("it was replaced");
        assert_eq!(e.raw_os_error(), Some(libc::ESTALE), "{e}");
        let new = fs::read(dir.join("large")).expect("read");
        assert!(fs::read(mount.path("large")).expect("reads") == new);
    });
}

/// Uploads to `s3://bucket`: exact, and nothing is replaced.
fn uploads(dir: &Path, port: u16) {
    let bsz = |args: &[&str]| s3(dir, port, args);
    bsz(&["pack", "s", "-o", "s3://bucket/up"]).ok();
    bsz(&["pack", "s", "-o", "s3://bucket/up"]).ok();
    bsz(&["unpack", "s3://bucket/up", "-o", "up"]).ok();
    same_tree(&dir.join("s"), &dir.join("up"));
    let large: Vec<u8> = (0..70_000_000u32).map(|i| (i >> 7) as u8 ^ i as u8).collect();
    fs::write(dir.join("large"), &large).expect("written");
    for _ in 0..2 {
        bsz(&["cp", "large", "s3://bucket/large"]).ok();
    }
    bsz(&["cp", "s3://bucket/large", "back"]).ok();
    assert!(fs::read(dir.join("back")).expect("copied") == large);
    fs::write(dir.join("large"), &large[1..]).expect("written");
    for other in ["large", "s/tokenizer.json"] {
        bsz(&["cp", other, "s3://bucket/large"])
            .fails_about("s3://bucket/large", "exists and differs");
    }
    replaced(dir, port);
    bsz(&["doctor", "s3://bucket/up/"]).ok();
}

#[test]
fn s3s_fs() {
    let Some(server) = program(&["s3s-fs".into()]) else { return };
    let (dir, port) = (packed(), free_port());
    fs::create_dir_all(dir.path().join("root/bucket")).expect("mkdir");
    common::program::copy_tree(&dir.path().join("p"), &dir.path().join("root/bucket/p"));
    let mut command = Command::new(server);
    command.args(["--host", "127.0.0.1", "--access-key", "key", "--secret-key", "SECRET"]);
    command.args(["--port", &port.to_string()]).arg(dir.path().join("root"));
    let _running = start(&mut command, port);
    all_commands(dir.path(), port);
    uploads(dir.path(), port);
}

#[test]
fn moto() {
    let python = root().join(".venv-remote/bin/python");
    let Some(server) = program(&[root().join(".venv-remote/bin/moto_server")]) else { return };
    let (dir, port) = (packed(), free_port());
    let mut command = Command::new(server);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let _running = start(&mut command, port);
    let upload = "
import boto3, pathlib, sys
s3 = boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1',
                  aws_access_key_id='key', aws_secret_access_key='SECRET')
s3.create_bucket(Bucket='bucket')
for path in pathlib.Path('p').rglob('*'):
    if path.is_file():
        s3.upload_file(str(path), 'bucket', str(path))
";
    let mut python = Command::new(python);
    python.args(["-c", upload, &format!("http://127.0.0.1:{port}")]).current_dir(dir.path());
    assert!(python.status().expect("Python runs").success());
    all_commands(dir.path(), port);
    uploads(dir.path(), port);
}

#[test]
fn nginx() {
    let Some(server) = program(&["nginx".into(), "/usr/sbin/nginx".into()]) else { return };
    let (dir, port) = (packed(), free_port());
    let at = dir.path().to_string_lossy().into_owned();
    let config = format!(
        "daemon off; user root; pid {at}/pid; error_log {at}/error;
        events {{}}
        http {{
            access_log off;
            server {{
                listen 127.0.0.1:{port};
                location /p/ {{ root {at}; autoindex on; autoindex_format json; }}
                location /single/ {{ alias {at}/p/; }}
            }}
        }}"
    );
    fs::write(dir.path().join("nginx.conf"), config).expect("written");
    let mut command = Command::new(server);
    command.arg("-c").arg(dir.path().join("nginx.conf")).arg("-p").arg(dir.path());
    let _running = start(&mut command, port);
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    run(dir.path(), &["unpack", &url("/p/"), "-o", "u"]).ok();
    same_tree(&dir.path().join("s"), &dir.path().join("u"));
    mounted(dir.path(), &url("/p/"), port);
    run(dir.path(), &["verify", &url("/p/"), &url("/single/sub/adapter.bsz")]).ok();
    run(dir.path(), &["info", &url("/single/")]).fails_about(&url("/single/"), "403 Forbidden");
    run(dir.path(), &["info", &url("/none")]).fails_about(&url("/none"), "no such object");
}
