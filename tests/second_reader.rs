//! A second reader, written from `docs/FORMAT.md` alone: naive, one element at a time, sharing no code with the library.

use sha2::{Digest, Sha256};

#[path = "common/samples.rs"]
mod samples;

fn le(b: &[u8], at: usize, n: usize) -> u64 {
    (0..n).map(|i| u64::from(b[at + i]) << (8 * i)).sum()
}

struct Plane {
    bits: u64,
    tables: Vec<(u64, Vec<u64>)>,
}

fn model(b: &[u8]) -> (usize, bool, Vec<Plane>) {
    let (width, rotated, count) = (b[0] as usize, b[1] == 1, b[2] as usize);
    let mut at = 4;
    let planes = (0..count)
        .map(|_| {
            let (bits, tables) = (u64::from(b[at]), b[at + 1]);
            at += 2;
            let tables = (0..tables)
                .map(|_| {
                    let (base, n) = (le(b, at, 2), le(b, at + 2, 2));
                    at += 4;
                    let freqs = (0..n)
                        .map(|_| {
                            let mut f = u64::from(b[at]);
                            at += 1;
                            if f >= 128 {
                                f = f - 128 + 128 * u64::from(b[at]);
                                at += 1;
                            }
                            f
                        })
                        .collect();
                    (base, freqs)
                })
                .collect();
            Plane { bits, tables }
        })
        .collect();
    assert_eq!(at, b.len());
    (width, rotated, planes)
}

fn stored_value(data: &[u8], bits: u64, i: usize) -> u64 {
    let (round, i) = (&data[i / 64 * 8 * bits as usize..], i % 64);
    let (mut at, mut shift, mut value) = (0, 0, 0);
    for p in [8usize, 4, 2, 1] {
        if bits as usize & p != 0 {
            let byte = u64::from(round[at + i % (8 * p)]);
            value |= (byte >> (i / (8 * p) * p) & ((1 << p) - 1)) << shift;
            at += 8 * p;
            shift += p;
        }
    }
    value
}

/// For each slot: its symbol, and its number among those of the symbol.
fn slots(freqs: &[u64]) -> Vec<(usize, u64)> {
    let buckets = if freqs.len() <= 128 { 128 } else { 256 };
    let size = 4096 / buckets as u64;
    let mut own: Vec<u64> = (0..buckets).map(|b| freqs.get(b).copied().unwrap_or(0)).collect();
    let mut other: Vec<usize> = (0..buckets).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..buckets).partition(|&b| own[b] < size);
    while !small.is_empty() {
        let (s, l) = (small.remove(0), large[0]);
        other[s] = l;
        own[l] -= size - own[s];
        if own[l] < size {
            small.push(large.remove(0));
        }
    }
    let mut numbered = vec![(0, 0); 4096];
    let mut next = vec![0; buckets];
    for pass in 0..2 {
        for (slot, numbered) in numbered.iter_mut().enumerate() {
            let (bucket, place) = (slot / size as usize, slot as u64 % size);
            let is_own = place < own[bucket];
            let symbol = if is_own { bucket } else { other[bucket] };
            if is_own == (pass == 0) {
                *numbered = (symbol, next[symbol]);
                next[symbol] += 1;
            }
        }
    }
    numbered
}

fn coded_values(data: &[u8], tables: &[(u64, Vec<u64>)], n: usize) -> (Vec<u64>, usize) {
    let slots: Vec<_> = tables.iter().map(|t| slots(&t.1)).collect();
    let choices = if tables.len() > 1 { n.div_ceil(512).div_ceil(4) } else { 0 };
    let (choice, data) = data.split_at(choices);
    let mut words = [0, 1].map(|s| le(data, 4 * s, 4) as usize);
    let len = 264 + 2 * (words[0] + words[1]);
    let mut at = [264, 264 + 2 * words[0]];
    let mut states: Vec<u64> = (0..64).map(|i| le(data, 8 + 4 * i, 4)).collect();
    let values = (0..n)
        .map(|i| {
            let t = if choices > 0 { usize::from(choice[i / 2048] >> (i / 512 % 4 * 2) & 3) } else { 0 };
            let x = &mut states[i % 64];
            let (s, number) = slots[t][*x as usize % 4096];
            *x = tables[t].1[s] * (*x / 4096) + number;
            if *x < 1 << 16 {
                let stream = i % 64 / 32;
                words[stream] -= 1;
                *x = (*x << 16) + le(data, at[stream], 2);
                at[stream] += 2;
            }
            if s == 0 { 0 } else { tables[t].0 + s as u64 }
        })
        .collect();
    assert!(words == [0, 0] && states.iter().all(|&x| x == 1 << 16));
    (values, choices + len)
}

