//! Archives that no packer would write: many chunks that share a few stored bytes, indexes of any
//! size.

use bszfs::codec::{Coding, checksum};
use bszfs::format::{Chunk, Footer, IndexWriter, NO_MODEL, Naming, VERSION, header};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use twox_hash::XxHash3_64;

/// Where the stored bytes shared by all chunks start: right after the header.
const START: u64 = 16;

/// An archive whose original is `head` followed by prefixes of `blob` of the given lengths. Its
/// hash is wrong, which `verify` detects but a mount does not check.
pub fn archive(path: &Path, head: &[u8], blob: &[u8], lens: impl Iterator<Item = usize>) -> u64 {
    let file = File::create(path).expect("a file");
    file.write_all_at(&header(VERSION), 0).expect("written");
    file.write_all_at(blob, START).expect("written");
    let mut index = IndexWriter::default();
    let (mut at, head_at) = (0, START + blob.len() as u64);
    let mut chunk = |bytes: &[u8], sum: u64, stored_at| {
        let (original, stored_len) = (at..at + bytes.len() as u64, bytes.len() as u32);
        at = original.end;
        let (coding, model) = (Coding::Raw, NO_MODEL);
        index.chunk(&Chunk { original, stored_at, stored_len, coding, model, checksum: sum });
    };
    for (i, part) in head.chunks(256 << 10).enumerate() {
        chunk(part, checksum(part), head_at + ((i * (256 << 10)) as u64));
    }
    let mut last = (0, 0);
    for len in lens {
        if last.0 != len {
            last = (len, checksum(&blob[..len]));
        }
        chunk(&blob[..len], last.1, START);
    }
    file.write_all_at(head, head_at).expect("written");
    let index_offset = head_at + head.len() as u64;
    let states = vec![[0; 8]; bszfs::sha256::state_count(at) as usize];
    let (bytes, footer) =
        index.finish(Footer { original_len: at, index_offset, ..footer() }, &states);
    file.write_all_at(&bytes, index_offset).expect("written");
    file.write_all_at(&footer.to_bytes(), index_offset + bytes.len() as u64).expect("written");
    at
}

/// An archive with `chunks` chunks of `blob` and as many unused models of the largest size. The
/// file is sparse: a model is a hole.
pub fn sparse(path: &Path, blob: &[u8], chunks: u32) {
    let most = bszfs::codec::model::MAX_WIRE_LEN as u64;
    archive(path, &[], blob, (0..chunks).map(|_| blob.len()));
    let file = File::options().read(true).write(true).open(path).expect("opens");
    let footer = bszfs::read::peek(&file).expect("sound").expect("an archive");
    let mut index = vec![0; footer.index_len as usize];
    file.read_exact_at(&mut index, footer.index_offset).expect("read");
    file.set_len(footer.index_offset).expect("shorter");
    index.extend((1..=u64::from(chunks)).flat_map(|i| ((i * most) as u32).to_le_bytes()));
    let models = most * u64::from(chunks);
    let mut sum = XxHash3_64::new();
    std::hash::Hasher::write(&mut sum, &index);
    let hole = vec![0; 1 << 20];
    let holes = (0..models).step_by(hole.len());
    holes.for_each(|at| {
        std::hash::Hasher::write(&mut sum, &hole[..hole.len().min((models - at) as usize)]);
    });
    let footer = Footer {
        model_count: chunks,
        index_len: index.len() as u64 + models,
        index_checksum: std::hash::Hasher::finish(&sum),
        ..footer
    };
    file.write_all_at(&index, footer.index_offset).expect("written");
    file.write_all_at(&footer.to_bytes(), footer.index_offset + footer.index_len).expect("written");
}

fn footer() -> Footer {
    Footer {
        original_len: 0,
        sha256: [0; 32],
        mtime: (1, 0),
        mode: 0o644,
        naming: Naming::Safetensors,
        index_offset: 0,
        index_len: 0,
        index_checksum: 0,
        chunk_count: 0,
        model_count: 0,
        max_chunk: 0,
        base_count: 0,
        bases_len: 0,
    }
}

/// Bytes that do not repeat.
pub fn blob(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}
