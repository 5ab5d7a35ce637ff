//! Daemons: where they log, what they leave behind when they die, and mounts made for them by
//! others.
#![allow(clippy::unwrap_used)]

mod common;

use common::mounts::{BSZ, bsz, bsz_fails, mount_line, mount_test, run, wait_for};
use common::users::{is_root, ordinary_user, sample};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Whether a guard process waits for the daemon of `view` to end.
fn guarded(view: &Path) -> bool {
    let view = view.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut commands = processes.filter_map(|p| fs::read_to_string(p.path().join("cmdline")).ok());
    commands.any(|command| command.contains("--orphaned") && command.contains(view))
}

#[test]
fn a_killed_daemon_with_auto_unmount_leaves_no_mount_behind() {
    mount_test(|rig| {
        let (source, model) = sample(rig, "source");
        let mount = rig.mount(&source, "view", &["--auto-unmount"]);
        let file = File::open(mount.path("model.safetensors")).unwrap();
        mount.signal(Signal::KILL);
        wait_for("the mount to go", || !mount.is_mounted());
        assert!(file.read_at(&mut [0; 16], 0).is_err());

        let view = mount.root();
        bsz([Path::new("mount"), Path::new("-o"), Path::new("auto_unmount"), &source, view]);
        assert!(fs::read(view.join("model.safetensors")).unwrap() == model);
        let daemon =
            mount.status()["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32)).unwrap();
        assert!(guarded(view));
        kill_process(daemon, Signal::KILL).unwrap();
        wait_for("the mount to go", || mount_line(view).is_none());
        wait_for("its guard to end", || !guarded(view));
    });
}

#[test]
fn a_guard_exits_with_its_daemon_and_leaves_the_next_mount_alone() {
    mount_test(|rig| {
        let (source, model) = sample(rig, "source");
        let first = rig.mount(&source, "view", &["--auto-unmount"]);
        let file = File::open(first.path("model.safetensors")).unwrap();
        bsz([Path::new("umount"), Path::new("--lazy"), first.root()]);
        let second = rig.mount(&source, "view", &[]);
        first.signal(Signal::KILL);
        wait_for("the daemon to end", || first.has_exited());
        wait_for("its guard to end", || !guarded(first.root()));
        assert!(
            second.is_mounted() && fs::read(second.path("model.safetensors")).unwrap() == model
        );
        drop(file);
        let third = rig.mount(&source, "other-view", &["--auto-unmount"]);
        bsz([Path::new("umount"), third.root()]);
        assert_eq!(third.exit_code(), Some(0));
        wait_for("its guard to end", || !guarded(third.root()));
    });
}

fn fuse_device() -> File {
    File::options().read(true).write(true).open("/dev/fuse").unwrap()
}

/// Mount an open `/dev/fuse` on `view`, as a driver does that passes it to another process.
fn mounted_device(view: &Path) -> File {
    let device = fuse_device();
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let data = CString::new(data).unwrap();
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("models", view, "fuse.bszfs", flags, Some(data.as_c_str())).unwrap();
    device
}

/// A command line of the shell, with `device` open as descriptor 3.
fn shell_with(device: File, line: &str, args: &[&Path]) -> Command {
    let mut shell = Command::new("sh");
    shell
        .arg("-ec")
        .arg(format!("exec 3<&0 </dev/null; {line}"))
        .arg("sh")
        .args(args)
        .stdin(device);
    shell
}

#[test]
fn an_unprivileged_daemon_serves_a_mount_that_another_process_made() {
    mount_test(|rig| {
        let Some((program, _)) = ordinary_user(rig) else { return };
        let (source, model) = sample(rig, "source");
        let view = rig.mkdir("view");
        let file = view.join("model.safetensors");
        let unprivileged = "exec setpriv --reuid=65534 --regid=65534 --clear-groups \
                            --bounding-set=-all --inh-caps=-all --no-new-privs";
        let unmounted = format!(r#"{unprivileged} "$1" mount --foreground --fuse-fd 3 "$2""#);
        // The process has no /dev/fuse at all, as in a container.
        let terminated = format!(
            r#"exec unshare --mount sh -ec 'mount -t tmpfs none /dev; {unprivileged} "$@"' \
               sh "$1" mount --foreground "$2" /dev/fd/3"#
        );
        for (line, by_signal) in [(unmounted, false), (terminated, true)] {
            let mut shell = shell_with(mounted_device(&view), &line, &[&program, &source]);
            let mut daemon = shell.spawn().unwrap();
            drop(shell);
            assert!(fs::read(&file).unwrap() == model);
            let status = run(Command::new(BSZ).args(["status", "--json"]).arg(&view)).stdout;
            let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
            assert_eq!(status[0]["mountpoint"].as_str(), view.canonicalize().unwrap().to_str());
            if by_signal {
                kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
                wait_for("the daemon to end", || daemon.try_wait().unwrap().is_some());
                assert!(File::open(&file).is_err());
            }
            bsz([Path::new("umount"), &view]);
            wait_for("the daemon to end", || daemon.try_wait().unwrap().is_some());
            assert!(daemon.wait().unwrap().success());
        }
    });
}

#[test]
fn an_inherited_descriptor_can_be_served_in_the_background() {
    mount_test(|rig| {
        if !is_root() {
            return eprintln!("skipped: only root can mount by mount(2)");
        }
        let (source, model) = sample(rig, "source");
        let view = rig.mkdir("view");
        let line = "exec \"$1\" mount --fuse-fd 3 \"$2\"";
        let mut shell = shell_with(mounted_device(&view), line, &[Path::new(BSZ), &source]);
        assert!(shell.status().unwrap().success());
        drop(shell);
        assert!(fs::read(view.join("model.safetensors")).unwrap() == model);
        bsz([Path::new("umount"), &view]);
    });
}

#[test]
fn an_invalid_descriptor_is_refused() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        for (line, why) in [
            ("--fuse-fd 3 \"$2\"", "/dev/fd/3: Operation not permitted"),
            ("--fuse-fd 0 \"$2\"", "/dev/fd/0: is not an open /dev/fuse"),
            ("--fuse-fd 77 \"$2\"", "/dev/fd/77: is not an open /dev/fuse"),
            (
                "--auto-unmount --fuse-fd 3 \"$2\"",
                "--auto-unmount: cannot be combined with --fuse-fd",
            ),
        ] {
            for foreground in ["", "--foreground"] {
                // Open, but not mounted anywhere.
                let line = format!("exec \"$1\" mount {foreground} {line}");
                let output =
                    shell_with(fuse_device(), &line, &[Path::new(BSZ), &source]).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(1), "{said}");
                assert!(said.starts_with("bsz: ") && said.contains(why), "{line}: {said}");
            }
        }
        let both = [Path::new("mount"), Path::new("--fuse-fd=3"), &source, Path::new("view")];
        assert_eq!(run(Command::new(BSZ).args(both)).status.code(), Some(2));
    });
}

