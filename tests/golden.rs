//! Archives of every released version stay readable: `tests/data` is never rewritten.
//!
//! Until the first release the layout may change, and `BSZ_WRITE_GOLDEN=1 cargo test --test golden` writes the files
//! anew.

use bszfs::codec;
use samples::{Fill, pack_bytes, safetensors, tensor, unpack_bytes};
use sha2::{Digest, Sha256};
use std::path::Path;

#[path = "common/samples.rs"]
mod samples;

/// The originals: made from seeds, and held to their hashes so that a change of the generator is noticed.
fn originals() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let t = |dtype: &'static str, n, fill, seed| (dtype, tensor(dtype, n, fill, seed));
    let file = |tensors: &[(&'static str, Vec<u8>)]| {
        let names = ["a", "b", "c", "d", "e"];
        safetensors(
            &tensors.iter().zip(names).map(|((d, data), n)| (n, *d, data.clone())).collect::<Vec<_>>(),
        )
    };
    vec![
        (
            "bf16",
            file(&[
                t("BF16", 40_000, Fill::Weights, 1),
                t("BF16", 9000, Fill::Special, 2),
                t("BF16", 80_000, Fill::Scaled, 13),
            ]),
            BF16,
        ),
        ("f16", file(&[t("F16", 40_000, Fill::Weights, 3), t("F16", 9000, Fill::Sparse, 4)]), F16),
        ("f32", file(&[t("F32", 40_000, Fill::Weights, 5), t("F32", 40_000, Fill::Widened, 6)]), F32),
        ("f64", file(&[t("F64", 40_000, Fill::Weights, 7), t("C64", 16_000, Fill::Weights, 8)]), F64),
        ("f8", file(&[t("F8_E4M3", 30_000, Fill::Weights, 9), t("I8", 10_000, Fill::Noise, 10)]), F8),
        ("other", file(&[t("I64", 9000, Fill::Weights, 11), t("BOOL", 20_000, Fill::Rows, 12)]), OTHER),
        ("empty", Vec::new(), EMPTY),
    ]
}

const BF16: &str = "7fb70b38e07f0f2294779ef5fa543ceba33b92eb4f9845eacbaadc81dfe74d54";
const F16: &str = "451c6053096ff39e0a4bb4a986b20a9eb90c114a30e126d4d5e4270a787c7ae0";
const F32: &str = "2cc157641b849fb0ffa8e53d3d1a2836ef4d4429218f0ccd707157e7f4dd5092";
const F64: &str = "9f942633cfeb65546e9cb58a9e4af31ea79b5d8113a250dca74a2e3dfff2117b";
const F8: &str = "9223dd169d5b838f8d91c6a95a7fbaa630e91b1c1b080df7fb7aad49d37c6db9";
const OTHER: &str = "fd44bccf43c10f45d9dc58be9edc93f0b63a5dcc39a78d4510ad033bf5df3292";
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
