//! A second reader, written from `docs/FORMAT.md` alone: naive, one element at a time, sharing no
//! code with the library.

mod common;
#[path = "second_reader/differences.rs"]
mod differences;

use common::samples;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, VecDeque};

/// The features that the archives read so far use, so that the test knows what it has covered.
type Seen = BTreeSet<&'static str>;

/// The initial state of SHA-256.
const SHA256_START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Consumes stored bytes piece by piece.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head
    }

    fn number(&mut self, bytes: usize) -> usize {
        le(self.take(bytes), 0, bytes) as usize
    }

    fn numbers(&mut self, count: usize, bytes: usize) -> Vec<usize> {
        (0..count).map(|_| self.number(bytes)).collect()
    }

    fn end(self) {
        assert!(self.0.is_empty(), "{} bytes are left", self.0.len());
    }
}

fn le(b: &[u8], at: usize, n: usize) -> u64 {
    (0..n).map(|i| u64::from(b[at + i]) << (8 * i)).sum()
}

struct Model {
    width: usize,
    rotated: bool,
    symbol_bits: usize,
    /// The width of each plane, in bits.
    planes: Vec<usize>,
    block: usize,
    values: Vec<usize>,
    /// The class of each column.
    class: Vec<usize>,
    classes: usize,
    choices: usize,
    /// The frequencies of each table's symbols.
    tables: Vec<Vec<u64>>,
}

impl Model {
    fn read(stored: &[u8]) -> Self {
        let mut b = Bytes(stored);
        let [width, rotated, symbol_bits, plane_count] = [(); 4].map(|()| b.number(1));
        let [block, columns] = [(); 2].map(|()| b.number(4));
        let [table_count, value_count] = [(); 2].map(|()| b.number(1));
        let planes = b.numbers(plane_count, 1);
        let values = b.numbers(value_count, 2);
        let mut class: Vec<usize> = b
            .take(columns.div_ceil(2))
            .iter()
            .flat_map(|c| [usize::from(c % 16), usize::from(c / 16)])
            .collect();
        assert!(class.split_off(columns).iter().all(|&unused| unused == 0));
        let frequency = |b: &mut Bytes<'_>| match b.number(1) as u64 {
            low @ 128.. => low - 128 + 128 * b.number(1) as u64,
            low => low,
        };
        let tables: Vec<Vec<u64>> = (0..table_count)
            .map(|_| (0..=value_count).map(|_| frequency(&mut b)).collect())
            .collect();
        b.end();

        assert!([1, 2, 4, 8].contains(&width) && rotated <= 1);
        assert!((1..=16).contains(&symbol_bits) && symbol_bits <= 8 * width);
        let mut low = 8 * width - symbol_bits;
        for &bits in &planes {
            assert!((1..=8).contains(&bits) && bits <= low);
            assert_eq!((low - 1) / 8, (low - bits) / 8, "a plane crosses a byte");
            low -= bits;
        }
        assert_eq!(low, 0);
        assert!(block > 0 && block % 128 == 0);
        assert!(columns == 0 || (128..=65536).contains(&columns));
        assert!((1..=63).contains(&value_count));
        assert!(
            values.windows(2).all(|v| v[0] < v[1]) && values[value_count - 1] < 1 << symbol_bits
        );
        let classes = class.iter().max().map_or(1, |c| c + 1);
        let choices = table_count / classes;
        assert!(classes <= 8 && table_count % classes == 0 && (1..=4).contains(&choices));
        assert!(tables.iter().all(|t| t.iter().sum::<u64>() == 16384 && !t.contains(&16384)));
        Self {
            width,
            rotated: rotated == 1,
            symbol_bits,
            planes,
            block,
            values,
            class,
            classes,
            choices,
            tables,
        }
    }
}

