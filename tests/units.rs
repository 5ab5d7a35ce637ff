//! systemd accepts the units, and the man pages and options that they name exist; mount(8)'s helper
//! accepts the documented lines of /etc/fstab.

use std::fs;
use std::path::Path;
use std::process::Command;

const UNITS: [&str; 5] = [
    "systemd/bszfs@.service",
    "systemd/user/bszfs@.service",
    "systemd/bszfs-store@.service",
    "systemd/user/bszfs-store@.service",
    "systemd/bszfs-remote@.service",
];

fn text_of(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .expect("a file of the repository")
}

#[test]
fn systemd_accepts_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return eprintln!("skipped: no systemd-analyze");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    for path in UNITS {
        let copy = dir.path().join(Path::new(path).file_name().expect("a name"));
        let text = text_of(path).replace("/usr/bin/bsz", env!("CARGO_BIN_EXE_bsz"));
        fs::write(&copy, text).expect("a writable directory");
        let mut analyze = Command::new("systemd-analyze");
        analyze.arg(if path.contains("user") { "--user" } else { "--system" });
        // A user manager needs a directory for its sockets.
        analyze.args(["verify", "--man=no"]).arg(copy).env("XDG_RUNTIME_DIR", dir.path());
        let output = analyze.output().expect("systemd-analyze runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{path}: {said}");
    }
}

#[test]
fn the_units_use_only_options_that_exist() {
    for path in UNITS {
        for line in
            text_of(path).lines().filter(|line| line.starts_with("Exec") && line.contains("/bsz "))
        {
            let command = line.split_once("/bsz ").map(|(_, rest)| rest).unwrap_or_default();
            let words: Vec<&str> =
                command.split(['\'', '"', ' ']).filter(|word| !word.is_empty()).collect();
            let program = bszfs::cli::command();
            let verb =
                program.find_subcommand(words[0]).unwrap_or_else(|| panic!("{path}: {line}"));
            for option in words.iter().filter_map(|word| word.strip_prefix("--")) {
                assert!(
                    verb.get_arguments().any(|a| a.get_long() == Some(option)),
                    "{path}: --{option}"
                );
            }
        }
    }
}

#[test]
fn the_units_of_stores_keep_nothing_from_changing_files() {
    for path in UNITS.into_iter().filter(|path| path.contains("store")) {
        let text = text_of(path);
        let set = |line: &str| text.lines().any(|set| set == line);
        assert!(set("UMask=0000") && !text.contains("\nRestrictSUIDSGID"), "{path}");
        // A daemon serves open files to the end, and a dead one shows nothing until the next start.
        assert!(set("KillMode=process") && set("SendSIGKILL=no"), "{path}");
        assert!(set("ExecStartPre=-/usr/bin/bsz umount --stale %f"), "{path}");
        assert!(!text.contains("\nExecStopPost"), "{path}");
    }
}

#[test]
fn the_helper_of_mount_accepts_the_documented_lines_of_fstab() {
    let mut lines = 0;
    let page = text_of("docs/guides/deploy-remote.md");
    for line in page.lines().filter(|line| line.contains(" bszfs ") && line.ends_with(" 0 0")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut helper = Command::new(env!("CARGO_BIN_EXE_bsz"));
        // -f checks everything, and does not mount.
        helper.args(["mount-helper", words[0], words[1], "-f", "-o", words[3]]);
        let output = helper.output().expect("bsz runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{line}: {said}");
        lines += 1;
    }
    assert!(lines > 0);
}
