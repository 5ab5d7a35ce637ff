//! Archives that are stored as differences from others, put together by hand.

use super::random::Random;
use bszfs::codec::{
    Coding, Delta, DifferenceSample, ElementKind, Encoder, EntropyModel, checksum,
    encode_differences, fit_differences,
};
use bszfs::format::{Base, Chunk, Footer, IndexWriter, NO_MODEL, Naming, header};
use bszfs::sha256::Hasher;
use std::fs;
use std::path::Path;

/// A chunk of a dependant.
pub enum Piece {
    /// These bytes, stored as they are.
    Raw(Vec<u8>),
    /// As many bytes of the base with this number, from there on.
    Same { base: usize, at: usize, len: usize },
    /// The same, as differences: about half of its elements of two bytes differ.
    Tuned { base: usize, at: usize, len: usize },
}

/// A chunk as it is stored.
struct Stored {
    bytes: Vec<u8>,
    coding: Coding,
    model: Option<EntropyModel>,
    payload: Vec<u8>,
}

impl Piece {
    /// The chunk at `start` of the original.
    fn store(&self, start: usize, numbers: &[u8], bases: &[(&str, &[u8])]) -> Stored {
        let (base, at, len) = match self {
            Self::Raw(bytes) => {
                let (coding, payload) = (Coding::Raw, bytes.clone());
                return Stored { bytes: bytes.clone(), coding, model: None, payload };
            }
            Self::Same { base, at, len } | Self::Tuned { base, at, len } => (*base, *at, *len),
        };
        let (number, distance) = (numbers[base], at as i64 - start as i64);
        let base = &bases[base].1[at..at + len];
        let bytes = match self {
            Self::Tuned { .. } => tuned(base),
            _ => base.to_vec(),
        };
        let model = match self {
            Self::Tuned { .. } => {
                let kind = ElementKind::Float { width: 2, exponent: 8 };
                let sample =
                    DifferenceSample { kind, bytes: &bytes, base, row: None, tensor: len as u64 };
                fit_differences(sample, number, distance).expect("valid")
            }
            _ => {
                let delta = Delta { base: number, distance, threshold: 0, cuts: Vec::new() };
                EntropyModel::of_differences(delta, 1, 128, Vec::new()).expect("valid")
            }
        };
        let (coding, payload) = encode_differences(&bytes, base, &Encoder::new(&model));
        assert_eq!(coding, Coding::Delta);
        Stored { bytes, coding, model: Some(model), payload }
    }
}

/// `base` after a little training.
fn tuned(base: &[u8]) -> Vec<u8> {
    let mut random = Random(base.len() as u64);
    let change = |element: &[u8]| match element.try_into() {
        Ok(element) => {
            let by = [0, 0, 0, 1, 2, u16::MAX, u16::MAX, 3][random.below(8) as usize];
            u16::from_le_bytes(element).wrapping_add(by).to_le_bytes().to_vec()
        }
        Err(_) => element.to_vec(),
    };
    base.chunks(2).flat_map(change).collect()
}

/// The base called `name` whose original is `original`.
pub fn base(name: &str, original: &[u8]) -> Base {
    let mut hasher = Hasher::default();
    hasher.update(original);
    Base { sha256: hasher.finish().0, len: original.len() as u64, name: name.to_owned() }
}

/// Write the archive `path` of these pieces; returns its original.
pub fn write(path: &Path, bases: &[(&str, &[u8])], pieces: &[Piece]) -> Vec<u8> {
    let mut index = IndexWriter::default();
    let numbers: Vec<u8> = bases
        .iter()
        .map(|(name, original)| index.base(&base(name, original)).expect("a base"))
        .collect();
    let (mut original, mut stored) = (Vec::new(), Vec::new());
    stored.extend_from_slice(&header(if bases.is_empty() { 1 } else { 2 }));
    for piece in pieces {
        let start = original.len();
        let Stored { bytes, coding, model, payload } = piece.store(start, &numbers, bases);
        let model = model.map_or(NO_MODEL, |model| index.model(&model).expect("a number"));
        index.chunk(&Chunk {
            original: start as u64..(start + bytes.len()) as u64,
            stored_at: stored.len() as u64,
            stored_len: payload.len() as u32,
            coding,
            model,
            checksum: checksum(&bytes),
        });
        original.extend_from_slice(&bytes);
        stored.extend_from_slice(&payload);
    }
    let mut hasher = Hasher::default();
    hasher.update(&original);
    let (sha256, states) = hasher.finish();
    let footer = Footer {
        original_len: original.len() as u64,
        sha256,
        mtime: (1, 0),
        mode: 0o644,
        naming: Naming::Safetensors,
        index_offset: stored.len() as u64,
        index_len: 0,
        index_checksum: 0,
        chunk_count: 0,
        model_count: 0,
        max_chunk: 0,
        base_count: 0,
        bases_len: 0,
    };
    let (bytes, footer) = index.finish(footer, &states);
    stored.extend_from_slice(&bytes);
    stored.extend_from_slice(&footer.to_bytes());
    fs::write(path, stored).expect("written");
    original
}

/// Pieces of a dependant of `base`: at distances of all kinds, across the chunks of the base, with
/// bytes of its own between.
pub fn pieces(base: &[u8]) -> Vec<Piece> {
    let same = |at: usize, len: usize| Piece::Same { base: 0, at, len };
    let tuned = |at: usize, len: usize| Piece::Tuned { base: 0, at, len };
    let own = |n: u8, len: usize| Piece::Raw((0..len).map(|i| (i as u8).wrapping_mul(n)).collect());
    let half = base.len() / 2;
    vec![
        same(0, 65_536),
        same(65_536, 65_536),
        own(7, 1000),
        same(1, 65_536),
        same(half - 3, 100_000),
        own(5, 3),
        same(base.len() - 70_001, 70_001),
        same(half, 5),
        same(0, 65_536),
        same(10, 200_000),
        tuned(65_536, 65_536),
        tuned(77, 65_536),
        tuned(half - 8, 150_000),
        tuned(base.len() - 20_000, 20_000),
        own(3, 65_537),
    ]
}
