//! Differences with arbitrary damage: every decoder gives the same bytes or the same error, and
//! stays within its memory.
//!
//! An input is either a literal model and payload, or a recipe for a model, for elements and those
//! of their base, and for damage to their encoding.
#![no_main]

use arbitrary::Unstructured;
use bszfs::codec::{
    self, Coding, Cut, Delta, Encoder, EntropyModel, LANES,
    model::{ALPHABET, FrequencyTable},
};
use bszfs_fuzz::{Random, Tested, decode_onto};
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

/// `skew len(4) seed(8) model_len(2) model payload`
fn given(u: &mut Unstructured<'_>) -> Tested {
    let skew = usize::from(u.arbitrary::<u8>().ok()? % 64);
    let len = u.arbitrary::<u32>().ok()? as usize % (MOST + 1);
    let mut random = Random(u.arbitrary().ok()?);
    let n = u.arbitrary::<u16>().ok()?.into();
    let model = EntropyModel::read_from(u.bytes(n).ok()?).ok()?;
    let base: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
    let payload = u.bytes(u.len()).ok()?;
    let _ = decode_onto(Coding::Delta, Some(&model), payload, len, &base, skew);
    Some(())
}

fn recipe(u: &mut Unstructured<'_>) -> arbitrary::Result<Tested> {
    let skew = usize::from(u.arbitrary::<u8>()? % 64);
    let mut r = Random(u.arbitrary()?);
    let model = model(u)?;
    let (chunk, base) = elements(u, &mut r, &model)?;
    let (coding, mut payload) = codec::encode_differences(&chunk, &base, &Encoder::new(&model));
    let mut wire = Vec::new();
    model.write_to(&mut wire);
    let model = EntropyModel::read_from(&wire).expect("a model is what it was written from");
    let back = decode_onto(coding, Some(&model), &payload, chunk.len(), &base, skew);
    assert!(back.as_ref() == Ok(&chunk), "not what went in: {:?}", back.err());
    while !u.is_empty() && !payload.is_empty() {
        let (what, at, byte) = (u.arbitrary::<u8>()?, u.arbitrary::<u16>()?, u.arbitrary::<u8>()?);
        let n = payload.len();
        match what % 6 {
            // The head, in which every byte matters.
            0..2 => payload[usize::from(at) % n.min(64)] ^= byte,
            2 | 3 => payload[usize::from(at) % n] ^= byte,
            4 => payload.truncate(n - usize::from(at) % n.min(600)),
            _ => payload.extend((0..at % 600).map(|_| byte)),
        }
    }
    let _ = decode_onto(coding, Some(&model), &payload, chunk.len(), &base, skew);
    Ok(Some(()))
}

fn model(u: &mut Unstructured<'_>) -> arbitrary::Result<EntropyModel> {
    let width = 1u8 << (u.arbitrary::<u8>()? % 4);
    let threshold: u64 = if u.arbitrary()? { u.arbitrary()? } else { 0 };
    let threshold = threshold & (u64::MAX >> (65 - 8 * width));
    let classes = if threshold == 0 { 1 } else { 2 };
    let block = LANES * u.int_in_range(1..=8)?;
    let (mut cuts, mut tables) = (Vec::new(), Vec::new());
    for _ in 0..classes * u.int_in_range(0..=4)? {
        let raw_bits = u.int_in_range(0..=8 * width - 6)?;
        // With a list, every second value below 0 and every one above.
        let listed = raw_bits == 0 && u.arbitrary()?;
        let value = |i: usize| if i < 31 { 2 * i as i64 - 62 } else { i as i64 - 31 };
        let values = listed.then(|| Box::new(std::array::from_fn(value)));
        cuts.push(Cut { raw_bits, values });
        let (peak, slope) = (u.arbitrary::<u8>()? % 64, u.arbitrary::<u8>()? % 5);
        let count = |s: u8| 1u64 << (20 - u64::from(s.abs_diff(peak)) * u64::from(slope) / 16);
        tables.push(FrequencyTable::from_counts(
            &(0..ALPHABET as u8).map(count).collect::<Vec<_>>(),
        ));
    }
    let delta = Delta { base: 0, distance: 0, threshold, cuts };
    Ok(EntropyModel::of_differences(delta, width, block, tables).expect("within all bounds"))
}

/// Elements and those of their base, from which few differ by much.
fn elements(
    u: &mut Unstructured<'_>,
    r: &mut Random,
    model: &EntropyModel,
) -> arbitrary::Result<(Vec<u8>, Vec<u8>)> {
    let width = usize::from(model.layout().width());
    let count = 1 + usize::from(u.arbitrary::<u16>()?) % (MOST / 8);
    let most = u.int_in_range(0..=8 * width as u32 - 1)?;
    let equal = u.ratio(1, 16)?;
    let (mut chunk, mut base) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let of_base = r.next();
        let bits = r.below(u64::from(most) + 1);
        let difference = (r.next() & ((1 << bits) - 1)).wrapping_sub((1 << bits) >> 1);
        let element = if equal { of_base } else { of_base.wrapping_add(difference) };
        chunk.extend_from_slice(&element.to_le_bytes()[..width]);
        base.extend_from_slice(&of_base.to_le_bytes()[..width]);
    }
    Ok((chunk, base))
}