/// For each slot: its symbol, and its rank among the slots of the symbol.
fn slots(frequencies: &[u64]) -> Vec<(usize, u64)> {
    let mut own: Vec<u64> = (0..64).map(|b| frequencies.get(b).copied().unwrap_or(0)).collect();
    let mut other: Vec<usize> = (0..64).collect();
    let (mut small, mut large): (VecDeque<usize>, VecDeque<usize>) =
        (0..64).partition(|&b| own[b] < 256);
    while let Some(s) = small.pop_front() {
        let l = large[0];
        other[s] = l;
        own[l] -= 256 - own[s];
        if own[l] < 256 {
            small.extend(large.pop_front());
        }
    }
    let mut slots = vec![(0, 0); 16384];
    let mut next = [0; 64];
    for in_own_bucket in [true, false] {
        for (slot, entry) in slots.iter_mut().enumerate() {
            let (bucket, place) = (slot / 256, slot as u64 % 256);
            if (place < own[bucket]) == in_own_bucket {
                let symbol = if in_own_bucket { bucket } else { other[bucket] };
                *entry = (symbol, next[symbol]);
                next[symbol] += 1;
            }
        }
    }
    slots
}

/// The symbol values of `n` elements, and the lower halves of the final states, two bytes each.
fn coded_values(b: &mut Bytes<'_>, m: &Model, n: usize, seen: &mut Seen) -> (Vec<u64>, Vec<u8>) {
    let (word_count, escape_count) = (b.number(4), b.number(4));
    let blocks = n.div_ceil(m.block);
    let mut choice = vec![0; blocks];
    if m.choices > 1 {
        let packed = b.take(blocks.div_ceil(4));
        choice = (0..packed.len() * 4)
            .map(|i| usize::from(packed[i / 4] >> (2 * (i % 4)) & 3))
            .collect();
        assert!(choice.split_off(blocks).iter().all(|&unused| unused == 0));
        assert!(choice.iter().all(|&c| c < m.choices));
    }
    let mut states = b.numbers(128, 4).into_iter().map(|x| x as u64).collect::<Vec<_>>();
    assert!(states.iter().all(|&x| x >= 1 << 16));
    let mut words = Bytes(b.take(2 * word_count));
    let mut escapes = Bytes(b.take(2 * escape_count));
    let slots: Vec<_> = m.tables.iter().map(|t| slots(t)).collect();
    let mut tops = Vec::new();
    for i in 0..n.div_ceil(128) * 128 {
        let class = if m.class.is_empty() { 0 } else { m.class[i % m.class.len()] };
        let table = choice[i / m.block] * m.classes + class;
        let mut x = states[i % 128];
        let (symbol, number) = slots[table][x as usize % 16384];
        x = m.tables[table][symbol] * (x / 16384) + number;
        if x < 1 << 16 {
            x = (x << 16) + words.number(2) as u64;
        }
        states[i % 128] = x;
        if i < n && symbol == m.values.len() {
            let top = escapes.number(2) as u64;
            assert!(top < 1 << m.symbol_bits);
            tops.push(top);
            seen.insert("escape");
        } else if i < n {
            tops.push(m.values[symbol] as u64);
        }
    }
    words.end();
    escapes.end();
    assert!(states.iter().all(|x| x >> 16 == 1));
    for (feature, present) in [
        ("several choices", choice.iter().any(|&c| c != choice[0])),
        ("several classes", m.classes > 1),
        ("choices and classes", m.choices > 1 && m.classes > 1),
        (
            "columns that do not divide into rounds",
            m.classes > 1 && !m.class.len().is_multiple_of(128),
        ),
        ("an odd number of columns", !m.class.len().is_multiple_of(2)),
        ("an incomplete round", !n.is_multiple_of(128)),
        ("a shorter last block", !n.is_multiple_of(m.block)),
    ] {
        seen.extend(present.then_some(feature));
    }
    (tops, states.iter().flat_map(|x| x.to_le_bytes()[..2].to_vec()).collect())
}

