//! Callers other than root, and stores of ordinary users.

use super::store::{PACKED, PLAIN, Store};
use crate::common::models::write_model;
use crate::common::mounts::{Rig, mount_test, run, wait_for};
use crate::common::users::{as_nobody, is_root, ordinary_user};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

/// Run a script as a user with one group. Returns its exit status and what it prints.
fn script(uid: u32, gid: u32, dir: &Path, script: &str) -> (Option<i32>, String) {
    let mut command = Command::new("setpriv");
    let (uid, gid) = (uid.to_string(), gid.to_string());
    command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "sh", "-c", script]);
    let output = run(command.current_dir(dir));
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).trim().to_owned())
}

/// A store with a directory that all may use; `None` without root.
fn shared(rig: &Rig) -> Option<Store> {
    if !is_root() {
        eprintln!("skipped: only root can become another user");
        return None;
    }
    let store = Store::new(rig);
    fs::create_dir(store.path("all")).unwrap();
    fs::set_permissions(store.path("all"), fs::Permissions::from_mode(0o1777)).unwrap();
    Some(store)
}

#[test]
fn new_files_are_their_callers() {
    mount_test(|rig| {
        let Some(store) = shared(rig) else { return };
        let dir = store.path("all");
        let make = "umask 027; touch f; mkdir d; ln -s f l; mkfifo p; umask 0; touch g; mkdir e";
        assert_eq!(script(7001, 6001, &dir, make), (Some(0), String::new()));
        for (name, mode) in [
            ("f", 0o100_640),
            ("d", 0o40_750),
            ("p", 0o10_640),
            ("g", 0o100_666),
            ("e", 0o40_777),
            ("l", 0o120_777),
        ] {
            let made = fs::symlink_metadata(dir.join(name)).unwrap();
            assert_eq!((made.uid(), made.gid(), made.mode()), (7001, 6001, mode), "{name}");
        }
    });
}

#[test]
fn setgid_directories_pass_their_group_on() {
    mount_test(|rig| {
        let Some(store) = shared(rig) else { return };
        let dir = store.path("group");
        fs::create_dir(&dir).unwrap();
        chown(&dir, None, Some(6005)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2777)).unwrap();
        assert_eq!(script(7001, 6001, &dir, "umask 022; touch f; mkdir d").0, Some(0));
        let made = |name: &str| {
            let made = fs::metadata(dir.join(name)).unwrap();
            (made.uid(), made.gid(), made.mode())
        };
        assert_eq!(made("f"), (7001, 6005, 0o100_644));
        assert_eq!(made("d"), (7001, 6005, 0o42_755));
        // A packed file keeps the group.
        let file = dir.join(PACKED);
        write_model(&file, 3, 60_000);
        store.pack(&file);
        assert_eq!(fs::metadata(&file).unwrap().gid(), 6005);
    });
}

#[test]
fn others_may_do_what_the_mode_allows() {
    mount_test(|rig| {
        let Some(store) = shared(rig) else { return };
        store.plain(PLAIN);
        store.packed(PACKED);
        for name in [PLAIN, PACKED] {
            let path = store.path(name);
            let can = |command: &str| {
                let command = command.replace('F', name);
                script(7001, 6001, store.mount.root(), &command).0 == Some(0)
            };
            let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            set(0o600);
            assert!(!can("cat F >/dev/null") && !can("echo >>F"), "{name}");
            set(0o644);
            assert!(can("cat F >/dev/null") && !can("echo >>F") && !can(": >F"), "{name}");
            assert!(!can("chmod 777 F") && !can("touch -d @1 F") && !can("rm -f F"), "{name}");
            assert!(!can("mv F all/") && !can("truncate -s 0 F"), "{name}");
            chown(&path, Some(7001), None).unwrap();
            assert!(can("chmod 600 F") && can("touch -d @1 F") && can("echo >>F"), "{name}");
            assert_eq!(fs::metadata(&path).unwrap().uid(), 7001, "{name}");
            assert!(!can("rm -f F"), "the directory is root's");
        }
    });
}

#[test]
fn an_ordinary_user_has_a_store() {
    mount_test(|rig| {
        let Some((program, dir)) = ordinary_user(rig) else { return };
        let model = write_model(&rig.path("model.safetensors"), 4, 60_000);
        let readable = fs::Permissions::from_mode(0o644);
        fs::set_permissions(rig.path("model.safetensors"), readable).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(5, 250_000_000);
        let source = fs::File::options().write(true).open(rig.path("model.safetensors")).unwrap();
        source.set_modified(time).unwrap();
        let sh = |script: &str| {
            let script = format!("cd {} && {script}", dir.display());
            as_nobody(Path::new("sh"), &[Path::new("-c"), Path::new(&script)])
        };
        let bsz = program.display();
        let mounted = sh(&format!("{bsz} mount --pack now --settle 0 --min-size 64KiB ."));
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        // With the mode and the times that it has.
        sh("cp --preserve=mode,timestamps ../model.safetensors m");
        let packed = || {
            let status = sh(&format!("{bsz} status --json ."));
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
            status[0]["store"]["packed"] == 1
        };
        wait_for("packing", packed);
        assert_eq!(sh("cat m").stdout, model);
        assert_eq!(
            sh("stat -c '%s %Y %a %U' m").stdout,
            format!("{} 5 644 nobody\n", model.len()).as_bytes()
        );
        assert!(sh("chmod 200 m").status.success(), "the daemon can read it no more");
        assert!(sh("chmod 600 m && printf xyz | dd of=m bs=1 conv=notrunc").status.success());
        assert_eq!(sh("cat m").stdout, [b"xyz", &model[3..]].concat());
        assert!(sh("mv m k && rm k && mkdir d && rmdir d").status.success());
        // A file that its owner may not write to can be marked, too.
        let marked = "umask 333; echo a > a.bsz; mv a.bsz a; mv a b.bsz; ln b.bsz c.bsz";
        assert!(sh(marked).status.success());
        assert_eq!(sh("stat -c '%n %a' *; rm -f *").stdout, b"b.bsz 444\nc.bsz 444\n");
        assert_eq!(sh("ls -A").stdout, b"");
        let unmounted = as_nobody(&program, &[Path::new("umount"), &dir]);
        assert!(unmounted.status.success(), "{}", String::from_utf8_lossy(&unmounted.stderr));
    });
}