/// Overwrite some bytes in the middle of an archive.
fn damage(archive: &Path) {
    let archive = File::options().write(true).open(archive).unwrap();
    archive.write_all_at(&[0xff; 64], archive.metadata().unwrap().len() / 2).unwrap();
}

#[test]
fn a_daemon_in_the_background_logs_to_syslog() {
    mount_test(|rig| {
        if !is_root() {
            return eprintln!("skipped: only root can put another /dev/log in place");
        }
        let (source, _) = sample(rig, "source");
        damage(&source.join("model.bsz"));
        let (view, dev) = (rig.mkdir("view"), rig.mkdir("dev"));
        let log = UnixDatagram::bind(dev.join("log")).unwrap();
        log.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The shell gets a /dev of its own, with our socket as its log.
        let line = r#"
            for device in fuse null; do
                : >"$4/$device"
                mount --bind "/dev/$device" "$4/$device"
            done
            mount --rbind "$4" /dev
            "$1" mount "$2" "$3"
            if cat "$3/model.safetensors" >/dev/null 2>&1; then exit 9; fi
            "$1" umount "$3""#;
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "sh", "-ec", line, "sh", BSZ]).args([&source, &view, &dev]);
        let output = run(&mut shell);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut said = [0; 4096];
        let n = log.recv(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said[..n]);
        // The facility of daemons, with the severity of an error or a warning.
        assert!(["<27>", "<28>"].iter().any(|priority| said.starts_with(priority)), "{said}");
        assert!(said.contains(" bsz[") && said.contains("model.bsz"), "{said}");
    });
}

#[test]
fn a_daemon_logs_damage_to_its_file_and_reopens_it_on_sighup() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let archive = source.join("model.bsz");
        damage(&archive);
        // A daemon reports the damage of an archive only once.
        fs::copy(&archive, source.join("other.bsz")).unwrap();
        let (view, log) = (rig.mkdir("view"), rig.path("bsz.log"));
        let option = format!("log={}", log.display());
        bsz([Path::new("mount"), Path::new("-o"), Path::new(&option), &source, &view]);
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
        let says = |archive| fs::read_to_string(&log).unwrap().contains(archive);
        assert!(fs::read(view.join("model.safetensors")).is_err());
        wait_for("the damage in the log", || says("model.bsz"));

        fs::rename(&log, rig.path("bsz.log.1")).unwrap();
        bsz([Path::new("cache"), Path::new("drop"), &view]);
        wait_for("the log to be there anew", || log.exists());
        assert!(fs::read(view.join("other.safetensors")).is_err());
        wait_for("the damage in the new log", || says("other.bsz"));
        assert!(!says("model.bsz"));
        // The new log gets damage that was already reported, too.
        assert!(fs::read(view.join("model.safetensors")).is_err());
        wait_for("the known damage in the new log", || says("model.bsz"));
        bsz([Path::new("umount"), &view]);
    });
}

#[test]
fn a_log_file_that_cannot_be_opened_is_reported_before_mounting() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let (view, log) = (rig.mkdir("view"), rig.path("absent/bsz.log"));
        for foreground in [None, Some("--foreground")] {
            let mut args = vec![Path::new("mount"), Path::new("--log"), &log, &source, &view];
            args.extend(foreground.map(Path::new));
            assert!(bsz_fails(args).contains("absent/bsz.log: "));
            assert_eq!(mount_line(&view), None);
        }
    });
}
