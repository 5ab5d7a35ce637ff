//! Finds out what unknown bytes are: which floats, if any, and where they start.
//!
//! Every kind is tried at every offset within an element, and the one that codes the sample in the
//! fewest bits wins, if it beats zstd. Byte orders need no kinds of their own: the first byte of a
//! big-endian float is the top byte of the little-endian number that starts one byte behind it.

use super::{
    DEFAULT_BLOCK, Sample,
    cut::{cuts, zero_bits},
};
use crate::codec::ElementKind;

/// Kinds to try. The last ones are those whose mantissa, in big-endian files, is where the rest of
/// the exponent is looked for.
const KINDS: [ElementKind; 8] = [
    ElementKind::Float { width: 4, exponent: 8 },
    ElementKind::Float { width: 2, exponent: 8 },
    ElementKind::Float { width: 2, exponent: 5 },
    ElementKind::Float { width: 8, exponent: 11 },
    ElementKind::Float { width: 1, exponent: 4 },
    ElementKind::Float { width: 1, exponent: 5 },
    ElementKind::Float { width: 4, exponent: 7 },
    ElementKind::Float { width: 8, exponent: 7 },
];
/// The share of a sample that coding must save for a kind to be found, and to be kept.
const WORTH_FINDING: f64 = 0.03;
const WORTH_KEEPING: f64 = 0.015;
/// Most elements of a float tensor that are infinite or no number, and that are denormal.
const MOST_SPECIAL: f64 = 0.01;
const MOST_DENORMAL: f64 = 0.1;
/// zstd must do better by this share of the sample: it is tried on what has a kind, too.
const BETTER: f64 = 0.02;

/// Fewer bytes tell nothing.
const LEAST: usize = 1 << 10;

/// Bits of a byte that is certainly no top byte of a float, as few bytes tell. A thousand random
/// bytes seem to have 7.8.
const NOISE: f64 = 7.6;

/// What some bytes are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detected {
    /// Their kind.
    pub kind: ElementKind,
    /// Where the first element starts.
    pub phase: usize,
    /// The share of the bytes that coding saves, approximately.
    pub saving: f64,
    /// Whether they look like weights, and not like other numbers of this width.
    pub plausible: bool,
}

/// What `bytes` are; `None` if they seem to be no floats. If they were `before` a moment ago, that
/// is tried first. A few KiB are enough.
pub fn detect(bytes: &[u8], before: Option<(ElementKind, usize)>) -> Option<Detected> {
    let first = bytes.first()?;
    if bytes.len() < LEAST || bytes.iter().all(|byte| byte == first) || is_noise(bytes) {
        return None;
    }
    let kept = before.and_then(|(kind, phase)| Some((kind, phase, saving(bytes, kind, phase)?)));
    let found = kept.filter(|k| k.2 >= WORTH_KEEPING).or_else(|| {
        let all = KINDS.into_iter().flat_map(|kind| (0..kind.width()).map(move |at| (kind, at)));
        let all = all.filter_map(|(kind, phase)| Some((kind, phase, saving(bytes, kind, phase)?)));
        // The first one of several that are equally good.
        all.filter(|f| f.2 >= WORTH_FINDING).min_by(|a, b| b.2.total_cmp(&a.2))
    });
    let (kind, phase, saving) = found?;
    let zstd = zstd::bulk::compress(bytes, 1).map_or(bytes.len(), |z| z.len());
    let repeats = 1.0 - zstd as f64 / bytes.len() as f64;
    (repeats < saving + BETTER).then(|| {
        let plausible = is_plausible(bytes, kind, phase);
        Detected { kind, phase, saving, plausible }
    })
}

/// Whether no byte of any element up to the widest looks like that of a float: the quick answer for
/// what is compressed already.
fn is_noise(bytes: &[u8]) -> bool {
    const WIDEST: usize = 8;
    let mut counts = [[0u32; 256]; WIDEST];
    for element in bytes.as_chunks::<WIDEST>().0 {
        counts.iter_mut().zip(element).for_each(|(c, &byte)| c[usize::from(byte)] += 1);
    }
    let total = (bytes.len() / WIDEST) as f64;
    let entropy = |counts: &[u32; 256]| {
        let used = counts.iter().filter(|&&n| n > 0).map(|&n| f64::from(n) / total);
        -used.map(|share| share * share.log2()).sum::<f64>()
    };
    counts.iter().all(|counts| entropy(counts) > NOISE.min(total.log2() - 2.4))
}

