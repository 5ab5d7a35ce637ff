//! The description of an archive, which `bsz info` shows: its tensors, and how they are stored.

use super::archive::Archive;
use crate::{
    codec::{ChunkDecoder, Coding},
    error::{Error, Result},
    escape,
    format::{Base, Chunk, Header, MAX_HEADER, Named, Naming, container_tensors, header_len},
};
use serde::Serialize;
use std::{collections::BTreeMap, ops::Range, path::PathBuf};

/// How a part of the original is stored.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Coded {
    /// Size in the original, in bytes.
    pub bytes: u64,
    /// Size of its stored chunks, in bytes.
    pub stored: u64,
    /// Number of chunks by coding.
    pub codings: BTreeMap<&'static str, u64>,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorDescription {
    /// Its name.
    pub name: String,
    /// Its dtype, as spelled in the header or by the container's format.
    pub dtype: String,
    /// Its shape, in elements.
    pub shape: Vec<usize>,
    /// How it is stored.
    #[serde(flatten)]
    pub coded: Coded,
}

/// A file from which an archive stores differences.
#[derive(Clone, Debug, Serialize)]
pub struct DescribedBase {
    /// Its file name when the archive was written.
    pub name: String,
    /// SHA-256 of its original, in hexadecimal.
    pub sha256: String,
    /// Bytes of its original.
    pub len: u64,
    /// Number of chunks that differ from it.
    pub chunks: u64,
    /// Their bytes, and what these take.
    #[serde(flatten)]
    pub coded: Sizes,
    /// Where it was found.
    #[serde(flatten, serialize_with = "escape::field::path")]
    pub path: Option<PathBuf>,
    /// Why it was not found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Bytes of the original, and of what is stored of them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sizes {
    /// In the original.
    pub bytes: u64,
    /// In the archive.
    pub stored: u64,
}

/// A whole archive.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Format version.
    pub version: u16,
    /// Size of the original in bytes.
    pub original: u64,
    /// Size of the archive in bytes.
    pub archive: u64,
    /// SHA-256 of the original, in hexadecimal.
    pub sha256: String,
    /// The original's permission bits.
    pub mode: u32,
    /// The original's modification time, in seconds since 1970.
    pub mtime: i64,
    /// Whether the original's name ends in `.safetensors`.
    pub safetensors: bool,
    /// The container whose header names the tensors: `safetensors`, `GGUF`, `NumPy`, `zip` (of
    /// NumPy or PyTorch) or `ONNX`.
    pub container: Option<&'static str>,
    /// Number of chunks.
    pub chunks: usize,
    /// Number of entropy models.
    pub models: u32,
    /// Size of the index and the footer, in bytes.
    pub overhead: u64,
    /// The files from which chunks store differences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<DescribedBase>,
    /// The tensors, in the order of their data.
    pub tensors: Vec<TensorDescription>,
    /// Everything but tensors: the header and gaps, or all of a file that has no such header.
    pub rest: Coded,
}

/// Describe `archive`. Only the chunks of the header are decoded: in other containers than
/// safetensors, those in which descriptions of tensors are. Its bases are looked for.
///
/// # Errors
/// As [`Archive::read_chunk`].
pub fn describe(archive: &Archive, decoder: &dyn ChunkDecoder) -> Result<Description> {
    let f = archive.footer();
    let mut bases = bases(archive);
    let mut rest = Coded::default();
    let found = match tensors(archive, decoder) {
        // The header may be the base's.
        Err(_) if bases.iter().any(|base| base.missing.is_some()) => None,
        found => found?,
    };
    let (container, found) = match found {
        Some((name, tensors)) => (Some(name), tensors),
        None => (None, Vec::new()),
    };
    let (ranges, mut tensors): (Vec<Range<u64>>, Vec<TensorDescription>) =
        found.into_iter().unzip();
    for id in 0..archive.index().len() {
        let chunk = archive.index().chunk(id)?;
        // A chunk starts at each tensor, so no chunk belongs to two tensors.
        let owner = ranges.partition_point(|t| t.end <= chunk.original.start);
        let coded = match ranges.get(owner) {
            Some(t) if t.start <= chunk.original.start && chunk.original.end <= t.end => {
                &mut tensors[owner].coded
            }
            _ => &mut rest,
        };
        coded.bytes += chunk.len() as u64;
        coded.stored += u64::from(chunk.stored_len);
        *coded.codings.entry(Coding::name(chunk.coding)).or_default() += 1;
        if let Some(base) = base_of(archive, &chunk)?.and_then(|number| bases.get_mut(number)) {
            base.chunks += 1;
            base.coded.bytes += chunk.len() as u64;
            base.coded.stored += u64::from(chunk.stored_len);
        }
    }
    Ok(Description {
        version: f.version(),
        original: f.original_len,
        archive: archive.stored_len(),
        sha256: f.sha256.iter().map(|b| format!("{b:02x}")).collect(),
        mode: f.mode,
        mtime: f.mtime.0,
        safetensors: f.naming == Naming::Safetensors,
        container,
        chunks: archive.index().len(),
        models: f.model_count,
        overhead: archive.stored_len() - f.index_offset,
        bases,
        tensors,
        rest,
    })
}

