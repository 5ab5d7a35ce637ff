//! Archives at URLs that are stored as differences from others beside them: exact bytes, no decode
//! thread that waits for the network, and errors while a base is away.
#![allow(clippy::unwrap_used)]

mod common;

use common::dependants::{self, Piece, pieces};
use common::mounts::mount_test;
use common::objects::{all_files, autoindex};
use common::program::run;
use common::samples::{Fill, pack_bytes, safetensors, tensor};
use common::web::Server;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A directory `p` with `base.bsz` and `tuned.bsz`; their originals.
fn family(dir: &Path) -> [Vec<u8>; 2] {
    fs::create_dir(dir.join("p")).unwrap();
    let base = safetensors(&[("w", "BF16", tensor("BF16", 1_000_000, Fill::Weights, 3))]);
    let packed = pack_bytes(dir, "base.safetensors", &base, 64 << 10);
    fs::write(dir.join("p/base.bsz"), packed).unwrap();
    let bases = [("base.safetensors", &base[..])];
    let mut all = pieces(&base);
    all.extend((0..12).map(|i| Piece::Tuned { base: 0, at: 8 + i * 65_536, len: 65_536 }));
    let tuned = dependants::write(&dir.join("p/tuned.bsz"), &bases, &all);
    [base, tuned]
}

fn serve(dir: &Path) -> Server {
    let server = Server::start();
    autoindex(&server, &all_files(&dir.join("p")));
    server
}

#[test]
fn commands_find_the_base_beside_an_archive_at_a_url() {
    let dir = TempDir::new().unwrap();
    let [_, tuned] = family(dir.path());
    let server = serve(dir.path());
    let (at, url) = (dir.path(), server.url("/d/"));
    run(at, &["verify", &url]).ok();
    run(at, &["unpack", &url, "-o", "out"]).ok();
    assert!(fs::read(at.join("out/tuned.safetensors")).unwrap() == tuned);
    let info = run(at, &["info", "--json", &url]).ok().json();
    let described = info["archives"].as_array().unwrap().iter().find(|a| a["version"] == 2);
    let path = described.unwrap()["bases"][0]["path"].as_str().unwrap().to_owned();
    assert!(path.ends_with("/d/base.bsz"), "{path}");
    // It may be in a directory of this machine, too.
    fs::create_dir(at.join("local")).unwrap();
    fs::rename(at.join("p/base.bsz"), at.join("local/other.bsz")).unwrap();
    let server = serve(at);
    let url = server.url("/d/");
    let ran = run(at, &["verify", &url]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("its base base.safetensors"), "{}", ran.stderr);
    assert!(ran.stderr.contains("is not at"), "{}", ran.stderr);
    run(at, &["verify", "--bases", "local", &url]).ok();
}

#[test]
fn a_mounted_url_reads_dependants_and_fails_while_their_base_is_away() {
    mount_test(|rig| {
        let dir = TempDir::new().unwrap();
        let [base, tuned] = family(dir.path());
        let server = Arc::new(serve(dir.path()));
        let url: PathBuf = server.url("/d/").into();
        // One thread decodes: it must not wait for what another one is to fetch.
        let mount = rig.mount(&url, "m", &["--threads", "1", "--cache-size", "8MiB"]);
        assert!(fs::read(mount.path("tuned.safetensors")).unwrap() == tuned);
        assert!(fs::read(mount.path("base.safetensors")).unwrap() == base);
        drop(mount);
        fs::remove_file(dir.path().join("p/base.bsz")).unwrap();
        server.remove("/d/base.bsz");
        autoindex(&server, &all_files(&dir.path().join("p")));
        let mount = rig.mount(&url, "n", &[]);
        let e = fs::read(mount.path("tuned.safetensors")).expect_err("the base is away");
        assert_eq!(e.raw_os_error(), Some(libc::EIO));
        assert!(mount.log().contains("its base base.safetensors"), "{}", mount.log());
        assert_eq!(mount.status()["bases"][0]["name"], "base.safetensors");
    });
}
