//! The metadata of an archive or a safetensors file, parsed from arbitrary bytes: an error, or a
//! result that keeps its promises.
#![no_main]

use bszfs::codec::EntropyModel;
use bszfs::format::{Footer, Header, Index, header_len};
use bszfs::sha256::state_count;
use bszfs_fuzz::{FOOTER, Tested, correct_footer, seal_footer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&what, rest)) = data.split_first() else { return };
    let _: Tested = match what % 4 {
        0 => footer(rest),
        1 => index(rest),
        2 => model(rest),
        _ => header(rest),
    };
});

/// `file_len(8) footer(128)`
fn footer(data: &[u8]) -> Tested {
    let (len, rest) = data.split_first_chunk()?;
    let mut bytes: [u8; FOOTER] = *rest.first_chunk()?;
    let len = u64::from_le_bytes(*len);
    let _ = Footer::from_bytes(&bytes, len);
    seal_footer(&mut bytes);
    let footer = Footer::from_bytes(&bytes, len).ok()?;
    assert_eq!(footer.to_bytes(), bytes);
    Some(())
}

/// `index footer(128)`
fn index(data: &[u8]) -> Tested {
    let (index, footer) = data.split_last_chunk::<FOOTER>()?;
    let (mut bytes, before) = (*footer, 16 + index.len());
    bytes[64..72].copy_from_slice(&16u64.to_le_bytes());
    correct_footer(&mut bytes, before);
    // Chunks may be anywhere before the index, so let it start far behind.
    let start = 1u64 << 40;
    bytes[64..72].copy_from_slice(&start.to_le_bytes());
    bytes[80..88].copy_from_slice(&bszfs::codec::checksum(index).to_le_bytes());
    seal_footer(&mut bytes);
    let footer = Footer::from_bytes(&bytes, start + (index.len() + FOOTER) as u64).ok()?;
    let index = Index::new(index.to_vec(), &footer).ok()?;
    assert_eq!(index.len(), footer.chunk_count as usize);
    let mut at = 0;
    for id in 0..index.len() {
        let c = index.chunk(id).expect("it was checked");
        assert!(c.original.start == at && !c.is_empty() && c.len() <= footer.max_chunk as usize);
        assert!(c.stored_at + u64::from(c.stored_len) <= footer.index_offset);
        let find = |at| index.find(at).expect("it was checked");
        assert_eq!([find(c.original.start), find(c.original.end - 1)], [id, id]);
        at = c.original.end;
    }
    assert_eq!(at, footer.original_len);
    assert_eq!(index.find(at).expect("it was checked"), index.len());
    (0..footer.model_count).for_each(|id| drop(index.model(id)));
    assert!((0..state_count(at)).all(|i| index.sha256_state(i as usize).is_ok()));
    Some(())
}

/// The wire format of a model.
fn model(data: &[u8]) -> Tested {
    let model = EntropyModel::read_from(data).ok()?;
    let mut wire = Vec::new();
    model.write_to(&mut wire);
    assert!(wire.len() <= data.len());
    assert!(EntropyModel::read_from(&wire).expect("a model is what it was written from") == model);
    Some(())
}

/// `file_len(8) prefix(8) json`: the file length is either literal, or the one that completes the
/// file with a few bytes of data.
fn header(data: &[u8]) -> Tested {
    let (len, rest) = data.split_first_chunk()?;
    let (prefix, json) = rest.split_first_chunk()?;
    let len = u64::from_le_bytes(*len);
    if let Some(n) = header_len(*prefix, len) {
        assert!(n + 8 <= len);
    }
    for len in [len, 8 + json.len() as u64 + len % 65536] {
        let Some(header) = Header::parse(json, len) else { continue };
        let mut at = header.data_start;
        for t in &header.tensors {
            assert!(at <= t.start && t.start <= t.end && t.end <= len);
            at = t.end;
        }
        let mut at = 0;
        for e in header.extents(len) {
            assert!(e.start == at && e.len > 0);
            at += e.len;
        }
        assert_eq!(at, len);
        let _ = header.covers(len);
    }
    Some(())
}
