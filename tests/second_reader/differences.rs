//! Differences, as section 6 of `docs/FORMAT.md` describes them.

use super::common::{
    program::run,
    random::Random,
    samples::{Fill, matrices, tensor},
};
use super::{Bytes, Seen, le, packed_len, packed_value, read_archive, slots};

/// How the differences that a table codes are cut.
struct Cut {
    raw_bits: usize,
    /// The values of all 64 symbols.
    values: Vec<i64>,
    frequencies: Vec<u64>,
}

/// A model of differences.
pub struct Model {
    width: usize,
    base: usize,
    block: usize,
    distance: i64,
    threshold: u64,
    cuts: Vec<Cut>,
}

impl Model {
    pub fn read(stored: &[u8], base_count: usize) -> Self {
        let mut b = Bytes(stored);
        let [width, base, table_count, reserved] = [(); 4].map(|()| b.number(1));
        let block = b.number(4);
        let [distance, threshold] = [(); 2].map(|()| le(b.take(8), 0, 8));
        let width = width - 128;
        assert!([1, 2, 4, 8].contains(&width) && base < base_count && reserved == 0);
        assert!(block > 0 && block % 128 == 0 && threshold < 1 << (8 * width - 1));
        let classes = if threshold == 0 { 1 } else { 2 };
        assert!(table_count % classes == 0 && table_count / classes <= 4);
        let cuts = (0..table_count).map(|_| Cut::read(&mut b, width)).collect();
        b.end();
        Self { width, base, block, distance: distance as i64, threshold, cuts }
    }
}

impl Cut {
    fn read(b: &mut Bytes<'_>, width: usize) -> Self {
        let first = b.number(1);
        let (raw_bits, listed) = (first % 128, first >= 128);
        assert!(raw_bits <= 8 * width - 6);
        let mut values: Vec<i64> = (0..63).map(|s| s - 31).collect();
        if listed {
            let unused = 64 - 8 * width;
            values = (0..63).map(|_| (le(b.take(width), 0, width) << unused) as i64).collect();
            values.iter_mut().for_each(|value| *value >>= unused);
            let most = 1u64 << (8 * width - 1 - raw_bits);
            assert!(values.iter().all(|value| value.unsigned_abs() < most));
            assert!(values.windows(2).all(|v| v[0] < v[1]));
        }
        values.push(values[62] + 1);
        let frequency = |b: &mut Bytes<'_>| match b.number(1) as u64 {
            low @ 128.. => low - 128 + 128 * b.number(1) as u64,
            low => low,
        };
        let frequencies: Vec<u64> = (0..64).map(|_| frequency(b)).collect();
        assert!(frequencies.iter().sum::<u64>() == 16384 && !frequencies.contains(&16384));
        Self { raw_bits, values, frequencies }
    }
}

/// The bytes of the base that a chunk from `start` on differs from.
fn of_base<'b>(m: &Model, bases: &[&'b [u8]], start: u64, len: usize) -> &'b [u8] {
    let at = usize::try_from(start as i64 + m.distance).expect("within the base");
    &bases[m.base][at..at + len]
}

