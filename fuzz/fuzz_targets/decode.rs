//! Chunks with arbitrary damage: every decoder gives the same bytes or the same error, and stays
//! within its memory.
//!
//! An input is either a literal model and payload, or a recipe for a model, for matching elements,
//! and for damage to their encoding.
#![no_main]

use arbitrary::Unstructured;
use bszfs::codec::{
    self, Coding, Encoder, EntropyModel, LANES, model::FrequencyTable, planes::Layout,
};
use bszfs_fuzz::{Random, Tested, decode};
use libfuzzer_sys::fuzz_target;

/// The most decoded bytes.
const MOST: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let _ = match u.arbitrary::<u8>() {
        Ok(n) if n & 1 == 0 => given(&mut u),
        _ => recipe(&mut u).ok().flatten(),
    };
});

/// `coding skew len(4) model_len(2) model payload`
fn given(u: &mut Unstructured<'_>) -> Tested {
    let coding = Coding::from_wire(u.arbitrary::<u8>().ok()? % 3).ok()?;
    let skew = usize::from(u.arbitrary::<u8>().ok()? % 64);
    let len = u.arbitrary::<u32>().ok()? as usize % (MOST + 1);
    let n = u.arbitrary::<u16>().ok()?.into();
    let model = match u.bytes(n).ok()? {
        [] => None,
        wire => Some(EntropyModel::read_from(wire).ok()?),
    };
    let payload = u.bytes(u.len()).ok()?;
    let _ = decode(coding, model.as_ref(), payload, len, skew);
    Some(())
}

fn recipe(u: &mut Unstructured<'_>) -> arbitrary::Result<Tested> {
    let skew = usize::from(u.arbitrary::<u8>()? % 64);
    let mut r = Random(u.arbitrary()?);
    let model = model(u, &mut r)?;
    let chunk = elements(u, &mut r, &model)?;
    let encoder = Encoder::new(&model);
    let (coding, mut payload) = codec::encode(&chunk, Some(&encoder), false);
    let mut wire = Vec::new();
    model.write_to(&mut wire);
    let model = EntropyModel::read_from(&wire).expect("a model is what it was written from");
    let needed = (coding == Coding::Planes).then_some(&model);
    let back = decode(coding, needed, &payload, chunk.len(), skew);
    assert!(back.as_ref() == Ok(&chunk), "not what went in: {:?}", back.err());
    let mut len = chunk.len();
    while !u.is_empty() && !payload.is_empty() {
        let (what, at, byte) = (u.arbitrary::<u8>()?, u.arbitrary::<u16>()?, u.arbitrary::<u8>()?);
        match what % 8 {
            // The head, in which every byte matters.
            0..3 => {
                let n = payload.len().min(64);
                payload[usize::from(at) % n] ^= byte;
            }
            3 | 4 => {
                let n = payload.len();
                payload[usize::from(at) % n] ^= byte;
            }
            5 => payload.truncate(payload.len() - usize::from(at) % payload.len().min(600)),
            6 => payload.extend((0..at % 600).map(|_| byte)),
            _ => len = (len + usize::from(at)).saturating_sub(usize::from(byte) * 64).min(MOST),
        }
    }
    let _ = decode(coding, needed, &payload, len, skew);
    Ok(Some(()))
}

