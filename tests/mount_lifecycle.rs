//! How mounts begin and end: as root and as an ordinary user, by command, by signal and by
//! accident.
#![allow(clippy::unwrap_used)]

mod common;

use common::mounts::{BSZ, bsz, bsz_fails, mount_line, mount_test, run, wait_for};
use common::users::{as_nobody, ordinary_user, sample};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

#[test]
fn mount_returns_once_the_view_is_usable_and_umount_once_it_is_gone() {
    mount_test(|rig| {
        let (source, model) = sample(rig, "source");
        let view = rig.mkdir("view");
        for _ in 0..3 {
            bsz([Path::new("mount"), &source, &view]);
            assert!(fs::read(view.join("model.safetensors")).unwrap() == model);
            bsz([Path::new("umount"), &view]);
            assert_eq!(mount_line(&view), None);
            assert_eq!(fs::read_dir(&view).unwrap().count(), 0);
        }
    });
}

#[test]
fn the_mount_table_shows_type_source_and_read_only() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "a source, with \\ and space");
        let mount = rig.mount(&source, "view of it, with \\ and space", &[]);
        let line = mount_line(mount.root()).unwrap();
        let fields: Vec<&str> = line.split(' ').collect();
        let shown = source
            .canonicalize()
            .unwrap()
            .to_string_lossy()
            .replace('\\', r"\134")
            .replace(' ', r"\040");
        assert_eq!((fields[0], fields[2]), (&shown[..], "fuse.bszfs"));
        for option in ["ro", "nosuid", "nodev"] {
            assert!(fields[3].split(',').any(|o| o == option), "{option} in {line}");
        }
        bsz([Path::new("umount"), mount.root()]);
        assert_eq!(mount.exit_code(), Some(0));
    });
}

#[test]
fn relative_paths_and_symlinks_to_the_mountpoint_work() {
    mount_test(|rig| {
        let (source, model) = sample(rig, "source");
        let view = rig.mkdir("view");
        std::os::unix::fs::symlink("view", rig.path("link")).unwrap();
        let at_root = |args: &[&str]| {
            let output = run(Command::new(BSZ).args(args).current_dir(source.parent().unwrap()));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        at_root(&["mount", "source", "link"]);
        assert!(fs::read(view.join("model.safetensors")).unwrap() == model);
        at_root(&["umount", "./link"]);
        assert_eq!(mount_line(&view), None);
    });
}

#[test]
fn sigterm_and_sigint_unmount() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        for signal in [Signal::TERM, Signal::INT] {
            let mount = rig.mount(&source, "view", &[]);
            fs::read(mount.path("model.safetensors")).unwrap();
            mount.signal(signal);
            assert_eq!(mount.exit_code(), Some(0));
            assert!(!mount.is_mounted());
        }
    });
}

#[test]
fn a_signal_detaches_a_busy_mount_and_open_files_stay_readable() {
    mount_test(|rig| {
        let (source, model) = sample(rig, "source");
        let mount = rig.mount(&source, "view", &[]);
        let file = File::open(mount.path("model.safetensors")).unwrap();
        mount.signal(Signal::TERM);
        wait_for("the mount to go", || !mount.is_mounted());
        let mut read = vec![0; model.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == model && !mount.has_exited());
        drop(file);
        assert_eq!(mount.exit_code(), Some(0));
    });
}

#[test]
fn an_interrupt_ends_a_detached_daemon_at_once_and_a_repeated_sigterm_does_not() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let mount = rig.mount(&source, "view", &[]);
        let file = File::open(mount.path("model.safetensors")).unwrap();
        mount.signal(Signal::TERM);
        wait_for("the mount to go", || !mount.is_mounted());
        mount.signal(Signal::TERM);
        file.read_exact_at(&mut [0; 4096], 0).unwrap();
        assert!(!mount.has_exited());
        mount.signal(Signal::INT);
        assert_eq!(mount.exit_code(), Some(0));
    });
}

#[test]
fn a_busy_mount_is_unmounted_only_lazily() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let mount = rig.mount(&source, "view", &[]);
        let file = File::open(mount.path("model.safetensors")).unwrap();
        let said = bsz_fails([Path::new("umount"), mount.root()]);
        assert!(said.contains("is in use") && said.contains("--lazy"), "{said}");
        assert!(mount.is_mounted());
        bsz([Path::new("umount"), Path::new("--lazy"), mount.root()]);
        assert!(!mount.is_mounted());
        file.read_exact_at(&mut [0; 4096], 0).unwrap();
        drop(file);
        assert_eq!(mount.exit_code(), Some(0));
    });
}

