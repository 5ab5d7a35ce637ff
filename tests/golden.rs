//! Archives of every released version stay readable: `tests/data` is never rewritten.
//!
//! Until the first release the layout may change; `BSZ_WRITE_GOLDEN=1 cargo test --test golden`
//! writes the files anew.

mod common;

use bszfs::codec;
use common::samples::{Fill, matrices, pack_bytes, tensor, unpack_bytes};
use sha2::{Digest, Sha256};
use std::path::Path;

/// The originals, made from seeds. Their hashes are asserted, so that a change of the generator is
/// noticed. Together they cover the whole format, which `tests/second_reader.rs` checks.
fn originals() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let file = |tensors: &[(&'static str, usize, Fill)], seed| {
        let names = ["a", "b", "c", "d", "e"].into_iter().zip(seed..);
        let tensors = names.zip(tensors).map(|((name, seed), &(dtype, bytes, fill))| {
            (name, dtype, fill.row(), tensor(dtype, bytes, fill, seed))
        });
        matrices(&tensors.collect::<Vec<_>>())
    };
    use Fill::{Columns, Frozen, Narrow, Noise, Rows, Scaled, Sparse, Special, Weights, Widened};
    vec![
        (
            "bf16",
            file(
                &[
                    ("BF16", 16_000, Weights),
                    ("BF16", 9000, Special),
                    ("BF16", 68_000, Scaled),
                    ("BF16", 40_000, Columns),
                ],
                10,
            ),
            BF16,
        ),
        (
            "f16",
            file(&[("F16", 16_000, Weights), ("F16", 9000, Sparse), ("F16", 24_000, Frozen)], 20),
            F16,
        ),
        (
            "f32",
            file(
                &[
                    ("F32", 20_000, Weights),
                    ("F32", 20_000, Widened),
                    ("F32", 30_000, Frozen),
                    ("F32", 9000, Narrow),
                ],
                30,
            ),
            F32,
        ),
        (
            "f64",
            file(
                &[("F64", 16_000, Weights), ("C64", 12_000, Weights), ("F64", 16_000, Frozen)],
                40,
            ),
            F64,
        ),
        (
            "f8",
            file(
                &[
                    ("F8_E4M3", 70_000, Columns),
                    ("F8_E5M2", 12_000, Weights),
                    ("U8", 10_000, Special),
                ],
                50,
            ),
            F8,
        ),
        (
            "other",
            file(
                &[
                    ("I64", 9000, Weights),
                    ("BOOL", 1_100_000, Rows),
                    ("I8", 5000, Noise),
                    ("F4", 9000, Sparse),
                ],
                60,
            ),
            OTHER,
        ),
        ("empty", Vec::new(), EMPTY),
    ]
}

const BF16: &str = "77aeb83564f66cb7534b382e5539b7ccc06e7ec5cc28898f1959c72fd916bfe2";
const F16: &str = "4375a9c228c406b13352537e31fe7a51b58e6c44263faa37ffdda0e696c0f422";
const F32: &str = "95aa595f290af9b55139a51b25d2cfcbcee36421ad0e25452f6874ab7b4eefed";
const F64: &str = "25abbebfa73f4c54f035cc00f490400763c8354e0aaae8bca9155c3e8decc21e";
const F8: &str = "9f87569b68f1190393aa1d08cb13a572e782c74f460687d25e5afbb9184222ea";
const OTHER: &str = "6a4ae15de895ba6e6f7b2ce4ee23c6759671ca28c0dc7746536a9a9da5cc75cd";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn archives_of_every_version_are_readable() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1");
    let dir = tempfile::tempdir().expect("a directory");
    let write = std::env::var_os("BSZ_WRITE_GOLDEN").is_some();
    for (name, bytes, hash) in originals() {
        let found: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        let path = data.join(format!("{name}.bsz"));
        if write {
            std::fs::create_dir_all(&data).expect("a directory");
            std::fs::write(&path, pack_bytes(dir.path(), "x.safetensors", &bytes, 64 << 10))
                .expect("written");
            println!("const {}: &str = \"{found}\";", name.to_uppercase());
            continue;
        }
        assert_eq!(found, hash, "the generator of {name} has changed");
        let archive = std::fs::read(&path).expect("a golden archive");
        for decoder in codec::decoders() {
            let back = unpack_bytes(dir.path(), &archive, &*decoder).expect(name);
            assert!(back == bytes, "{name} through {}", decoder.name());
        }
    }
}
