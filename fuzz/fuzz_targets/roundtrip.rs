//! Any bytes as elements of any kind come back through every decoder, and never take more room than before.
#![no_main]

use arbitrary::Unstructured;
use bszfs::codec::{self, Coding, ElementKind, Encoder, EntropyModel, Sample};
use bszfs_fuzz::{Tested, decode, expand};
use libfuzzer_sys::fuzz_target;

/// Bytes of a tensor at most.
const MOST: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let _ = tensor(&mut Unstructured::new(data));
});

fn tensor(u: &mut Unstructured<'_>) -> arbitrary::Result<Tested> {
    let kind = kind(u)?;
    let flags: u8 = u.arbitrary()?;
    let row = (flags & 1 == 1).then_some(u.arbitrary::<u16>()?.into());
    let skew = usize::from(u.arbitrary::<u8>()? % 64);
    let (sampled, cut): (u16, u16) = u.arbitrary()?;
    let tensor = if flags & 2 == 2 { Some(u.arbitrary()?) } else { None };
    let bytes = if flags & 4 == 4 { u.bytes(u.len())?.to_vec() } else { expand(u, MOST)? };
    // The model may know only part of the tensor.
    let known = if flags & 8 == 8 { usize::from(sampled) % (bytes.len() + 1) } else { bytes.len() };
    let known = &bytes[..known / kind.width() * kind.width()];
    let sample = Sample { kind, bytes: known, row, tensor: tensor.unwrap_or(bytes.len() as u64) };
    let model = codec::fit(sample).expect("a model or none");
    let encoder = model.as_ref().map(Encoder::new);
    let read = model.as_ref().map(|model| {
        let mut wire = Vec::new();
        model.write_to(&mut wire);
        let read = EntropyModel::read_from(&wire).expect("a model is what it was written from");
        assert!(read == *model);
        read
    });
    let (first, second) = bytes.split_at(usize::from(cut) % (bytes.len() + 1));
    for chunk in [first, second].into_iter().filter(|c| !c.is_empty()) {
        let zstd = flags & 16 == 16 && codec::should_try_zstd(&[chunk], encoder.as_ref());
        let (coding, payload) = codec::encode(chunk, encoder.as_ref(), zstd);
        assert!(payload.len() <= chunk.len(), "{} bytes for {}", payload.len(), chunk.len());
        let needed = read.as_ref().filter(|_| coding == Coding::Planes);
        let back = decode(coding, needed, &payload, chunk.len(), skew);
        assert!(back.as_deref() == Ok(chunk), "not what went in: {:?}", back.err());
    }
    Ok(Some(()))
}

fn kind(u: &mut Unstructured<'_>) -> arbitrary::Result<ElementKind> {
    const FLOATS: [(u8, u8); 6] = [(1, 4), (1, 5), (2, 5), (2, 8), (4, 8), (8, 11)];
    let n = u.arbitrary::<u8>()? % 16;
    Ok(match (n, FLOATS.get(usize::from(n))) {
        (_, Some(&(width, exponent))) => ElementKind::Float { width, exponent },
        (6..10, _) => ElementKind::Bytes { width: 1 << (n - 6) },
        _ => {
            let width = 1 << (n % 4);
            ElementKind::Float { width, exponent: u.int_in_range(2..=(8 * width - 1).min(11))? }
        }
    })
}