#[test]
fn a_daemon_that_exits_leaves_the_mount_that_replaced_it_alone() {
    mount_test(|rig| {
        let (source, model) = sample(rig, "source");
        let first = rig.mount(&source, "view", &[]);
        let file = File::open(first.path("model.safetensors")).unwrap();
        bsz([Path::new("umount"), Path::new("--lazy"), first.root()]);
        let second = rig.mount(&source, "view", &[]);
        drop(file);
        assert_eq!(first.exit_code(), Some(0));
        assert!(fs::read(second.path("model.safetensors")).unwrap() == model);
    });
}

#[test]
fn a_dead_mount_is_reported_and_can_be_removed() {
    mount_test(|rig| {
        let (source, model) = sample(rig, "source");
        let mount = rig.mount(&source, "view", &[]);
        mount.signal(Signal::KILL);
        wait_for("the daemon to end", || mount.has_exited());
        assert!(mount.is_mounted());
        let said = bsz_fails([Path::new("mount"), &source, mount.root()]);
        assert!(said.contains("daemon has died") && said.contains("bsz umount"), "{said}");
        bsz([Path::new("umount"), mount.root()]);
        assert!(!mount.is_mounted());
        let again = rig.mount(&source, "view", &[]);
        assert!(fs::read(again.path("model.safetensors")).unwrap() == model);
    });
}

#[test]
fn all_dead_mounts_are_removed_at_once() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let mounts: Vec<_> =
            (0..3).map(|i| rig.mount(&source, &format!("view-{i}"), &[])).collect();
        for mount in &mounts[..2] {
            mount.signal(Signal::KILL);
            wait_for("the daemon to end", || mount.has_exited());
        }
        // Only this test's own: other tests have dead mounts, too.
        bsz([Path::new("umount"), Path::new("--stale"), mounts[0].root()]);
        assert!(!mounts[0].is_mounted() && mounts[1].is_mounted());
        let root = mounts[0].root().parent().unwrap();
        bsz([Path::new("umount"), Path::new("--stale"), root]);
        wait_for("the dead ones to go", || !mounts[0].is_mounted() && !mounts[1].is_mounted());
        assert!(mounts[2].is_mounted());
    });
}

#[test]
fn the_conventions_of_mount_8_are_understood() {
    mount_test(|rig| {
        let (source, model) = sample(rig, "source");
        let view = rig.mkdir("view");
        let helper = |options: &str, more: &[&str]| {
            let mut command = Command::new(BSZ);
            command.arg("mount-helper").args([&source, &view]).args(more).args(["-o", options]);
            run(&mut command)
        };
        let options = "rw,noatime,nofail,x-systemd.automount,cache_size=3MiB,prefetch=2,threads=2";
        assert!(helper(options, &["-f"]).status.success() && mount_line(&view).is_none());
        assert!(helper(options, &["-n"]).status.success());
        assert!(fs::read(view.join("model.safetensors")).unwrap() == model);
        let status = run(Command::new(BSZ).args(["status", "--json"]).arg(&view)).stdout;
        assert!(
            String::from_utf8_lossy(&status).contains(&format!("\"capacity_bytes\": {}", 3 << 20))
        );
        bsz([Path::new("umount"), &view]);
        for (option, why) in [
            ("cache_sise=1", "unknown mount option"),
            ("cache_size=x", "-o cache_size=x"),
            ("prefetch=x", "must be off, auto, cuda"),
        ] {
            let output = helper(option, &[]);
            assert_eq!(output.status.code(), Some(1));
            assert!(String::from_utf8_lossy(&output.stderr).contains(why), "{option}");
        }
        assert!(helper("fancy", &["-s"]).status.success());
        bsz([Path::new("umount"), &view]);
        bsz([
            Path::new("mount"),
            &source,
            &view,
            Path::new("-o"),
            Path::new("nodev,cache_size=1M"),
        ]);
        bsz([Path::new("umount"), &view]);
    });
}