/// The size of `n` elements of a plane in mode 0, in bytes.
fn packed_len(bits: usize, n: usize) -> usize {
    n.div_ceil(64) * 8 * bits
}

/// The bits of element `i` in a plane in mode 0.
fn packed_value(data: &[u8], bits: usize, i: usize) -> u64 {
    let (group, i) = (&data[i / 64 * 8 * bits..], i % 64);
    let (mut at, mut shift, mut value) = (0, 0, 0);
    for p in [8, 4, 2, 1] {
        if bits & p != 0 {
            let byte = u64::from(group[at + i % (8 * p)]);
            value |= (byte >> (i / (8 * p) * p) & ((1 << p) - 1)) << shift;
            at += 8 * p;
            shift += p;
        }
    }
    value
}

/// The bits of `n` elements in a plane that omits blocks.
fn sparse_plane(b: &mut Bytes<'_>, bits: usize, block: usize, n: usize) -> Vec<u64> {
    let blocks = n.div_ceil(block);
    let bitmap = b.take(blocks.div_ceil(8));
    let present = |i: usize| bitmap[i / 8] >> (i % 8) & 1 == 1;
    assert!(!(blocks..bitmap.len() * 8).any(present));
    let mut values = Vec::new();
    for i in 0..blocks {
        let len = block.min(n - i * block);
        if present(i) {
            let data = b.take(packed_len(bits, len));
            values.extend((0..len).map(|i| packed_value(data, bits, i)));
        } else {
            values.resize(values.len() + len, 0);
        }
    }
    values
}

fn chunk_of_planes(stored: &[u8], m: &Model, len: usize, seen: &mut Seen) -> Vec<u8> {
    let n = len / m.width;
    assert_eq!(n * m.width, len);
    let mut b = Bytes(stored);
    let (mode, reserved, constant) = (b.number(1), b.number(1), b.number(2));
    let records: Vec<(usize, u64)> =
        m.planes.iter().map(|_| (b.number(1), b.number(1) as u64)).collect();
    assert!(
        mode <= 1 && reserved == 0 && constant < 1 << m.symbol_bits && (mode == 1 || constant == 0)
    );
    let (tops, carried) = if mode == 0 {
        coded_values(&mut b, m, n, seen)
    } else {
        (vec![constant as u64; n], Vec::new())
    };
    seen.insert(["coded symbols", "constant symbols"][mode]);
    let long = |&p: &usize| records[p].0 == 0 && packed_len(m.planes[p], n) >= 256;
    let last_long = (0..m.planes.len()).rfind(long);
    let ends_in_states = last_long.filter(|_| mode == 0);
    if ends_in_states.is_none() {
        assert!(carried.iter().all(|&byte| byte == 0));
    }
    let mut low = 8 * m.width - m.symbol_bits;
    let mut elements: Vec<u64> = tops.iter().map(|top| top << low).collect();
    for (p, (&bits, &(mode, value))) in m.planes.iter().zip(&records).enumerate() {
        assert!(mode <= 2 && value < 1 << bits && (mode == 1 || value == 0));
        let values = match mode {
            0 if ends_in_states == Some(p) => {
                let data = [b.take(packed_len(bits, n) - 256), &carried].concat();
                let last = p + 1 == m.planes.len();
                seen.insert(if last {
                    "carried"
                } else {
                    "carried by another plane than the last"
                });
                (0..n).map(|i| packed_value(&data, bits, i)).collect()
            }
            0 => {
                let data = b.take(packed_len(bits, n));
                (0..n).map(|i| packed_value(data, bits, i)).collect()
            }
            1 => vec![value; n],
            _ => sparse_plane(&mut b, bits, m.block, n),
        };
        seen.insert(["stored plane", "constant plane", "sparse plane"][mode]);
        low -= bits;
        elements.iter_mut().zip(values).for_each(|(e, v)| *e |= v << low);
    }
    b.end();
    for (feature, present) in [
        ("rotated", m.rotated),
        ("floats without rotation", !m.rotated && m.width > 1),
        (
            "constant symbols, a plane that would otherwise be carried",
            mode == 1 && last_long.is_some(),
        ),
        ("coded symbols, nothing carried", mode == 0 && ends_in_states.is_none()),
        ("1 byte", m.width == 1),
        ("2 bytes", m.width == 2),
        ("4 bytes", m.width == 4),
        ("8 bytes", m.width == 8),
    ] {
        seen.extend(present.then_some(feature));
    }
    let bits = 8 * m.width;
    let unrotate = |e: u64| if m.rotated { e >> 1 | (e & 1) << (bits - 1) } else { e };
    elements.into_iter().flat_map(|e| unrotate(e).to_le_bytes()[..m.width].to_vec()).collect()
}

