//! An original is removed only when its archive is on disk and holds its bytes, and only if nobody
//! could write to it in the meantime.

mod common;

use common::models::write_model;
use common::program::{SOME, models, names, run};
use common::random::Random;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

#[test]
fn a_file_open_for_writing_is_kept() {
    let dir = models(&["a.safetensors", "b.safetensors"]);
    let path = dir.path().join("s/a.safetensors");
    let whole = fs::read(&path).expect("the model");
    for how in ["write", "append"] {
        let writer =
            OpenOptions::new().write(true).append(how == "append").open(&path).expect("opens");
        let ran = run(dir.path(), &["pack", "--in-place", "s"]);
        assert!(ran.code == Some(1) && ran.stderr.contains("open for writing"), "{ran:?}");
        assert_eq!(
            names(&dir.path().join("s")),
            ["a.safetensors", "b.bsz"],
            "{how}: the other one is packed"
        );
        drop(writer);
    }
    assert_eq!(fs::read(&path).expect("the model"), whole);
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    assert_eq!(names(&dir.path().join("s")), ["a.bsz", "b.bsz"]);
}

#[test]
fn a_file_mapped_for_writing_is_kept() {
    let dir = models(&["a.safetensors"]);
    let path = dir.path().join("s/a.safetensors");
    // The descriptor is closed, so only the mapping is left.
    let script = "import mmap, sys\nf = open(sys.argv[1], 'r+b')\nm = mmap.mmap(f.fileno(), 0)\n\
                  f.close()\n\
                  m[5000] ^= 1\nprint('ready', flush=True)\nsys.stdin.read()\nm[5001] ^= 1";
    let python = Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut python) = python else {
        eprintln!("skipped: no python3 to map a file for writing");
        return;
    };
    let mut ready = [0; 6];
    std::io::Read::read_exact(python.stdout.as_mut().expect("piped"), &mut ready)
        .expect("it is ready");
    let ran = run(dir.path(), &["pack", "--in-place", "s"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("open for writing"), "{ran:?}");
    drop(python.stdin.take());
    python.wait().expect("it ends");
    assert_eq!(names(&dir.path().join("s")), ["a.safetensors"]);
}