#[test]
fn the_service_manager_is_notified_once_the_mount_is_usable() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let view = rig.mkdir("view");
        let socket = std::os::unix::net::UnixDatagram::bind(rig.path("notify")).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let mut daemon = Command::new(BSZ);
        daemon
            .args(["mount", "--foreground"])
            .args([&source, &view])
            .env("NOTIFY_SOCKET", rig.path("notify"));
        let mut daemon = daemon.spawn().unwrap();
        let mut said = [0; 100];
        let n = socket.recv(&mut said).unwrap();
        assert_eq!(&said[..n], b"READY=1");
        assert_eq!(fs::read_dir(&view).unwrap().count(), 1);
        bsz([Path::new("umount"), &view]);
        assert!(daemon.wait().unwrap().success());
    });
}

#[test]
fn a_mount_that_fails_says_why() {
    mount_test(|rig| {
        let (source, _) = sample(rig, "source");
        let inside = rig.mkdir("source/inside");
        let mount = rig.mount(&source, "view", &[]);
        let file = rig.path("file");
        fs::write(&file, "").unwrap();
        for (source, mountpoint, why) in [
            (&rig.path("none"), &rig.mkdir("empty"), "does not exist"),
            (&source, &rig.path("none"), "make it with mkdir"),
            (&source, &rig.path("none/none"), "none/none: does not exist: make it with mkdir"),
            (&source, &file, "is not a directory"),
            (&file, &rig.mkdir("empty"), "is not an archive: mount a directory, or a .bsz file"),
            (
                &Path::new("/dev/null").to_owned(),
                &rig.mkdir("empty"),
                "is neither a directory nor an archive",
            ),
            (&source, &source, "is the source itself"),
            (&source, &inside, "is inside the source"),
            (&inside, &source, "contains the source"),
            (&source, &mount.root().to_owned(), "is already a bszfs mount"),
        ] {
            for args in [&["mount"][..], &["mount", "--foreground"]] {
                let args = args.iter().map(Path::new).chain([&**source, &**mountpoint]);
                let said = bsz_fails(args);
                assert!(said.contains(why), "{said}");
                assert_eq!(said.lines().count(), 1, "{said}");
            }
        }
        let said = bsz_fails([Path::new("umount"), &source]);
        assert!(said.contains("is not a mountpoint"), "{said}");
        let said = bsz_fails(["umount", "/proc"]);
        assert!(said.contains("is a proc mount, not a bszfs mount"), "{said}");
        assert!(mount.is_mounted());
    });
}

#[test]
fn wrong_usage_exits_with_status_2() {
    for args in [
        &["mount"][..],
        &["mount", "a", "b", "--cache-size", "much"],
        &["mount", "a", "b", "--threads=0"],
    ] {
        let output = run(Command::new(BSZ).args(args));
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn an_ordinary_user_mounts_and_unmounts() {
    mount_test(|rig| {
        let Some((program, view)) = ordinary_user(rig) else { return };
        if fs::metadata("/dev/fuse").unwrap().permissions().mode() & 0o006 != 0o006 {
            return eprintln!("skipped: /dev/fuse is not for ordinary users here");
        }
        let (source, model) = sample(rig, "a source, with \\ and space");
        let output = as_nobody(&program, &[Path::new("mount"), &source, &view]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line = mount_line(&view).unwrap();
        assert!(
            line.contains(" fuse.bszfs ro,")
                && line.contains(r"a\040source,\040with\040\134\040and"),
            "{line}"
        );
        let file = view.join("model.safetensors");
        assert!(as_nobody(Path::new("cat"), &[&file]).stdout == model);
        assert_eq!(
            fs::read(&file).err().and_then(|e| e.raw_os_error()),
            Some(libc::EACCES),
            "not others'"
        );
        let output = as_nobody(&program, &[Path::new("umount"), &view]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(mount_line(&view), None);
    });
}

#[test]
fn other_users_get_access_only_with_allow_other() {
    mount_test(|rig| {
        let Some((_, _)) = ordinary_user(rig) else { return };
        let (source, model) = sample(rig, "source");
        let read = |path: &Path| as_nobody(Path::new("cat"), &[path]);
        let mount = rig.mount(&source, "view", &[]);
        assert!(!read(&mount.path("model.safetensors")).status.success());
        let open = rig.mount(&source, "open-view", &["--allow-other"]);
        assert!(read(&open.path("model.safetensors")).stdout == model);
        // Modes are checked all the same.
        fs::set_permissions(&source, fs::Permissions::from_mode(0o700)).unwrap();
        let denied = || !read(&open.path("model.safetensors")).status.success();
        wait_for("the mode to be seen", denied);
    });
}
