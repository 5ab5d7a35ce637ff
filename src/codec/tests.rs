//! Round trips through every encoder and decoder of this machine, and the SIMD encoder's agreement
//! with the scalar one.

use super::{
    encode::{Costs, EncodeKernel, TableEncoder, Words},
    model::{FrequencyTable, ValueMap},
    planes::Layout,
    *,
};

/// Elements of `width` bytes. Their top eight bits are mostly one of 16 values, the others are
/// noise.
fn elements(width: usize, count: usize) -> Vec<u8> {
    let mut seed = 1u64;
    let mut element = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let top = 0x30 + (seed >> 60) + if seed >> 52 & 127 == 0 { 0x60 } else { 0 };
        let low = 8 * width - 8;
        top << low | seed >> 8 & ((1 << low) - 1)
    };
    (0..count).flat_map(|_| element().to_le_bytes().into_iter().take(width)).collect()
}

/// Every decoder restores `bytes`, which are encoded in planes.
fn assert_round_trip(bytes: &[u8], model: &EntropyModel, what: &str) {
    let (coding, payload) = encode(bytes, Some(&Encoder::new(model)), false);
    assert_eq!(coding, Coding::Planes, "{what}");
    for kernel in simd::encode_kernels().into_iter().chain([EncodeKernel::SCALAR]) {
        let encoder = Encoder::with_kernel(model, kernel, &std::sync::Arc::default());
        // Twice, since the second time uses what the first one has left.
        for _ in 0..2 {
            assert!(encoder.planes(bytes).as_ref() == Some(&payload), "{what}");
        }
    }
    for decoder in decoders() {
        let mut out = vec![0xaa; bytes.len()];
        decoder.decode(coding, Some(model), &payload, &mut out).expect("decodes");
        assert!(out == bytes, "{what}, {}", decoder.name());
    }
}

#[test]
fn every_decoder_restores_chunks_of_every_element_width() {
    let counts: &[usize] =
        if cfg!(miri) { &[1500] } else { &[1500, 2048, 4095, 4096, 4097, 6144, 20_001] };
    let table = |seed: u64| {
        let counts: Vec<u64> = (0..17).map(|i| (i + seed) * 31 % 97).collect();
        FrequencyTable::from_counts(&counts)
    };
    let columns: Vec<u8> = (0..131).map(|i| i % 3).collect();
    for (width, columns, choices) in
        [(1, vec![], 1), (2, vec![], 4), (4, columns.clone(), 1), (8, columns, 2)]
    {
        let classes = if columns.is_empty() { 1 } else { 3 };
        let tables = (0..choices * classes).map(table).collect();
        let layout = Layout::cut(width, false, 8, 0);
        let values = (0x30..0x40).collect();
        let model = EntropyModel::new(layout, values, 2 * LANES, columns, tables).expect("valid");
        for &count in counts {
            let what = format!("{count} elements of {width} bytes");
            assert_round_trip(&elements(width.into(), count), &model, &what);
        }
    }
}

#[test]
#[cfg(target_arch = "aarch64")]
fn neon_is_among_the_decoders_that_are_compared() {
    let names: Vec<_> = decoders().iter().map(|d| d.name()).collect();
    assert_eq!(names, ["neon", "scalar"]);
}

#[test]
fn computed_symbol_values_decode_to_the_same_bytes_as_looked_up_ones() {
    for skipped in [vec![], vec![(1, 3), (2, 40), (15, 1)], vec![(3, 192)], vec![(3, 193)]] {
        let gap = |i: u16| skipped.iter().filter(|(at, _)| *at <= i).map(|(_, n)| n).sum::<u16>();
        let values: Vec<u16> = (0..63).map(|i| 430 + i + gap(i)).collect();
        let tables = vec![FrequencyTable::from_counts(&[1; 64])];
        let layout = Layout::cut(2, true, 10, 0);
        let model = EntropyModel::new(layout, values.clone(), 512, vec![], tables).expect("valid");
        let computed = ValueMap::new(&model).linear.is_some();
        assert_eq!(computed, skipped.iter().map(|(_, n)| n).sum::<u16>() <= 192);
        // Values that have a symbol, and every 50th time one that may not.
        let value = |i: usize| {
            if i.is_multiple_of(50) { (i % 1024) as u16 } else { values[i * 7919 % values.len()] }
        };
        let element = |i: usize| (value(i) << 6 | (i % 64) as u16).rotate_right(1).to_le_bytes();
        let bytes: Vec<u8> = (0..20_000).flat_map(element).collect();
        assert_round_trip(&bytes, &model, &format!("{skipped:?}"));
    }
}

/// Tables of all shapes with symbols that follow them and symbols that do not.
#[test]
fn the_simd_encoder_gives_the_same_words_and_states_as_the_scalar_one() {
    let Some(fast) = simd::encode_kernels().into_iter().next() else { return };
    let scalar = EncodeKernel::SCALAR;
    let mut seed = 7u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    for shape in 0..60u64 {
        let live = 2 + (random() % 63) as usize;
        let counts: Vec<u64> = (0..live as u64)
            .map(|s| match shape % 4 {
                0 => 1,
                1 => 1 << (s % 30),
                2 if s == shape % live as u64 => 1 << 40,
                2 => 1,
                _ => random() % 1000,
            })
            .collect();
        let table = TableEncoder::new(&FrequencyTable::from_counts(&counts));
        let symbols: Vec<u8> = (0..LANES * 40)
            .map(|i| if i % 3 == 0 { (random() as usize % live) as u8 } else { table.likely })
            .collect();
        let [expected, actual] = [&scalar, &fast].map(|kernel| {
            let mut states: [u32; LANES] = std::array::from_fn(|i| STATE_LOW + 511 * i as u32);
            let mut words = Words { buffer: vec![0; symbols.len()], free: symbols.len() };
            (kernel.rounds)(&[&table; 40], &symbols, &mut states, &mut words);
            (words.buffer[words.free..].to_vec(), states)
        });
        assert!(expected == actual, "shape {shape} of {live} symbols");
        let costs: Costs = std::array::from_fn(|_| std::array::from_fn(|_| random() as u8));
        for len in [0, 1, 63, 64, 65, 384, 2048] {
            let symbols = &symbols[..len];
            assert_eq!((fast.costs)(&costs, symbols), (scalar.costs)(&costs, symbols));
        }
    }
}
