//! Round trips of differences through every decoder of this machine.

use super::{
    model::{ALPHABET, FrequencyTable},
    *,
};

/// Pairs of elements of `width` bytes whose differences are small where the base's are.
fn pair(width: usize, count: usize) -> (Vec<u8>, Vec<u8>) {
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        seed >> 16
    };
    let mut pair = (Vec::new(), Vec::new());
    for _ in 0..count {
        let base = next() << 3;
        let noise = next();
        let bits = (noise & 15) as u32 * width as u32 / 3;
        let difference = (next() & ((1 << bits) - 1)).wrapping_sub((1 << bits) >> 1);
        let element = base.wrapping_add(difference);
        pair.0.extend_from_slice(&element.to_le_bytes()[..width]);
        pair.1.extend_from_slice(&base.to_le_bytes()[..width]);
    }
    pair
}

fn table(seed: u64) -> FrequencyTable {
    let counts = |i: u64| 1 + (i + seed) * 31 % 97 + if i == 31 { 200 } else { 0 };
    FrequencyTable::from_counts(&(0..ALPHABET as u64).map(counts).collect::<Vec<_>>())
}

fn model(width: usize, threshold: u64, cuts: Vec<Cut>) -> EntropyModel {
    let tables = (0..cuts.len() as u64).map(table).collect();
    let delta = Delta { base: 0, distance: 0, threshold, cuts };
    EntropyModel::of_differences(delta, width as u8, 2 * LANES, tables).expect("valid")
}

fn cut(raw_bits: u8) -> Cut {
    Cut { raw_bits, values: None }
}

/// A cut with values that are not neighbours.
fn listed(raw_bits: u8) -> Cut {
    let value = |i: usize| i as i64 * 2 - if i < 20 { 62 } else { 61 };
    Cut { raw_bits, values: Some(Box::new(std::array::from_fn(value))) }
}

/// Models of all kinds for elements of `width` bytes.
fn models(width: usize) -> Vec<EntropyModel> {
    let half = 1u64 << (8 * width - 2);
    let most = 8 * width as u8 - 6;
    let one = [vec![cut(0)], vec![cut(most)], vec![cut(1), cut(2), listed(0)]];
    let two = [
        vec![cut(0), cut(0)],
        vec![cut(0), cut(1)],
        vec![cut(most), cut(0), cut(0), cut(0), cut(2), cut(1), listed(1), cut(2)],
        vec![cut(1), listed(0)],
    ];
    let one = one.into_iter().map(|cuts| model(width, 0, cuts));
    one.chain(two.into_iter().map(|cuts| model(width, half, cuts))).collect()
}

fn decode(
    decoder: &dyn ChunkDecoder,
    model: &EntropyModel,
    base: &[u8],
    payload: &[u8],
) -> Result<Vec<u8>> {
    let mut out = base.to_vec();
    decoder.decode(Coding::Delta, Some(model), payload, &mut out).map(|()| out)
}

#[test]
fn every_decoder_restores_differences_of_every_width_and_length() {
    let counts: &[usize] = if cfg!(miri) {
        &[700]
    } else {
        &[1, 63, 64, 127, 128, 129, 2047, 2048, 2049, 4097, 20_001]
    };
    for width in [1, 2, 4, 8] {
        for &count in counts {
            let (chunk, base) = pair(width, count);
            for model in models(width) {
                let encoder = Encoder::new(&model);
                let payload = encoder.differences(&chunk, &base).expect("whole elements");
                for decoder in decoders() {
                    let what =
                        || format!("{count} of {width}, {:?}, {}", model.delta(), decoder.name());
                    let out = decode(&*decoder, &model, &base, &payload)
                        .unwrap_or_else(|e| panic!("{}: {e}", what()));
                    assert!(out == chunk, "{}", what());
                }
            }
        }
    }
}

