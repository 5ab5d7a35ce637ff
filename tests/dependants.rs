//! Archives that are stored as differences from others: exact bytes, or an error that names the
//! base, however it was lost.
#![allow(clippy::unwrap_used)]

mod common;

use bszfs::ErrorKind;
use bszfs::codec;
use bszfs::read::{self, Archive, LocalBases, Part, ThreadLimit};
use common::dependants::{self, Piece, pieces};
use common::program::run;
use common::samples::{Fill, pack_bytes, safetensors, tensor};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A base, packed as `base.bsz`, and a dependant, `tuned.bsz`.
struct Family {
    dir: TempDir,
    base: Vec<u8>,
    tuned: Vec<u8>,
}

impl Family {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = original(1);
        let packed = pack_bytes(dir.path(), "base.safetensors", &base, 64 << 10);
        fs::remove_file(dir.path().join("base.safetensors")).unwrap();
        fs::remove_file(dir.path().join("out.bsz")).unwrap();
        fs::write(dir.path().join("base.bsz"), packed).unwrap();
        let path = dir.path().join("tuned.bsz");
        let tuned = dependants::write(&path, &[("base.safetensors", &base)], &pieces(&base));
        Self { dir, base, tuned }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// All bytes of the dependant, opened anew.
    fn read(&self) -> bszfs::Result<Vec<u8>> {
        read_all(&Archive::open(&self.path("tuned.bsz"))?)
    }

    fn is_exact(&self) {
        assert!(self.read().expect("reads") == self.tuned);
    }

    /// Reading fails with this reason.
    fn fails(&self, why: &str) -> bszfs::Error {
        let e = self.read().expect_err("fails");
        assert!(e.to_string().contains(why), "{e}");
        e
    }
}

fn original(seed: u64) -> Vec<u8> {
    let weights = tensor("BF16", 500_000, Fill::Weights, seed);
    safetensors(&[("w", "BF16", weights)])
}

fn read_all(archive: &Archive) -> bszfs::Result<Vec<u8>> {
    let mut out = vec![0; archive.footer().original_len as usize];
    let n = archive.read_at(0, &mut out, &*codec::fastest())?;
    assert_eq!(n, out.len());
    Ok(out)
}

#[test]
fn every_way_to_read_a_dependant_gives_its_bytes() {
    let family = Family::new();
    family.is_exact();
    let archive = Archive::open(&family.path("tuned.bsz")).unwrap();
    for decoder in codec::decoders() {
        read::verify(&archive, &*decoder, &|_| {}).expect("sound");
        read::verify_chunks(&archive, &*decoder, &|_| {}).expect("sound");
        for id in 0..archive.index().len() {
            let chunk = archive.stored_chunk(id).expect("read");
            let mut out = vec![9; chunk.decoded_len()];
            chunk.decode(&*decoder, &mut out).expect("decodes");
            let range = archive.index().chunk(id).unwrap().original;
            assert!(out == family.tuned[range.start as usize..range.end as usize], "chunk {id}");
        }
    }
    let len = family.tuned.len();
    for (at, n) in [(0, 1), (65_535, 2), (131_071, 70_000), (150_001, 99_999), (len - 1, 1)] {
        let mut out = vec![1; n];
        archive.read_at(at as u64, &mut out, &*codec::reference()).expect("reads");
        assert!(out == family.tuned[at..at + n], "{n} bytes at {at}");
    }
    let mut many = vec![0; len];
    let parts = many.chunks_mut(30_011).enumerate();
    let parts =
        parts.map(|(i, target)| Part { offset: (i * 30_011) as u64, target }).collect::<Vec<_>>();
    let (decoder, limit) = (codec::fastest(), ThreadLimit::new(4));
    read::read_many(&archive, parts, &*decoder, &limit, &mut || Ok(())).expect("reads");
    assert!(many == family.tuned);
}

#[test]
fn a_base_is_found_under_any_name_that_it_may_have() {
    let family = Family::new();
    let base = dependants::base("base.safetensors", &family.base);
    let mut name = "base.bsz".to_owned();
    for next in ["base.safetensors.bsz", &base.pin_name(), "other.bsz"] {
        family.rename(&name, next);
        family.is_exact();
        name = next.to_owned();
    }
    // As a plain file.
    fs::remove_file(family.path(&name)).unwrap();
    fs::write(family.path("base.safetensors"), &family.base).unwrap();
    family.is_exact();
    // Behind a link, as in the cache of a hub.
    fs::create_dir(family.path("blobs")).unwrap();
    family.rename("base.safetensors", "blobs/1234");
    symlink("blobs/1234", family.path("base.safetensors")).unwrap();
    family.is_exact();
    // In the directory of the file that a link to the archive leads to.
    let view = family.path("view");
    fs::create_dir(&view).unwrap();
    symlink("../tuned.bsz", view.join("model.bsz")).unwrap();
    let archive = Archive::open(&view.join("model.bsz")).unwrap();
    assert!(read_all(&archive).expect("reads") == family.tuned);
}