pub fn chunk(
    stored: &[u8],
    m: &Model,
    bases: &[&[u8]],
    (start, len): (u64, usize),
    seen: &mut Seen,
) -> Vec<u8> {
    let base = of_base(m, bases, start, len);
    assert_eq!(len % m.width, 0);
    let mut b = Bytes(stored);
    let (mode, reserved) = (b.number(1), b.number(3));
    assert_eq!(reserved, 0);
    if mode == 1 {
        b.end();
        seen.insert("equal to the base");
        return base.to_vec();
    }
    assert_eq!(mode, 0);
    let elements: Vec<u64> = base.chunks(m.width).map(|e| le(e, 0, m.width)).collect();
    let classes = if m.threshold == 0 { 1 } else { 2 };
    let top = 1u64 << (8 * m.width - 1);
    let class = |i: usize| usize::from(i < elements.len() && elements[i] % top < m.threshold);
    let (symbols, tables, escapes, carried) =
        symbols(&mut b, m, elements.len(), &|i| class(i) % classes);
    let mut escapes = Bytes(escapes);
    let raw = raw_bits(&mut b, m, &tables, &carried, seen);
    b.end();
    let mut out = Vec::new();
    for (i, &element) in elements.iter().enumerate() {
        let cut = &m.cuts[tables[i]];
        let value = cut.values[symbols[i]] << cut.raw_bits;
        let mut sum = element.wrapping_add(value as u64).wrapping_add(raw[i]);
        if symbols[i] == 63 {
            assert_eq!(raw[i], 0);
            sum = sum.wrapping_add(le(escapes.take(m.width), 0, m.width));
            seen.insert("an escaped difference");
        }
        out.extend_from_slice(&sum.to_le_bytes()[..m.width]);
        seen.extend((cut.values[0] != -31).then_some("listed values"));
    }
    escapes.end();
    for (feature, present) in [
        ("two classes of differences", tables.iter().any(|t| t % classes == 1)),
        ("several choices of differences", tables.iter().any(|t| *t >= classes)),
        ("a distance", m.distance != 0),
        ("differences of 2 bytes", m.width == 2),
        ("differences of 4 bytes", m.width == 4),
    ] {
        seen.extend(present.then_some(feature));
    }
    out
}

/// Symbols and tables of `n` elements, what is escaped, and the lower halves of the final states.
fn symbols<'s>(
    b: &mut Bytes<'s>,
    m: &Model,
    n: usize,
    class: &dyn Fn(usize) -> usize,
) -> (Vec<usize>, Vec<usize>, &'s [u8], Vec<u8>) {
    let (word_count, escape_count) = (b.number(4), b.number(4));
    let classes = if m.threshold == 0 { 1 } else { 2 };
    let choices = m.cuts.len() / classes;
    let blocks = n.div_ceil(m.block);
    let mut choice = vec![0; blocks];
    if choices > 1 {
        let packed = b.take(blocks.div_ceil(4));
        choice = (0..packed.len() * 4)
            .map(|i| usize::from(packed[i / 4] >> (2 * (i % 4)) & 3))
            .collect();
        assert!(choice.split_off(blocks).iter().all(|&unused| unused == 0));
        assert!(choice.iter().all(|&c| c < choices));
    }
    let mut states: Vec<u64> = b.numbers(128, 4).into_iter().map(|x| x as u64).collect();
    assert!(states.iter().all(|&x| x >= 1 << 16));
    let mut words = Bytes(b.take(2 * word_count));
    let escapes = b.take(m.width * escape_count);
    let slots: Vec<_> = m.cuts.iter().map(|cut| slots(&cut.frequencies)).collect();
    let (mut symbols, mut tables) = (Vec::new(), Vec::new());
    for i in 0..n.div_ceil(128) * 128 {
        let table = choice[i / m.block] * classes + class(i);
        let mut x = states[i % 128];
        let (symbol, number) = slots[table][x as usize % 16384];
        x = m.cuts[table].frequencies[symbol] * (x / 16384) + number;
        if x < 1 << 16 {
            x = (x << 16) + words.number(2) as u64;
        }
        states[i % 128] = x;
        if i < n {
            symbols.push(symbol);
            tables.push(table);
        }
    }
    words.end();
    assert!(states.iter().all(|x| x >> 16 == 1));
    let carried = states.iter().flat_map(|x| x.to_le_bytes()[..2].to_vec()).collect();
    (symbols, tables, escapes, carried)
}