#[test]
fn a_chunk_that_equals_its_base_takes_four_bytes_and_one_that_does_not_shrink_stays_raw() {
    let (chunk, base) = pair(2, 5000);
    let (none, one) = (model(2, 0, vec![]), model(2, 0, vec![cut(0)]));
    for model in [&none, &one] {
        let encoder = Encoder::new(model);
        let (coding, payload) = encode_differences(&base, &base, &encoder);
        assert_eq!((coding, &payload[..]), (Coding::Delta, &[1, 0, 0, 0][..]));
        for decoder in decoders() {
            assert!(decode(&*decoder, model, &base, &payload).expect("decodes") == base);
        }
    }
    assert_eq!(encode_differences(&chunk, &base, &Encoder::new(&none)).0, Coding::Raw);
    let noise: Vec<u8> =
        (0..10_000u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect();
    assert_eq!(encode_differences(&noise, &base, &Encoder::new(&one)).0, Coding::Raw);
}

#[test]
fn damaged_differences_are_refused_or_decode_to_something_in_bounds() {
    let (chunk, base) = pair(2, 3000);
    let mut refused = 0;
    for model in models(2) {
        let payload = Encoder::new(&model).differences(&chunk, &base).expect("whole elements");
        let reference = reference();
        let mut check = |payload: &[u8]| {
            let expected = decode(&*reference, &model, &base, payload).map_err(|e| e.to_string());
            refused += usize::from(expected.is_err());
            for decoder in decoders() {
                let got = decode(&*decoder, &model, &base, payload).map_err(|e| e.to_string());
                assert!(got == expected, "{} differs from the reference", decoder.name());
            }
        };
        for n in (0..payload.len()).step_by(97).chain(payload.len() - 3..payload.len()) {
            check(&payload[..n]);
        }
        check(&[&payload[..], &[0]].concat());
        for at in (0..24).chain((24..payload.len()).step_by(211)) {
            let mut damaged = payload.clone();
            damaged[at] ^= 1 << (at % 8);
            check(&damaged);
        }
    }
    assert!(refused > 100);
}

#[test]
fn a_model_and_a_coding_that_do_not_belong_together_are_refused() {
    let differences = model(2, 0, vec![cut(0)]);
    let layout = planes::Layout::cut(2, true, 8, 0);
    let planes =
        EntropyModel::new(layout, vec![1], 128, vec![], vec![FrequencyTable::from_counts(&[3, 1])]);
    let planes = planes.expect("valid");
    for decoder in decoders() {
        let mut out = [0; 512];
        for (coding, model) in [
            (Coding::Delta, None),
            (Coding::Delta, Some(&planes)),
            (Coding::Planes, Some(&differences)),
        ] {
            assert!(decoder.decode(coding, model, &[1, 0, 0, 0], &mut out).is_err());
        }
    }
}

#[test]
fn a_fitted_model_codes_what_changed_little_in_little() {
    for (width, exponent) in [(2u8, 8), (2, 5), (4, 8), (1, 4)] {
        let kind = ElementKind::Float { width, exponent };
        let width = usize::from(width);
        let (_, base) = pair(width, 60_000);
        let mut chunk = base.clone();
        chunk.iter_mut().step_by(40 * width).for_each(|byte| *byte ^= 1);
        let sample = DifferenceSample {
            kind,
            bytes: &chunk,
            base: &base,
            row: None,
            tensor: chunk.len() as u64,
        };
        let model = fit_differences(sample, 2, -7).expect("fits");
        assert_eq!(model.delta().map(|d| (d.base, d.distance)), Some((2, -7)));
        let (coding, payload) = encode_differences(&chunk, &base, &Encoder::new(&model));
        assert_eq!(coding, Coding::Delta);
        // A change in one of forty elements: 0.17 bits for where, 1 for which way.
        assert!(payload.len() < 600 + 60_000 / 30, "{} bytes of {width}", payload.len());
        for decoder in decoders() {
            assert!(decode(&*decoder, &model, &base, &payload).expect("decodes") == chunk);
        }
    }
}