/// A model of either kind.
enum AnyModel {
    Planes(Model),
    Differences(differences::Model),
}

/// The original of an archive, whose bases are among `files`.
fn read_archive(a: &[u8], files: &[Vec<u8>], seen: &mut Seen) -> Vec<u8> {
    let f = &a[a.len() - 128..];
    let version = a[8];
    assert!(a[..8] == *b"\x89BSZ\r\n\x1a\n" && a[9..16] == [0; 7] && [1, 2].contains(&version));
    assert_eq!((&f[122..], le(f, 120, 2)), (&b"BSZEND"[..], version.into()));
    let xxh3 = twox_hash::XxHash3_64::oneshot;
    assert_eq!(xxh3(&[&f[..112], &f[120..]].concat()), le(f, 112, 8));
    let (original_len, index_at, index_len) =
        (le(f, 0, 8), le(f, 64, 8) as usize, le(f, 72, 8) as usize);
    let (chunks, models, max_chunk) = (le(f, 88, 4) as usize, le(f, 92, 4) as usize, le(f, 96, 4));
    assert!(index_at >= 16 && index_at + index_len + 128 == a.len() && f[108..112] == [0; 4]);
    let (base_count, bases_len) = (le(f, 100, 4) as usize, le(f, 104, 4) as usize);
    assert!((version == 2) == (base_count > 0) && base_count <= 255 && bases_len <= 75480);
    assert!(original_len < 1 << 63 && index_len <= 1 << 30 && max_chunk <= 4 << 20);
    assert!(le(f, 48, 4) < 1_000_000_000 && le(f, 52, 4) <= 0o7777 && le(f, 56, 8) <= 1);
    let index = &a[index_at..index_at + index_len];
    assert_eq!(xxh3(index), le(f, 80, 8));
    let states = original_len.saturating_sub(1) as usize >> 20;
    let ends_at = 32 * chunks + 32 * states;
    let blobs = &index[ends_at + 4 * models..index_len - bases_len];
    let bases = bases(&index[index_len - bases_len..], base_count, files);
    let end = |i: usize| le(index, ends_at + 4 * i, 4) as usize;
    assert_eq!(if models == 0 { 0 } else { end(models - 1) }, blobs.len());
    let models: Vec<_> = (0..models)
        .map(|i| &blobs[if i == 0 { 0 } else { end(i - 1) }..end(i)])
        .map(|model| match model[0] {
            0..=127 => AnyModel::Planes(Model::read(model)),
            _ => AnyModel::Differences(differences::Model::read(model, base_count)),
        })
        .collect();
    let mut out = Vec::new();
    for c in 0..chunks {
        let r = &index[32 * c..32 * c + 32];
        let start = le(r, 0, 8);
        let stop = if c + 1 < chunks { le(index, 32 * (c + 1), 8) } else { original_len };
        assert!(start == out.len() as u64 && start < stop && stop - start <= max_chunk);
        let len = (stop - start) as usize;
        let (at, stored_len) = (le(r, 8, 8) as usize, le(r, 24, 4) as usize);
        assert!(at >= 16 && at + stored_len <= index_at && stored_len <= len);
        let stored = &a[at..at + stored_len];
        let model = le(r, 28, 3) as usize;
        assert!((r[31] >= 2) == (model != 0xff_ffff));
        let decoded = match (r[31], models.get(model)) {
            (0, None) => stored.to_vec(),
            (1, None) => zstd::bulk::decompress(stored, len).expect("zstd"),
            (2, Some(AnyModel::Planes(model))) => chunk_of_planes(stored, model, len, seen),
            (3, Some(AnyModel::Differences(model))) if version == 2 => {
                differences::chunk(stored, model, &bases, (start, len), seen)
            }
            (coding, _) => panic!("coding {coding}, or a model of another one"),
        };
        seen.insert(["raw", "zstd", "planes", "differences"][usize::from(r[31])]);
        assert_eq!(decoded.len(), len);
        assert_eq!(xxh3(&decoded), le(r, 16, 8), "chunk {c}");
        out.extend(decoded);
    }
    assert_eq!(out.len() as u64, original_len);
    assert_eq!(Sha256::digest(&out)[..], f[8..40]);
    let mut state = SHA256_START;
    for i in 0..states {
        sha2::block_api::compress256(&mut state, out[i << 20..(i + 1) << 20].as_chunks().0);
        let stored = &index[32 * chunks + 32 * i..];
        assert_eq!(state, std::array::from_fn(|j| le(stored, 4 * j, 4) as u32));
        seen.insert("a state of SHA-256");
    }
    out
}