fn planes(stored: &[u8], m: &(usize, bool, Vec<Plane>), out_len: usize) -> Vec<u8> {
    let (width, rotated, planes) = m;
    let n = out_len / width;
    assert_eq!(n * width, out_len);
    let mut at = 4 * planes.len();
    let mut low = 8 * *width as u64;
    let mut elements = vec![0u64; n];
    for (p, plane) in planes.iter().enumerate() {
        low -= plane.bits;
        let values: Vec<u64> = match stored[4 * p] {
            0 => {
                let data = &stored[at..];
                at += n.div_ceil(64) * 8 * plane.bits as usize;
                (0..n).map(|i| stored_value(data, plane.bits, i)).collect()
            }
            1 => vec![le(stored, 4 * p + 2, 2); n],
            2 => {
                let (values, len) = coded_values(&stored[at..], &plane.tables, n);
                at += len;
                values
            }
            mode => panic!("mode {mode}"),
        };
        elements.iter_mut().zip(values).for_each(|(e, v)| *e |= v << low);
    }
    assert_eq!((at, low), (stored.len(), 0));
    let bits = 8 * *width as u32;
    let unrotate = |e: u64| if *rotated { e >> 1 | (e & 1) << (bits - 1) } else { e };
    elements.into_iter().flat_map(|e| unrotate(e).to_le_bytes()[..*width].to_vec()).collect()
}

fn read_archive(a: &[u8]) -> Vec<u8> {
    assert_eq!(&a[..8], b"\x89BSZ\r\n\x1a\n");
    let f = &a[a.len() - 128..];
    assert_eq!((&f[122..], le(f, 120, 2)), (&b"BSZEND"[..], 1));
    let (original_len, index_at, index_len) = (le(f, 0, 8), le(f, 64, 8) as usize, le(f, 72, 8) as usize);
    let (chunks, models) = (le(f, 88, 4) as usize, le(f, 92, 4) as usize);
    let index = &a[index_at..index_at + index_len];
    let ends_at = 32 * chunks + 32 * (original_len.saturating_sub(1) >> 22) as usize;
    let blobs = &index[ends_at + 4 * models..];
    let end = |i: usize| le(index, ends_at + 4 * i, 4) as usize;
    let models: Vec<_> =
        (0..models).map(|i| model(&blobs[if i == 0 { 0 } else { end(i - 1) }..end(i)])).collect();
    let mut out = Vec::new();
    for c in 0..chunks {
        let r = &index[32 * c..32 * c + 32];
        let stop = if c + 1 < chunks { le(index, 32 * (c + 1), 8) } else { original_len };
        let len = (stop - le(r, 0, 8)) as usize;
        let at = le(r, 8, 8) as usize;
        let stored = &a[at..at + le(r, 24, 4) as usize];
        let decoded = match r[31] {
            0 => stored.to_vec(),
            1 => zstd::bulk::decompress(stored, len).expect("zstd"),
            2 => planes(stored, &models[le(r, 28, 3) as usize], len),
            coding => panic!("coding {coding}"),
        };
        assert_eq!(twox_hash::XxHash3_64::oneshot(&decoded), le(r, 16, 8), "chunk {c}");
        out.extend(decoded);
    }
    assert_eq!(Sha256::digest(&out)[..], f[8..40]);
    out
}

#[test]
fn the_specification_suffices_to_read_what_the_packer_writes() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, bytes) in samples::samples() {
        let archive = samples::pack_bytes(dir.path(), "x.safetensors", &bytes, 256 << 10);
        assert!(read_archive(&archive) == bytes, "{name}");
    }
}