#[test]
fn a_lost_base_is_an_error_that_names_it_and_its_return_is_noticed() {
    let family = Family::new();
    let archive = Archive::open(&family.path("tuned.bsz")).unwrap();
    family.rename("base.bsz", "gone");
    let e = read_all(&archive).expect_err("the base is gone");
    assert_eq!(e.kind(), ErrorKind::Io);
    let hex = &dependants::base("base.safetensors", &family.base).hex()[..12];
    for part in ["its base base.safetensors", hex, "is not in", "--bases", "BSZ_BASES"] {
        assert!(e.to_string().contains(part), "{part}: {e}");
    }
    // What needs no base is still readable.
    let mut own = [0; 1000];
    archive.read_at(131_072, &mut own, &*codec::reference()).expect("reads");
    assert!(own == family.tuned[131_072..132_072]);
    family.rename("gone", "base.bsz");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(read_all(&archive).expect("it is back") == family.tuned);
    // An open base stays readable.
    fs::remove_file(family.path("base.bsz")).unwrap();
    assert!(read_all(&archive).expect("still open") == family.tuned);
}

#[test]
fn another_file_in_the_place_of_a_base_never_gives_a_wrong_byte() {
    let family = Family::new();
    let other = original(2);
    assert_eq!(other.len(), family.base.len());
    let dir = tempfile::tempdir().unwrap();
    let packed = pack_bytes(dir.path(), "x.safetensors", &other, 64 << 10);
    let kept = fs::read(family.path("base.bsz")).unwrap();
    // Another archive of its name.
    fs::write(family.path("base.bsz"), &packed).unwrap();
    family.fails("is the archive of another file");
    // A plain file of its name and length.
    fs::remove_file(family.path("base.bsz")).unwrap();
    fs::write(family.path("base.safetensors"), &other).unwrap();
    let e = family.fails("which is no archive, and may be another file");
    assert_eq!(e.kind(), ErrorKind::Corruption);
    // The right one is found beside it.
    fs::write(family.path("elsewhere.bsz"), &kept).unwrap();
    family.is_exact();
    fs::remove_file(family.path("elsewhere.bsz")).unwrap();
    // Of another length.
    fs::write(family.path("base.safetensors"), &family.base[1..]).unwrap();
    family.fails("bytes instead of");
    fs::remove_file(family.path("base.safetensors")).unwrap();
    // A footer that lies.
    fs::write(family.path("base.bsz"), lying(&packed, &kept)).unwrap();
    family.fails("");
    // Cut short, and damaged.
    fs::write(family.path("base.bsz"), &kept[..kept.len() - 1]).unwrap();
    family.fails("is not in");
    let mut damaged = kept;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(family.path("base.bsz"), &damaged).unwrap();
    let e = family.fails("its base base.safetensors");
    assert_eq!(e.kind(), ErrorKind::Corruption);
}

/// The archive `packed`, whose footer says that its original is that of `kept`.
fn lying(packed: &[u8], kept: &[u8]) -> Vec<u8> {
    let footer = |bytes: &[u8]| {
        let end = bytes.last_chunk::<128>().unwrap();
        bszfs::format::Footer::from_bytes(end, bytes.len() as u64).unwrap()
    };
    let lie = bszfs::format::Footer { sha256: footer(kept).sha256, ..footer(packed) };
    [&packed[..packed.len() - 128], &lie.to_bytes()].concat()
}

#[test]
fn a_base_that_has_bases_itself_is_refused_and_so_is_a_circle() {
    let family = Family::new();
    let path = family.path("twice.bsz");
    let bases = [("tuned.safetensors", &family.tuned[..])];
    dependants::write(&path, &bases, &[Piece::Same { base: 0, at: 5, len: 100_000 }]);
    let refused = |path: &Path| read_all(&Archive::open(path).unwrap()).unwrap_err().to_string();
    let e = refused(&path);
    assert!(e.contains("is itself stored as differences"), "{e}");
    // The plain form of the same file is as good as any.
    fs::write(family.path("tuned.safetensors"), &family.tuned).unwrap();
    assert!(read_all(&Archive::open(&path).unwrap()).unwrap() == family.tuned[5..100_005]);
    fs::remove_file(family.path("tuned.safetensors")).unwrap();
    // An archive whose base is itself.
    let circle = family.path("circle.bsz");
    let bytes = vec![7; 4096];
    let bases = [("circle.safetensors", &bytes[..])];
    let own = dependants::write(&circle, &bases, &[Piece::Same { base: 0, at: 0, len: 4096 }]);
    assert_eq!(own, bytes);
    let e = refused(&circle);
    assert!(e.contains("is itself stored as differences"), "{e}");
}

