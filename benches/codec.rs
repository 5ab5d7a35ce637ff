//! The kernels, one chunk of 256 KiB at a time, on one thread: decoding, encoding and the hashes, beside memcpy.
//!
//! Weights are made here, so that figures can be compared between machines; `bsz bench` measures a given file.

use bszfs::{
    codec::{self, ChunkDecoder, Coding, ElementKind, Encoder, EntropyModel, Sample},
    sha256::Hasher,
};
use divan::{Bencher, black_box, counter::BytesCount};
use half::{bf16, f16};
use std::{fmt, sync::LazyLock};

/// Decoded bytes of a chunk.
const CHUNK: usize = 256 << 10;
/// Elements of a tensor, enough for a model like those of real ones.
const ELEMENTS: usize = 1 << 20;
/// Elements of a row.
const ROW: usize = 512;

fn main() {
    divan::main();
}

/// The types with a cost of their own.
#[derive(Clone, Copy, Debug)]
enum Weights {
    Bf16,
    /// Columns have means and signs of their own, and so classes: several tables in one round.
    F16Classes,
    F32,
    F8,
}

const ALL: [Weights; 4] = [Weights::Bf16, Weights::F16Classes, Weights::F32, Weights::F8];

impl Weights {
    fn kind(self) -> ElementKind {
        match self {
            Self::Bf16 => ElementKind::Float { width: 2, exponent: 8 },
            Self::F16Classes => ElementKind::Float { width: 2, exponent: 5 },
            Self::F32 => ElementKind::Float { width: 4, exponent: 8 },
            Self::F8 => ElementKind::Float { width: 1, exponent: 4 },
        }
    }

    fn tensor(self) -> Vec<u8> {
        let mut random = Random(self as u64);
        let column = |i: usize| ((i % ROW) as f32 * 0.7).sin();
        let mut weights = |f: &dyn Fn(usize, f32) -> Vec<u8>| -> Vec<u8> {
            (0..ELEMENTS).flat_map(|i| f(i, random.normal())).collect()
        };
        match self {
            Self::Bf16 => weights(&|_, x| bf16::from_f32(0.02 * x).to_le_bytes().into()),
            Self::F16Classes => {
                weights(&|i, x| f16::from_f32(0.02 * (8.0 * column(i) + x)).to_le_bytes().into())
            }
            Self::F32 => weights(&|_, x| (0.02 * x).to_le_bytes().into()),
            Self::F8 => weights(&|_, x| vec![e4m3(100.0 * x)]),
        }
    }

    fn chunk(self) -> &'static Chunk {
        static CHUNKS: LazyLock<[Chunk; 4]> = LazyLock::new(|| ALL.map(Chunk::new));
        &CHUNKS[self as usize]
    }
}

/// What is coded, and how.
struct Chunk {
    plain: Vec<u8>,
    model: EntropyModel,
    stored: Vec<u8>,
}

impl Chunk {
    fn new(weights: Weights) -> Self {
        let mut bytes = weights.tensor();
        let row = matches!(weights, Weights::F16Classes).then_some(ROW);
        let sample =
            Sample { kind: weights.kind(), bytes: &bytes, row, tensor: bytes.len() as u64 };
        let model = codec::fit(sample).expect("a model").expect("worth one");
        assert_eq!(model.classes() > 1, row.is_some(), "{weights:?}: {} classes", model.classes());
        bytes.truncate(CHUNK);
        let (coding, stored) = codec::encode(&bytes, Some(&Encoder::new(&model)), false);
        assert_eq!(coding, Coding::Planes);
        Self { plain: bytes, model, stored }
    }
}

/// One decoder on one type, as divan lists it.
struct Decoding {
    weights: Weights,
    decoder: std::sync::Arc<dyn ChunkDecoder>,
}

impl fmt::Display for Decoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {}", self.weights, self.decoder.name())
    }
}

fn decodings() -> impl Iterator<Item = Decoding> {
    ALL.into_iter().flat_map(|weights| {
        codec::decoders().into_iter().map(move |decoder| Decoding { weights, decoder })
    })
}

#[divan::bench(args = decodings())]
fn decode(bencher: Bencher, of: &Decoding) {
    let chunk = of.weights.chunk();
    let mut out = vec![0; CHUNK];
    let mut run = || {
        of.decoder.decode(Coding::Planes, Some(&chunk.model), black_box(&chunk.stored), &mut out)
    };
    run().expect("what was encoded decodes");
    bencher.counter(BytesCount::new(CHUNK)).bench_local(run);
    assert!(out == chunk.plain);
}

#[divan::bench(args = ALL)]
fn encode(bencher: Bencher, of: Weights) {
    let chunk = of.chunk();
    let encoder = Encoder::new(&chunk.model);
    bencher
        .counter(BytesCount::new(CHUNK))
        .bench_local(|| codec::encode(black_box(&chunk.plain), Some(&encoder), false));
}

#[divan::bench]
fn checksum_xxh3(bencher: Bencher) {
    let bytes = noise();
    bencher.counter(BytesCount::new(CHUNK)).bench_local(|| codec::checksum(black_box(&bytes)));
}

#[divan::bench]
fn sha256_one_stream(bencher: Bencher) {
    let bytes = noise();
    bencher.counter(BytesCount::new(CHUNK)).bench_local(|| {
        let mut hash = Hasher::default();
        hash.update(black_box(&bytes));
        hash.finish()
    });
}

#[divan::bench]
fn memcpy(bencher: Bencher) {
    let bytes = noise();
    let mut out = vec![0; CHUNK];
    bencher.counter(BytesCount::new(CHUNK)).bench_local(|| {
        out.copy_from_slice(black_box(&bytes));
        black_box(&mut out);
    });
}

fn noise() -> Vec<u8> {
    let mut random = Random(99);
    (0..CHUNK / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f32 {
        let mut uniform = || ((self.next() >> 40) + 1) as f32 / (1 << 24) as f32;
        (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos()
    }
}

/// `x` rounded to F8_E4M3, below its largest value: the exponent's bias moved, sign and top bits kept.
fn e4m3(x: f32) -> u8 {
    let bits = (x.abs().min(448.0) * 2f32.powi(-120)).to_bits();
    ((bits + (1 << 19)) >> 20) as u8 | u8::from(x < 0.0) << 7
}