fn model(u: &mut Unstructured<'_>, r: &mut Random) -> arbitrary::Result<EntropyModel> {
    let width = 1u8 << (u.arbitrary::<u8>()? % 4);
    let rotated = u.arbitrary()?;
    let symbol_bits = u.int_in_range(1..=(8 * width).min(16))?;
    // Planes end at every set bit and at every byte boundary.
    let ends: u64 = u.arbitrary()?;
    let mut planes = Vec::new();
    let mut top = 8 * width - symbol_bits;
    for low in (0..top).rev() {
        if low % 8 == 0 || ends >> low & 1 == 1 {
            planes.push(top - low);
            top = low;
        }
    }
    let layout = Layout::new(width, rotated, symbol_bits, &planes).expect("planes within bytes");
    let mask = u16::MAX >> (16 - symbol_bits);
    let (base, apart) = (u.arbitrary::<u16>()?, u.arbitrary::<bool>()?);
    let value = |i: u16| (if apart { r.next() as u16 } else { base.wrapping_add(i) }) & mask;
    let mut values: Vec<u16> = (0..u.int_in_range(1..=63)?).map(value).collect();
    values.sort_unstable();
    values.dedup();
    let block = LANES * if u.ratio(1, 8)? { 1 << 20 } else { u.int_in_range(1..=8)? };
    let (columns, classes) = (u.int_in_range(LANES..=4 * LANES)?, u.int_in_range(1..=8u8)?);
    let columns: Vec<u8> = match classes {
        1 => Vec::new(),
        n => (0..columns)
            .map(|i| if i < n.into() { i as u8 } else { r.below(n.into()) as u8 })
            .collect(),
    };
    let choices = u.int_in_range(1..=4u8)?;
    let mut tables = Vec::new();
    for _ in 0..classes * choices {
        let (shape, seed) = (u.arbitrary::<u8>()?, u.arbitrary::<u8>()?);
        let mut r = Random(seed.into());
        let count = |i: usize| match shape % 4 {
            0 => 1,
            1 => 1 << (r.next() % (1 + u64::from(shape / 8))),
            2 => 1 << (i + usize::from(seed)) % (values.len() + 1) % 40,
            _ => {
                if i == usize::from(seed) % (values.len() + 1) {
                    1 << 20
                } else {
                    u64::from(shape / 4)
                }
            }
        };
        tables
            .push(FrequencyTable::from_counts(&(0..=values.len()).map(count).collect::<Vec<_>>()));
    }
    Ok(EntropyModel::new(layout, values, block, columns, tables).expect("within all bounds"))
}

/// Elements distributed as in the tables.
fn elements(
    u: &mut Unstructured<'_>,
    r: &mut Random,
    model: &EntropyModel,
) -> arbitrary::Result<Vec<u8>> {
    let layout = model.layout();
    let width = usize::from(layout.width());
    let count = 1 + usize::from(u.arbitrary::<u16>()?) % (MOST / 8);
    let constant = u.ratio(1, 16)?;
    // Each plane is zero, constant, zero in most blocks, or noise.
    let modes: [u8; 64] =
        if u.arbitrary()? { [u.arbitrary()?; 64] } else { std::array::from_fn(|_| r.next() as u8) };
    let dense = |i: usize| (i / model.block() % 16).is_multiple_of(7);
    let mut out = Vec::with_capacity(count * width);
    let draws: Vec<Vec<u8>> = model.tables().iter().map(|t| slots(t)).collect();
    let choices: [usize; 16] = std::array::from_fn(|_| r.below(model.choices() as u64) as usize);
    for i in 0..count {
        let class =
            model.columns().get(i % model.columns().len().max(1)).map_or(0, |&c| usize::from(c));
        let draw = &draws[choices[i / model.block() % 16] * model.classes() + class];
        let symbol =
            usize::from(draw[if constant { 0 } else { r.below(draw.len() as u64) as usize }]);
        let top = model
            .values()
            .get(symbol)
            .map_or_else(|| r.next() & (1 << layout.symbol_bits()) - 1, |&v| v.into());
        let mut e = top << (8 * width - usize::from(layout.symbol_bits()));
        for (plane, mode) in layout.planes().iter().zip(modes) {
            let value = match mode % 4 {
                0 => 0,
                1 => mode,
                2 if !dense(i) => 0,
                _ => r.next() as u8,
            };
            e |= u64::from(value & plane.mask()) << plane.low;
        }
        if layout.rotated() {
            let bits = 8 * width as u32;
            e = e >> 1 | (e & 1) << (bits - 1);
        }
        out.extend_from_slice(&e.to_le_bytes()[..width]);
    }
    Ok(out)
}

/// Each symbol as often as its frequency.
fn slots(table: &FrequencyTable) -> Vec<u8> {
    table
        .frequencies()
        .iter()
        .enumerate()
        .flat_map(|(s, &f)| std::iter::repeat_n(s as u8, f.into()))
        .collect()
}