/// The raw bits of each element.
fn raw_bits(
    b: &mut Bytes<'_>,
    m: &Model,
    tables: &[usize],
    carried: &[u8],
    seen: &mut Seen,
) -> Vec<u64> {
    // Each plane: its table, its lowest bit, its bits, and its bytes.
    let mut planes = Vec::new();
    for (table, cut) in m.cuts.iter().enumerate() {
        let count = tables.iter().filter(|t| **t == table).count();
        let mut low = cut.raw_bits;
        while low > 0 && count > 0 {
            let bits = if low.is_multiple_of(8) { 8 } else { low % 8 };
            low -= bits;
            planes.push((table, low, bits, packed_len(bits, count)));
        }
    }
    let last = planes.iter().rposition(|(.., len)| *len >= 256);
    if last.is_none() {
        assert!(carried.iter().all(|&byte| byte == 0));
    }
    let mut raw = vec![0; tables.len()];
    for (p, (table, low, bits, len)) in planes.into_iter().enumerate() {
        let data = match last {
            Some(last) if last == p => [b.take(len - 256), carried].concat(),
            _ => b.take(len).to_vec(),
        };
        seen.insert("raw bits");
        seen.extend((last == Some(p)).then_some("carried raw bits"));
        let members = (0..tables.len()).filter(|&i| tables[i] == table);
        for (place, i) in members.enumerate() {
            raw[i] |= packed_value(&data, bits, place) << low;
        }
    }
    raw
}

/// Weights of `rows` rows of 384, and others that training has moved: some rows not at all, some by
/// a few steps of decay, the others by noise, now and then by a lot.
fn weights(dtype: &str, rows: usize, seed: u64) -> [Vec<u8>; 2] {
    let mut random = Random(seed);
    let mut pair = [Vec::new(), Vec::new()];
    for row in 0..rows {
        for _ in 0..384 {
            let (w, noise) = (random.weight() as f32, random.weight() as f32 * 0.01);
            let jump = if random.next().is_multiple_of(500) { 1.0 } else { 0.0 };
            let steps = 492 * (2 + random.next() as u32 % 2);
            let tuned = w + noise + jump;
            if dtype == "BF16" {
                let [w, tuned] = [w, tuned].map(half::bf16::from_f32);
                let tuned = if row % 3 == 0 { w } else { tuned };
                pair[0].extend_from_slice(&w.to_le_bytes());
                pair[1].extend_from_slice(&tuned.to_le_bytes());
            } else {
                let decayed = f32::from_bits(w.to_bits().wrapping_sub(steps));
                let tuned = if row % 3 == 0 { tuned } else { decayed };
                pair[0].extend_from_slice(&w.to_le_bytes());
                pair[1].extend_from_slice(&tuned.to_le_bytes());
            }
        }
    }
    pair
}

/// What differences can hold.
const FEATURES: [&str; 10] = [
    "a distance",
    "an escaped difference",
    "carried raw bits",
    "differences of 2 bytes",
    "differences of 4 bytes",
    "equal to the base",
    "listed values",
    "raw bits",
    "several choices of differences",
    "two classes of differences",
];

#[test]
fn the_specification_suffices_to_read_differences() {
    let (bf16, f32) = (weights("BF16", 700, 1), weights("F32", 500, 2));
    let equal = tensor("BF16", 384 * 400, Fill::Weights, 3);
    let file = |i: usize, first: usize| {
        matrices(&[
            ("0", "U8", None, vec![7; first]),
            ("a", "BF16", Some(384), bf16[i].clone()),
            ("b", "F32", Some(384), f32[i].clone()),
            ("c", "BF16", Some(384), equal.clone()),
        ])
    };
    let (base, tuned) = (file(0, 0x40), file(1, 0x90));
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("base.safetensors"), &base).expect("written");
    std::fs::write(at("tuned.safetensors"), &tuned).expect("written");
    run(dir.path(), &["pack", "base.safetensors"]).ok();
    run(dir.path(), &["pack", "tuned.safetensors", "--base", "base.bsz"]).ok();
    let archive = std::fs::read(at("tuned.bsz")).expect("read");
    assert_eq!(archive[8], 2);
    let mut seen = Seen::new();
    assert!(read_archive(&archive, &[base], &mut seen) == tuned);
    let missing: Vec<_> = FEATURES.iter().filter(|feature| !seen.contains(*feature)).collect();
    assert!(missing.is_empty(), "not reached: {missing:?}");
}
