//! A tensor as differences from a base: their model, and whether they save enough.

use super::pairs::Pair;
use crate::{
    codec::{self, Coding, Delta, DifferenceSample, ElementKind, Encoder, EntropyModel, LANES},
    error::Result,
    format::Extent,
};

/// The share of a tensor that differences must save, beyond what its own planes save.
const WORTH: f64 = 0.05;

/// How a tensor is stored without a base.
pub(super) struct Planes<'a> {
    pub(super) encoder: Option<&'a Encoder<'a>>,
    pub(super) try_zstd: bool,
}

impl Planes<'_> {
    pub(super) fn encode(&self, chunk: &[u8]) -> (Coding, Vec<u8>) {
        codec::encode(chunk, self.encoder, self.try_zstd)
    }
}

/// How a tensor is stored as differences.
pub(super) struct Differences {
    pub(super) pair: Pair,
    /// Names the base 0, whichever it is.
    pub(super) model: EntropyModel,
    /// The share of a chunk that it takes without a base, by a sample.
    planes: f64,
}

/// Something of a tensor, and of its base at the same places.
type Both<'a, T> = (T, T);

impl Differences {
    /// Fit differences to a sample of a tensor, and compare them with its planes on three chunks.
    pub(super) fn of(
        extent: Extent,
        row: Option<usize>,
        sample: Both<'_, &[u8]>,
        chunks: Both<'_, [&[u8]; 3]>,
        (pair, planes): (Pair, &Planes<'_>),
    ) -> Result<Option<Self>> {
        let model = model(extent, row, sample, pair.distance)?;
        let encoder = Encoder::new(&model);
        let (mut whole, mut without, mut with) = (0, 0, 0);
        for (chunk, base) in chunks.0.iter().zip(chunks.1) {
            let own = planes.encode(chunk);
            whole += chunk.len();
            without += own.1.len();
            let (_, differences) = codec::encode_differences(chunk, base, &encoder);
            with += differences.len().min(own.1.len());
        }
        drop(encoder);
        let whole = whole as f64;
        let saved = (without as f64 - with as f64) / whole;
        let mut wire = Vec::new();
        model.write_to(&mut wire);
        let cost = if is_shared(&model) { 0.0 } else { wire.len() as f64 / extent.len as f64 };
        let planes = without as f64 / whole;
        Ok((saved - cost >= WORTH).then_some(Self { pair, model, planes }))
    }

    /// Encode a chunk in the smallest way. `base` is what the base has in its place, and `encoder`
    /// that of the differences.
    pub(super) fn encode(
        &self,
        (chunk, base): Both<'_, &[u8]>,
        encoder: &Encoder<'_>,
        planes: &Planes<'_>,
    ) -> (Coding, Vec<u8>) {
        let differences = codec::encode_differences(chunk, base, encoder);
        let expected = self.planes * chunk.len() as f64;
        if differences.0 == Coding::Delta && (differences.1.len() as f64) < 0.9 * expected {
            return differences;
        }
        let own = planes.encode(chunk);
        if own.1.len() < differences.1.len() { own } else { differences }
    }
}

/// Whether a model has no tables: all tensors of a base and a distance share it.
pub(super) fn is_shared(model: &EntropyModel) -> bool {
    model.tables().is_empty()
}

/// The same model of differences, from this base.
pub(super) fn from_base(model: &EntropyModel, base: u8) -> Result<EntropyModel> {
    let delta = model.delta().cloned().unwrap_or_else(|| equal(0));
    let tables = model.tables().to_vec();
    let width = model.layout().width();
    EntropyModel::of_differences(Delta { base, ..delta }, width, model.block(), tables)
}

fn equal(distance: i64) -> Delta {
    Delta { base: 0, distance, threshold: 0, cuts: Vec::new() }
}

fn model(
    extent: Extent,
    row: Option<usize>,
    (bytes, base): Both<'_, &[u8]>,
    distance: i64,
) -> Result<EntropyModel> {
    let kind = extent.kind.unwrap_or(ElementKind::Bytes { width: 1 });
    if bytes == base {
        return EntropyModel::of_differences(equal(distance), 1, LANES, Vec::new());
    }
    let whole = bytes.len() / kind.width() * kind.width();
    let (bytes, base) = (&bytes[..whole], &base[..whole]);
    let sample = DifferenceSample { kind, bytes, base, row, tensor: extent.len };
    codec::fit_differences(sample, 0, distance)
}
