//! The headers of containers of weights: whatever they say, their extents cover the file.
#![no_main]

use bszfs::format::{Container, Extent, container, onnx_data};
use bszfs_fuzz::containers::zip;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&what, rest)) = data.split_first() else { return };
    match what % 3 {
        0 => file(rest, rest.len() as u64),
        // A pickle, beside a storage that it may describe.
        1 => {
            let storage = ("a/data/0".to_owned(), vec![0; 4096]);
            let archive = zip(&[("a/data.pkl".to_owned(), rest.to_vec()), storage]);
            file(&archive, archive.len() as u64);
        }
        // A header whose tensors are in a file that goes on.
        _ => file(rest, rest.len() as u64 + (u64::from(what) << 20)),
    }
});

/// A file of `len` bytes that starts with `start`, with zeros behind it.
fn file(start: &[u8], len: u64) {
    let read = |at: u64, out: &mut [u8]| {
        assert!(at + out.len() as u64 <= len, "reads behind the end");
        out.fill(0);
        let there = start.get(at as usize..).unwrap_or_default();
        let n = there.len().min(out.len());
        out[..n].copy_from_slice(&there[..n]);
        Ok(())
    };
    match container(&read, len).expect("no read fails") {
        Container::Known(_, extents) => assert_cover(&extents, len),
        Container::Incomplete(_, of) => assert!(of > len),
        Container::Unknown | Container::Malformed(_) => {}
    }
    if let Some(extents) = onnx_data(&read, len, "x", 1 << 30).expect("no read fails") {
        assert_cover(&extents, 1 << 30);
    }
}

fn assert_cover(extents: &[Extent], len: u64) {
    let mut at = 0;
    for e in extents {
        assert!(e.start == at && e.len > 0);
        at += e.len;
    }
    assert_eq!(at, len);
}
