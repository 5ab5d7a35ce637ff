//! Names that are not UTF-8 or contain control characters, in every command that prints and in
//! every log.
#![allow(clippy::unwrap_used)]

mod common;

use common::models;
use common::mounts::{BSZ, mount_line, mount_test, run, wait_for};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Latin-1, a terminal title, a line of its own, and a right-to-left override.
const NAME: &[u8] = b"caf\xe9\x1b]0;x\x07\nbsz: all is well\xe2\x80\xae";

/// The name as shown to people.
const SHOWN: &str = r"caf\xe9\u{1b}]0;x\u{7}\nbsz: all is well\u{202e}";

fn named(suffix: &str) -> OsString {
    OsString::from_vec([NAME, suffix.as_bytes()].concat())
}

fn hex(path: &Path) -> String {
    path.as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Assert that text can be shown: it is UTF-8 without control characters.
#[track_caller]
fn fit(said: &[u8]) -> String {
    let said = String::from_utf8(said.to_vec()).expect("UTF-8");
    let unfit = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!said.chars().any(unfit), "{said:?}");
    assert!(!said.contains("\nbsz: all is well"), "{said:?}");
    said
}

/// What a command prints on both streams, whether it fails or not.
#[track_caller]
fn said<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> String {
    let output = run(Command::new(BSZ).args(args));
    fit(&output.stdout) + &fit(&output.stderr)
}

#[track_caller]
fn json<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Value {
    let output = run(Command::new(BSZ).args(args));
    assert!(output.status.success(), "{}", fit(&output.stderr));
    serde_json::from_str(&fit(&output.stdout)).unwrap()
}

/// A directory with this name that contains a model with this name.
fn models(dir: &Path) -> PathBuf {
    let models = dir.join(named(""));
    fs::create_dir(&models).unwrap();
    models::write_model(&models.join(named(".safetensors")), 1, 20_000);
    models
}

#[test]
fn commands_on_files_show_every_name_and_control_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let (p, models) = (Path::new, models(dir.path()));
    let (packed, back) = (dir.path().join(named("-packed")), dir.path().join(named("-back")));
    let plain = models.join(named(".safetensors"));
    let archive = packed.join(named(".bsz"));

    let packed_row = &json([p("pack"), p("--json"), &models, p("-o"), &packed])["files"][0];
    assert!(packed_row["path"].as_str().unwrap().ends_with(&format!("{SHOWN}.safetensors")));
    assert_eq!(packed_row["path_bytes"], hex(&plain));
    assert_eq!(packed_row["output_bytes"], hex(&archive));
    let verified = &json([p("verify"), p("--json"), &packed])["files"][0];
    assert_eq!((&verified["path_bytes"], verified.get("output")), (&hex(&archive).into(), None));
    assert_eq!(
        json([p("bench"), p("--json"), p("--seconds=0.01"), &archive])["file_bytes"],
        hex(&archive)
    );

    for args in [
        &[p("verify"), &packed][..],
        &[p("unpack"), &packed, p("-o"), &back],
        &[p("pack"), &plain, p("-o"), &archive],
        &[p("bench"), p("--seconds=0.01"), &archive],
        &[p("warm"), &models],
        &[p("verify"), &plain],
        &[p("pack"), &dir.path().join(named("-none"))],
        &[p("umount"), &models],
        &[p("status"), &models],
        &[p("cache"), p("drop"), &models],
        &[p("mount"), &models, &dir.path().join(named("-none"))],
    ] {
        let said = said(args);
        assert!(
            said.is_empty() || said.contains(SHOWN) || args[0] == p("warm"),
            "{args:?}: {said}"
        );
    }
    // As if a shell had expanded `*`.
    assert!(said([p("info"), p("a"), &plain]).contains("Usage"));
    assert!(fs::read(back.join(named(".safetensors"))).unwrap() == fs::read(plain).unwrap());
}

#[test]
fn mounts_of_every_name_are_shown_logged_and_unmounted() {
    mount_test(|rig| {
        let p = Path::new;
        let models = models(&rig.path(""));
        assert!(
            run(Command::new(BSZ).args([p("pack"), p("-q"), p("--in-place"), &models]))
                .status
                .success()
        );
        let archive = models.join(named(".bsz"));
        let view = rig.path("").join(named("-view"));
        fs::create_dir(&view).unwrap();
        let (log, socket) = (rig.path("log"), rig.path("metrics"));
        let metrics = format!("--metrics=unix:{}", socket.display());
        let mount = || said([p("mount"), p("-v"), p(&metrics), p("--log"), &log, &models, &view]);
        assert_eq!(mount(), "");
        assert!(view.join(named(".safetensors")).exists());

        let status = json([p("status"), p("--json"), &view]);
        let canonical = |path: &Path| hex(&path.canonicalize().unwrap());
        assert_eq!(status[0]["source_bytes"], canonical(&models));
        assert_eq!(status[0]["mountpoint_bytes"], canonical(&view));
        assert_eq!(status[0]["space"]["archives"], 1);
        for args in [&[p("status")][..], &[p("status"), &view], &[p("mount"), &models, &view]] {
            assert!(said(args).contains(SHOWN), "{args:?}");
        }
        let mut asked = UnixStream::connect(&socket).unwrap();
        asked.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        asked.read_to_end(&mut answer).unwrap();
        let answer = fit(&answer.into_iter().filter(|&b| b != b'\r').collect::<Vec<u8>>());
        assert!(answer.contains(&SHOWN.replace('\\', r"\\")), "{answer}");

        // Damage, which gets logged.
        let damaged = fs::File::options().write(true).open(&archive).unwrap();
        damaged.write_all_at(&[0xff; 64], damaged.metadata().unwrap().len() / 2).unwrap();
        wait_for("the damage to be logged", || {
            let _ = fs::read(view.join(named(".safetensors")));
            fit(&fs::read(&log).unwrap()).contains(&format!("{SHOWN}.bsz"))
        });
        assert_eq!(said([p("cache"), p("drop"), &view]), "");
        assert_eq!(said([p("umount"), &view]), "");
        assert_eq!(mount_line(&view), None);
    });
}