#[test]
fn a_truncated_model_is_kept_and_reported() {
    let dir = models(&["a.safetensors", "b.safetensors", "z.safetensors"]);
    let cut = |name: &str, part: u64| {
        let file =
            OpenOptions::new().write(true).open(dir.path().join("s").join(name)).expect("opens");
        file.set_len(file.metadata().expect("stat").len() * part / 1000).expect("cut");
    };
    cut("a.safetensors", 600);
    // The cut is within the header.
    cut("b.safetensors", 1);
    let ran = run(dir.path(), &["pack", "--in-place", "s"]);
    assert_eq!((ran.code, ran.stderr.matches("is incomplete").count()), (Some(0), 2), "{ran:?}");
    assert_eq!(names(&dir.path().join("s")), ["a.safetensors", "b.safetensors", "z.bsz"]);
    let ran = run(dir.path(), &["pack", "--in-place", "s/a.safetensors"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("is incomplete"), "{ran:?}");
    // A copy loses nothing of the original, so it is made.
    let ran = run(dir.path(), &["pack", "s", "-o", "out"]);
    assert!(ran.code == Some(0) && ran.stderr.contains("is incomplete"), "{ran:?}");
    assert_eq!(names(&dir.path().join("out")), ["a.safetensors", "b.safetensors", "z.bsz"]);
}

#[test]
fn files_that_are_not_models_or_would_grow_are_kept_and_reported() {
    let dir = models(&["z.safetensors"]);
    let s = dir.path().join("s");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n";
    let noise: Vec<u8> = {
        let mut random = Random(3);
        (0..30_000).map(|_| random.next() as u8).collect()
    };
    let header =
        format!("{:<104}", r#"{"w":{"dtype":"U8","shape":[30000],"data_offsets":[0,30000]}}"#);
    let incompressible = [&104u64.to_le_bytes()[..], header.as_bytes(), &noise].concat();
    for (name, bytes) in [
        ("pointer.safetensors", &pointer[..]),
        ("page.safetensors", b"<!DOCTYPE html><title>401</title>"),
        ("empty.safetensors", b""),
        ("noise.safetensors", &noise),
        ("valid-noise.safetensors", &incompressible),
    ] {
        fs::write(s.join(name), bytes).expect("written");
    }
    let before: Vec<String> = names(&s);
    let ran = run(dir.path(), &["pack", "--in-place", "s"]);
    assert_eq!((ran.code, ran.stderr.matches("warning: ").count()), (Some(0), 5), "{ran:?}");
    let after: Vec<String> = before.iter().map(|n| n.replace("z.safetensors", "z.bsz")).collect();
    assert_eq!(names(&s), after);
    let ran = run(dir.path(), &["pack", "s", "-o", "out"]);
    assert_eq!((ran.code, names(&dir.path().join("out"))), (Some(0), after), "{ran:?}");
}

#[test]
fn the_objects_of_a_repository_are_left_alone() {
    let dir = models(&["model.safetensors"]);
    for repository in [".git/lfs/objects", "bare.git/lfs", ".hg/store"] {
        let objects = dir.path().join("s").join(repository);
        fs::create_dir_all(&objects).expect("mkdir");
        write_model(&objects.join("aabbcc"), 7, SOME);
    }
    run(dir.path(), &["pack", "s", "-o", "out"]).ok();
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    for tree in ["s", "out"] {
        assert!(dir.path().join(tree).join("model.bsz").exists());
        for repository in [".git/lfs/objects", "bare.git/lfs", ".hg/store"] {
            assert_eq!(
                names(&dir.path().join(tree).join(repository)),
                ["aabbcc"],
                "{tree}/{repository}"
            );
        }
    }
}

#[test]
fn a_newer_file_replaces_the_archive_of_an_older_one() {
    let dir = models(&["a.safetensors", "z.safetensors"]);
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    let newer = write_model(&dir.path().join("s/a.safetensors"), 77, SOME);
    write_model(&dir.path().join("s/n.safetensors"), 78, SOME);
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    assert_eq!(names(&dir.path().join("s")), ["a.bsz", "n.bsz", "z.bsz"]);
    run(dir.path(), &["unpack", "s/a.bsz", "-o", "back"]).ok();
    assert_eq!(fs::read(dir.path().join("back")).expect("back"), newer);
}

#[test]
fn a_damaged_archive_of_the_same_file_is_rebuilt() {
    let dir = models(&["a.safetensors"]);
    let original = fs::read(dir.path().join("s/a.safetensors")).expect("the model");
    run(dir.path(), &["pack", "s/a.safetensors"]).ok();
    let archive = OpenOptions::new().write(true).open(dir.path().join("s/a.bsz")).expect("opens");
    let time = archive.metadata().and_then(|m| m.modified()).expect("a time");
    archive.write_all_at(&[0xa5; 64], 20_000).expect("damaged");
    archive.set_times(fs::FileTimes::new().set_modified(time)).expect("times");
    drop(archive);
    let ran = run(dir.path(), &["pack", "--in-place", "s"]);
    assert!(
        ran.code == Some(0) && ran.stderr.contains("is damaged and will be made again"),
        "{ran:?}"
    );
    assert_eq!(names(&dir.path().join("s")), ["a.bsz"]);
    run(dir.path(), &["unpack", "s/a.bsz", "-o", "back"]).ok();
    assert_eq!(fs::read(dir.path().join("back")).expect("back"), original);
}

#[test]
fn files_in_the_way_of_an_archive_are_kept() {
    let dir = models(&["a.safetensors", "b.safetensors", "c.safetensors", "z.safetensors"]);
    let s = dir.path().join("s");
    fs::create_dir(s.join("a.bsz")).expect("mkdir");
    fs::write(s.join("b.bsz"), "precious").expect("written");
    std::os::unix::fs::symlink("b.bsz", s.join("c.bsz")).expect("a link");
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    let expected = [
        "a.bsz",
        "a.safetensors.bsz",
        "b.bsz",
        "b.safetensors.bsz",
        "c.bsz",
        "c.safetensors.bsz",
        "z.bsz",
    ];
    assert_eq!(names(&s), expected);
    assert_eq!(fs::read(s.join("b.bsz")).expect("read"), b"precious");
}

#[test]
fn hard_links_of_a_file_become_hard_links_of_its_archive_or_are_all_kept() {
    let dir = models(&["a.safetensors"]);
    let s = dir.path().join("s");
    let original = fs::read(s.join("a.safetensors")).expect("the model");
    fs::create_dir(s.join("sub")).expect("mkdir");
    for other in ["s/b.safetensors", "s/sub/0a1b", "outside"] {
        fs::hard_link(s.join("a.safetensors"), dir.path().join(other)).expect("link");
    }
    let ran = run(dir.path(), &["pack", "--in-place", "s"]);
    assert!(ran.code == Some(0) && ran.stderr.contains("hard links"), "{ran:?}");
    assert_eq!(names(&s), ["a.safetensors", "b.safetensors", "sub"]);
    let ran = run(dir.path(), &["pack", "--in-place", "s/a.safetensors"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("hard links"), "{ran:?}");

    fs::remove_file(dir.path().join("outside")).expect("rm");
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    let archives = ["a.safetensors.bsz", "b.safetensors.bsz", "sub/0a1b.bsz"];
    let inodes = archives.map(|name| s.join(name).metadata().expect("an archive").ino());
    assert!(inodes.iter().all(|ino| *ino == inodes[0]), "{inodes:?}");
    run(dir.path(), &["unpack", "s", "-o", "back"]).ok();
    let restored =
        ["a.safetensors", "b.safetensors", "sub/0a1b"].map(|n| dir.path().join("back").join(n));
    for path in &restored {
        assert_eq!(fs::read(path).expect("restored"), original, "{path:?}");
        assert_eq!(path.metadata().expect("stat").nlink(), 3);
    }
}

#[test]
fn a_copy_keeps_hard_links_together() {
    let dir = models(&["a.safetensors"]);
    let s = dir.path().join("s");
    fs::write(s.join("c.json"), "{}").expect("written");
    fs::hard_link(s.join("a.safetensors"), s.join("b.safetensors")).expect("link");
    fs::hard_link(s.join("c.json"), s.join("d.json")).expect("link");
    run(dir.path(), &["pack", "s", "-o", "out"]).ok();
    let ino = |name: &str| dir.path().join("out").join(name).metadata().expect("there").ino();
    assert_eq!((ino("a.bsz"), ino("c.json")), (ino("b.bsz"), ino("d.json")));
}

#[test]
fn an_existing_file_is_never_taken_for_our_temporary_file() {
    let dir = models(&["m.safetensors"]);
    let s = dir.path().join("s");
    let planted = s.join(".m.bsz.bsz-partial");
    let mut held = File::create(&planted).expect("planted");
    run(dir.path(), &["pack", "--in-place", "s/m.safetensors"]).ok();
    held.rewind().expect("seek");
    held.write_all(&[0xee; 4096]).expect("written");
    assert_ne!(
        s.join("m.bsz").metadata().expect("the archive").ino(),
        held.metadata().expect("stat").ino()
    );
    run(dir.path(), &["verify", "s/m.bsz"]).ok();
    // It is reported, since it may be left over from a run that was killed.
    let ran = run(dir.path(), &["pack", "--in-place", "s"]);
    assert!(
        ran.code == Some(0) && ran.stderr.contains(".m.bsz.bsz-partial: is being written"),
        "{ran:?}"
    );
    assert!(planted.exists());
}

#[test]
fn an_original_that_cannot_be_removed_does_not_stop_the_others() {
    let dir = models(&["a.safetensors", "z.safetensors"]);
    let immutable = |flag: &str| {
        let chattr =
            Command::new("chattr").arg(flag).arg(dir.path().join("s/a.safetensors")).output();
        chattr.is_ok_and(|done| done.status.success())
    };
    if !immutable("+i") {
        eprintln!("skipped: files cannot be made immutable here");
        return;
    }
    let ran = run(dir.path(), &["pack", "--in-place", "s"]);
    assert!(immutable("-i"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("a.safetensors: ") && ran.stderr.contains("pack: 1 of 2 failed"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("its archive stays beside it"), "{ran:?}");
    assert_eq!(names(&dir.path().join("s")), ["a.bsz", "a.safetensors", "z.bsz"]);
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    assert_eq!(names(&dir.path().join("s")), ["a.bsz", "z.bsz"]);
}

#[test]
fn symlinks_to_directories_are_not_followed() {
    let dir = models(&["m.safetensors"]);
    fs::create_dir(dir.path().join("elsewhere")).expect("mkdir");
    write_model(&dir.path().join("elsewhere/e.safetensors"), 5, SOME);
    std::os::unix::fs::symlink("../elsewhere", dir.path().join("s/sub")).expect("a link");
    let ran = run(dir.path(), &["pack", "--in-place", "s"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(names(&dir.path().join("elsewhere")), ["e.safetensors"]);
    // Nor does anything write through a symlink in the output.
    let other = models(&["sub-model.safetensors"]);
    fs::create_dir(other.path().join("s/sub")).expect("mkdir");
    write_model(&other.path().join("s/sub/evil.safetensors"), 6, SOME);
    fs::create_dir_all(other.path().join("target")).expect("mkdir");
    for (verb, source) in [("pack", "s"), ("unpack", "packed")] {
        let out = other.path().join(format!("{verb}-out"));
        fs::create_dir(&out).expect("mkdir");
        std::os::unix::fs::symlink("../target", out.join("sub")).expect("a link");
        let ran = run(other.path(), &[verb, source, "-o", &format!("{verb}-out")]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(names(&other.path().join("target")).is_empty(), "{verb}");
        if verb == "pack" {
            run(other.path(), &["pack", "s", "-o", "packed"]).ok();
        }
    }
}

#[test]
fn force_replaces_only_regular_files() {
    let dir = models(&["m.safetensors"]);
    run(dir.path(), &["pack", "s/m.safetensors"]).ok();
    let pipe = dir.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()));
    fs::write(dir.path().join("target"), "x").expect("written");
    std::os::unix::fs::symlink("target", dir.path().join("link")).expect("a link");
    for node in ["pipe", "link"] {
        run(dir.path(), &["unpack", "--force", "s/m.bsz", "-o", node])
            .fails_about(node, "not a regular file");
    }
    assert_eq!(fs::read(dir.path().join("target")).expect("read"), b"x");
    assert!(pipe.symlink_metadata().expect("stat").permissions().mode() & 0o170_000 == 0o010_000);
}

#[test]
fn one_failure_does_not_stop_the_other_files() {
    let dir = models(&["a.safetensors", "z.safetensors"]);
    let s = dir.path().join("s");
    fs::create_dir_all(s.join("c")).expect("mkdir");
    write_model(&s.join("c/deep.safetensors"), 4, SOME);
    // A file cannot be created where a directory is.
    fs::create_dir_all(dir.path().join("out/a.bsz/x")).expect("mkdir");
    fs::create_dir_all(dir.path().join("out/a.safetensors.bsz")).expect("mkdir");
    fs::create_dir_all(dir.path().join("out/a.safetensors")).expect("mkdir");
    fs::write(dir.path().join("out/c"), "a file").expect("written");
    let ran = run(dir.path(), &["pack", "s", "-o", "out"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("bsz: out/c: ")
            && ran.stderr.trim_end().ends_with("pack: 2 of 3 failed"),
        "{ran:?}"
    );
    assert!(dir.path().join("out/z.bsz").exists());
}

#[test]
fn an_existing_archive_with_other_attributes_is_replaced() {
    let dir = models(&["a.safetensors"]);
    let path = dir.path().join("s/a.safetensors");
    run(dir.path(), &["pack", "s/a.safetensors"]).ok();
    let archive = dir.path().join("s/a.bsz");
    let first = archive.metadata().expect("stat").ino();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    // A process that has the archive open for writing could still change it.
    let mut held = OpenOptions::new().write(true).open(&archive).expect("opens");
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    held.write_all(&[0xee; 4096]).expect("written");
    let now = archive.metadata().expect("stat");
    assert_ne!(now.ino(), first);
    assert_eq!(now.mode() & 0o777, 0o600);
    run(dir.path(), &["verify", "s"]).ok();
}

#[test]
fn an_older_archive_does_not_shadow_a_file_with_hard_links() {
    let dir = models(&["m.safetensors"]);
    let s = dir.path().join("s");
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    let newer = write_model(&s.join("m.safetensors"), 9, SOME);
    fs::hard_link(s.join("m.safetensors"), s.join("n.safetensors")).expect("link");
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    run(dir.path(), &["unpack", "s", "-o", "back"]).ok();
    assert_eq!(names(&dir.path().join("back")), ["m.safetensors", "n.safetensors"]);
    for name in names(&dir.path().join("back")) {
        assert_eq!(fs::read(dir.path().join("back").join(&name)).expect("back"), newer, "{name}");
    }
}

#[test]
fn a_file_that_would_shadow_an_archive_is_an_error() {
    let dir = models(&["m.safetensors"]);
    fs::create_dir(dir.path().join("out")).expect("mkdir");
    fs::write(dir.path().join("out/m.safetensors"), "the beginning of it").expect("written");
    for args in [["pack", "s", "-o", "out"], ["pack", "s/m.safetensors", "-o", "out"]] {
        let ran = run(dir.path(), &args);
        assert!(ran.code == Some(1) && ran.stderr.contains("would show it instead"), "{ran:?}");
        assert_eq!(names(&dir.path().join("out")), ["m.safetensors"]);
    }
    run(dir.path(), &["pack", "s", "-o", "out", "--force"]).ok();
    assert_eq!(names(&dir.path().join("out")), ["m.bsz"]);
}

#[test]
fn no_file_is_packed_or_restored_over_itself() {
    let dir = models(&["m.bsz"]);
    let original = fs::read(dir.path().join("s/m.bsz")).expect("the model");
    run(dir.path(), &["pack", "s/m.bsz", "-o", "s/m.bsz", "--force"])
        .fails_about("s/m.bsz", "is the very file");
    assert_eq!(fs::read(dir.path().join("s/m.bsz")).expect("the model"), original);
    run(dir.path(), &["pack", "s/m.bsz", "-o", "x.bsz"]).ok();
    run(dir.path(), &["unpack", "x.bsz", "-o", "x.bsz", "--force"])
        .fails_about("x.bsz", "is the archive itself");
    run(dir.path(), &["verify", "x.bsz"]).ok();
}