/// Tensors, and where they are in the original.
type Placed = Vec<(Range<u64>, TensorDescription)>;

/// The container that the original is, and its tensors in the order of their data.
fn tensors(
    archive: &Archive,
    decoder: &dyn ChunkDecoder,
) -> Result<Option<(&'static str, Placed)>> {
    let placed = |range, name, dtype, shape| {
        (range, TensorDescription { name, dtype, shape, coded: Coded::default() })
    };
    let header = header(archive, decoder)?;
    if header != Header::default() {
        let tensors = header.tensors.into_iter();
        let tensors = tensors.map(|t| placed(t.start..t.end, t.name, t.dtype.to_string(), t.shape));
        return Ok(Some(("safetensors", tensors.collect())));
    }
    let read = |at, out: &mut [u8]| match archive.read_at(at, out, decoder)? {
        n if n == out.len() => Ok(()),
        _ => Err(Error::truncated("the original is shorter than it should be")),
    };
    let found = container_tensors(&read, archive.footer().original_len)?;
    Ok(found.map(|(container, tensors)| {
        let tensors = tensors.into_iter().map(|Named { name, dtype, shape, extent }| {
            let shape = shape.into_iter().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
            placed(extent.start..extent.end(), name, dtype, shape.collect())
        });
        (container, tensors.collect())
    }))
}

/// The bases of an archive, and where they are.
fn bases(archive: &Archive) -> Vec<DescribedBase> {
    let described = |(number, base): (usize, &Base)| {
        let found = archive.base(number);
        DescribedBase {
            name: base.name.clone(),
            sha256: base.hex(),
            len: base.len,
            chunks: 0,
            coded: Sizes::default(),
            path: found.as_ref().ok().map(|found| found.path().to_owned()),
            missing: found.err().map(|e| e.detail()),
        }
    };
    archive.index().bases().iter().enumerate().map(described).collect()
}

/// The number of the base that a chunk differs from.
fn base_of(archive: &Archive, chunk: &Chunk) -> Result<Option<usize>> {
    if chunk.coding != Coding::Delta {
        return Ok(None);
    }
    let model = archive.model_of(chunk)?;
    Ok(model.and_then(|model| model.delta().map(|delta| delta.base.into())))
}

/// The safetensors header of the original; an empty one if the original has none.
///
/// # Errors
/// As [`Archive::read_chunk`].
pub fn header(archive: &Archive, decoder: &dyn ChunkDecoder) -> Result<Header> {
    let json = header_json(archive, decoder, MAX_HEADER)?;
    Ok(json
        .and_then(|json| Header::parse(&json, archive.footer().original_len))
        .unwrap_or_default())
}

/// The JSON text of the original's safetensors header, if it has one.
///
/// # Errors
/// As [`Archive::read_chunk`]; invalid argument, if it is longer than `max_len` bytes.
pub fn header_json(
    archive: &Archive,
    decoder: &dyn ChunkDecoder,
    max_len: u64,
) -> Result<Option<Vec<u8>>> {
    let mut prefix = [0; 8];
    if archive.read_at(0, &mut prefix, decoder)? < prefix.len() {
        return Ok(None);
    }
    let Some(n) = header_len(prefix, archive.footer().original_len) else { return Ok(None) };
    if n > max_len {
        return Err(Error::invalid(format!("its header has {n} bytes, more than {max_len}")));
    }
    let mut json = vec![0; n as usize];
    archive.read_at(8, &mut json, decoder)?;
    Ok(Some(json))
}