/// The bytes of the bases in a table of `count` entries.
fn bases<'f>(table: &[u8], count: usize, files: &'f [Vec<u8>]) -> Vec<&'f [u8]> {
    let mut b = Bytes(table);
    let base = |_| {
        let (sha256, len, name_len) = (b.take(32), b.number(8), b.number(1));
        let name = std::str::from_utf8(b.take(name_len)).expect("UTF-8");
        assert!(!["", ".", ".."].contains(&name) && !name.contains(['/', '\0']));
        let found = files.iter().find(|f| f.len() == len && Sha256::digest(f)[..] == *sha256);
        &found.expect("a base")[..]
    };
    let bases = (0..count).map(base).collect();
    b.end();
    bases
}

/// Everything that `Seen` can hold: a feature that no sample uses would not be shown to be
/// specified.
const FEATURES: [&str; 27] = [
    "1 byte",
    "2 bytes",
    "4 bytes",
    "8 bytes",
    "an incomplete round",
    "a shorter last block",
    "a state of SHA-256",
    "an odd number of columns",
    "carried",
    "carried by another plane than the last",
    "choices and classes",
    "coded symbols",
    "columns that do not divide into rounds",
    "constant plane",
    "constant symbols",
    "escape",
    "floats without rotation",
    "planes",
    "raw",
    "rotated",
    "several choices",
    "several classes",
    "sparse plane",
    "stored plane",
    "coded symbols, nothing carried",
    "constant symbols, a plane that would otherwise be carried",
    "zstd",
];

#[test]
fn golden_archives_cover_the_whole_format() {
    let mut seen = Seen::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/v1"))
        .expect("golden archives")
    {
        let path = entry.expect("an entry").path();
        read_archive(&std::fs::read(path).expect("read"), &[], &mut seen);
    }
    assert_eq!(seen, Seen::from(FEATURES));
}

#[test]
fn the_specification_suffices_to_read_the_output_of_the_packer() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut seen = Seen::new();
    for (name, bytes) in samples::samples() {
        let archive = samples::pack_bytes(dir.path(), "x.safetensors", &bytes, 256 << 10);
        assert!(read_archive(&archive, &[], &mut seen) == bytes, "{name}");
    }
    assert_eq!(seen, Seen::from(FEATURES), "what the samples reach has changed");
}