#[test]
fn a_base_that_may_not_be_read_is_named() {
    if common::users::is_root() {
        return;
    }
    let family = Family::new();
    fs::set_permissions(family.path("base.bsz"), fs::Permissions::from_mode(0o000)).unwrap();
    family.fails("Permission denied");
}

#[test]
fn chunks_that_reach_beyond_their_base_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let base = vec![3; 10_000];
    fs::write(dir.path().join("b"), &base).unwrap();
    let path = dir.path().join("m.bsz");
    // The table says that the base is shorter than it was.
    let pieces = [Piece::Raw(vec![1; 5000]), Piece::Same { base: 0, at: 0, len: 10_000 }];
    dependants::write(&path, &[("b", &base)], &pieces);
    assert!(read_all(&Archive::open(&path).unwrap()).is_ok());
    let mut bytes = fs::read(&path).unwrap();
    let len_at = bytes.len() - 128 - 2 - 8;
    bytes[len_at..len_at + 8].copy_from_slice(&9_999u64.to_le_bytes());
    let footer =
        bszfs::format::Footer::from_bytes(bytes.last_chunk().unwrap(), bytes.len() as u64).unwrap();
    let index = footer.index_offset as usize..bytes.len() - 128;
    let sum = codec::checksum(&bytes[index]);
    let footer = bszfs::format::Footer { index_checksum: sum, ..footer };
    let end = bytes.len() - 128;
    bytes[end..].copy_from_slice(&footer.to_bytes());
    fs::write(&path, bytes).unwrap();
    let e = read_all(&Archive::open(&path).unwrap()).expect_err("beyond the base");
    assert_eq!(e.kind(), ErrorKind::Corruption);
    assert!(e.to_string().contains("reaches beyond its base"), "{e}");
}

#[test]
fn an_archive_without_a_place_says_so() {
    let family = Family::new();
    let file = fs::File::open(family.path("tuned.bsz")).unwrap();
    let archive = Archive::from_file(file).unwrap();
    let e = read_all(&archive).expect_err("nobody knows where it is").to_string();
    assert!(e.contains("was not looked for"), "{e}");
    let finder = LocalBases::beside(&family.path("tuned.bsz"));
    let archive = archive.with_bases(Arc::new(finder));
    assert!(read_all(&archive).expect("reads") == family.tuned);
}

#[test]
fn commands_find_bases_in_named_directories_and_say_what_is_missing() {
    let family = Family::new();
    let dir = family.dir.path();
    run(dir, &["verify", "tuned.bsz"]).ok();
    let info = run(dir, &["info", "--json", "tuned.bsz"]).ok().json();
    let described = &info["bases"][0];
    assert_eq!(described["name"], "base.safetensors");
    assert!(described["path"].as_str().unwrap().ends_with("/base.bsz"), "{described}");
    assert_eq!(info["version"], 2);
    assert_eq!(described["chunks"], 12);
    let (bytes, stored) = (&described["bytes"], &described["stored"]);
    assert!(stored.as_u64().unwrap() < bytes.as_u64().unwrap() / 4, "{described}");
    fs::create_dir(dir.join("more")).unwrap();
    family.rename("base.bsz", "more/base.bsz");
    for command in [&["verify", "tuned.bsz"][..], &["unpack", "tuned.bsz", "-o", "out"]] {
        let failed = run(dir, command).fails_about("tuned.bsz", "is not in");
        assert!(failed.stderr.contains("its base base.safetensors"), "{}", failed.stderr);
    }
    assert!(!dir.join("out").exists());
    let info = run(dir, &["info", "tuned.bsz"]).ok();
    assert!(info.stdout.contains("MISSING"), "{}", info.stdout);
    run(dir, &["verify", "--bases", "more", "tuned.bsz"]).ok();
    let info = run(dir, &["info", "--bases", "more", "tuned.bsz"]).ok();
    assert!(info.stdout.contains("found at"), "{}", info.stdout);
    run(dir, &["unpack", "--bases", "more", "tuned.bsz", "-o", "out"]).ok();
    assert!(fs::read(dir.join("out")).unwrap() == family.tuned);
    family.rename("more/base.bsz", "base.bsz");
    run(dir, &["bench", "--seconds", "0.01", "--threads", "1", "tuned.bsz"]).ok();
}

#[test]
fn a_pin_is_neither_listed_nor_unpacked() {
    let family = Family::new();
    let dir = family.dir.path();
    let pin = dependants::base("base.safetensors", &family.base).pin_name();
    family.rename("base.bsz", &pin);
    let verified = run(dir, &["verify", "--json", "."]).ok().json();
    assert_eq!(verified["files"].as_array().unwrap().len(), 1);
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("o");
    run(dir, &["unpack".as_ref(), ".".as_ref(), "-o".as_ref(), to.as_os_str()]).ok();
    assert_eq!(common::program::names(&to), ["tuned.safetensors"]);
}