/// The share of a sample that coding it as elements of `kind` from `phase` on saves.
fn saving(bytes: &[u8], kind: ElementKind, phase: usize) -> Option<f64> {
    let bytes = bytes.get(phase..)?;
    let bytes = &bytes[..bytes.len() / kind.width() * kind.width()];
    let sample = Sample { kind, bytes, row: None, tensor: bytes.len() as u64 };
    let bits = cuts(&sample).into_iter().map(|cut| cut.bits).min_by(f64::total_cmp)?;
    let zeros = zero_bits(&sample, DEFAULT_BLOCK).map_or(0.0, |(_, saved)| saved);
    Some(1.0 - bits / (8 * bytes.len()) as f64 + zeros)
}

/// Whether few elements are infinite, no numbers, or denormal, as far as their top bytes tell.
fn is_plausible(bytes: &[u8], kind: ElementKind, phase: usize) -> bool {
    let ElementKind::Float { width, exponent } = kind else { return false };
    if width == 1 {
        return false;
    }
    let (low, high) = if exponent == 5 { (4, 0x7c) } else { (1, 0x7f) };
    let (mut count, mut special, mut denormal) = (0, 0, 0);
    for element in bytes[phase..].chunks_exact(width.into()) {
        let top = element[usize::from(width) - 1] & 0x7f;
        if element.iter().any(|&byte| byte != 0) {
            count += 1;
            special += u32::from(top >= high);
            denormal += u32::from(top < low);
        }
    }
    let most = |share: f64| share * f64::from(count);
    f64::from(special) <= most(MOST_SPECIAL) && f64::from(denormal) <= most(MOST_DENORMAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that are distributed like weights.
    fn weights(n: usize) -> Vec<f64> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        (0..n).map(|_| (0..4).map(|_| uniform()).sum::<f64>() * 0.05).collect()
    }

    fn floats(kind: ElementKind, big_endian: bool) -> Vec<u8> {
        let bytes = |w: f64| {
            let mut bytes = match kind {
                ElementKind::Float { width: 4, .. } => (w as f32).to_le_bytes().to_vec(),
                ElementKind::Float { width: 8, .. } => w.to_le_bytes().to_vec(),
                ElementKind::Float { exponent: 5, .. } => {
                    half::f16::from_f64(w).to_le_bytes().to_vec()
                }
                _ => half::bf16::from_f64(w).to_le_bytes().to_vec(),
            };
            if big_endian {
                bytes.reverse();
            }
            bytes
        };
        weights(4096).into_iter().flat_map(bytes).collect()
    }

    #[test]
    fn floats_are_found_at_any_offset_and_in_any_byte_order() {
        for kind in &KINDS[..4] {
            for skipped in 0..kind.width() {
                let bytes = &floats(*kind, false)[skipped..];
                let found = detect(bytes, None).expect("weights");
                let phase = (kind.width() - skipped) % kind.width();
                assert_eq!((found.kind, found.phase), (*kind, phase), "{kind:?} at {skipped}");
                assert!(found.plausible && found.saving > 0.05, "{found:?}");
                let again = detect(bytes, Some((found.kind, found.phase)));
                assert_eq!(again.expect("the same"), found);
                let big = &floats(*kind, true)[skipped..];
                let found = detect(big, None).expect("weights");
                assert_eq!(found.kind.width(), kind.width());
                assert_eq!((found.phase + skipped) % kind.width(), 1, "{kind:?} at {skipped}");
                assert!(found.plausible && found.saving > 0.05, "{found:?}");
            }
        }
    }

    #[test]
    fn what_is_no_float_is_not_found() {
        let noise: Vec<u8> = weights(8192).iter().map(|w| ((w * 1e9) as i64 >> 3) as u8).collect();
        assert_eq!(detect(&noise, None), None);
        let text = "The quick brown fox jumps over the lazy dog; 0123456789 times.\n".repeat(200);
        assert_eq!(detect(text.as_bytes(), None), None);
        assert_eq!(detect(&vec![0; 8192], None), None);
        assert_eq!(detect(&[], None), None);
        assert_eq!(detect(&[1, 2, 3], None), None);
    }

    #[test]
    fn small_integers_are_not_plausible() {
        let bytes: Vec<u8> =
            weights(4096).iter().flat_map(|w| ((w * 4000.0) as i16).to_le_bytes()).collect();
        assert!(detect(&bytes, None).is_none_or(|found| !found.plausible));
    }
}
