//! What a file holds: a model, an archive, or neither.

use super::{
    regions::{detect_unknown, weights},
    signature::{START, foreign},
    tensors::{Tensor, header_json, tensors},
};
use crate::{
    codec::ElementKind,
    error::{Context, Error, Result},
    format::{
        Container, Extent, HEADER_LEN, Header, MAX_HEADER, Naming, VERSION, claimed_len, container,
        header, onnx_data,
    },
    output::Dir,
};
use std::{ffi::OsStr, fs::File, os::unix::fs::FileExt, path::Path};

/// The bytes of an open file.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) file: &'a File,
    /// The path that messages name it by.
    pub(super) path: &'a Path,
    /// Its length in bytes.
    pub(super) len: u64,
    /// The directory that it is in and its name there, if they are known.
    pub(super) place: Option<(&'a Dir, &'a OsStr)>,
}

/// What a file is, as far as packing is concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A complete safetensors file, or another file that holds weights.
    Model,
    /// An archive.
    Archive,
    /// Not to be packed despite its name, for this reason.
    Unfit(String),
    /// Anything else, for this reason.
    Other(&'static str),
}

/// Smaller files are models only if a header says so, in bytes.
const MIN_HEADERLESS: u64 = 256 << 10;
/// Samples by which such files are told, and the share of them that must look like weights.
const SAMPLES: u64 = 16;
const MOST: f64 = 0.5;

impl Content<'_> {
    /// Whether the file starts like an archive.
    pub(super) fn is_archive(&self) -> bool {
        let mut start = [0; HEADER_LEN as usize];
        self.file.read_exact_at(&mut start, 0).is_ok() && start[..8] == header(VERSION)[..8]
    }

    /// What a file called `name` is that holds this.
    pub(super) fn kind(&self, name: &OsStr) -> Result<Kind> {
        if self.is_archive() {
            return Ok(Kind::Archive);
        }
        let header = self.header()?;
        if header.as_ref().is_some_and(|h| !h.tensors.is_empty() && h.covers(self.len)) {
            return Ok(Kind::Model);
        }
        if Naming::of(name) != Naming::Safetensors {
            return self.kind_of_other();
        }
        if let Some(why) = self.incomplete()? {
            return Ok(Kind::Unfit(why));
        }
        if header.is_some() {
            return Ok(Kind::Model);
        }
        let mut start = [0; 64];
        let n = self.file.read_at(&mut start, 0).about_path(self.path)?;
        let start = start[..n].trim_ascii_start();
        let why = match start {
            [] => "is empty",
            _ if start.starts_with(b"version https://git-lfs") => {
                "is a Git LFS pointer, not the model"
            }
            [b'<', ..] => "is an HTML or XML page, not a model",
            _ => "has no safetensors header",
        };
        Ok(Kind::Unfit(why.to_owned()))
    }

    /// What a file is that neither is a safetensors file nor is called like one.
    fn kind_of_other(&self) -> Result<Kind> {
        let extents = match self.container()? {
            Container::Known(_, extents) => extents,
            Container::Incomplete(_, of) => return Ok(Kind::Unfit(incomplete(self.len, of))),
            Container::Malformed(_) => return Ok(Kind::Other("is damaged or incomplete")),
            Container::Unknown if self.len < MIN_HEADERLESS => {
                return Ok(Kind::Other("holds no weights"));
            }
            Container::Unknown => {
                let mut start = vec![0; START];
                self.read_at(0, &mut start)?;
                if let Some(why) = foreign(&start) {
                    return Ok(Kind::Other(why));
                }
                vec![Extent::unknown(0, self.len)]
            }
        };
        if self.incomplete()?.is_some() {
            return Ok(Kind::Other("is incomplete"));
        }
        let known: u64 =
            extents.iter().filter(|e| e.kind.is_some_and(has_weights)).map(|e| e.len).sum();
        let unknown = extents.iter().filter(|e| e.kind.is_none()).max_by_key(|e| e.len);
        // What no header describes is looked at, unless it matters too little.
        let unknown = match unknown.filter(|e| e.len >= MIN_HEADERLESS && known < self.len / 2) {
            Some(e) => {
                e.len as f64 * weights(&|at, out, len| self.read(at, out, len), *e, SAMPLES)?
            }
            None => 0.0,
        };
        let is_model = known as f64 + unknown >= MOST * self.len as f64 && self.len > 0;
        Ok(if is_model { Kind::Model } else { Kind::Other("holds no weights") })
    }

    /// A message that the file is shorter than its header says, if it is.
    pub(super) fn incomplete(&self) -> Result<Option<String>> {
        let mut prefix = [0; 9];
        if self.len < 9 {
            return Ok(None);
        }
        self.read_at(0, &mut prefix)?;
        let [first @ .., brace] = prefix;
        let n = u64::from_le_bytes(first);
        let header_cut = brace == b'{' && (2..=MAX_HEADER).contains(&n) && n + 8 > self.len;
        let claimed = match self.header_json()? {
            Some(json) => claimed_len(&json),
            None => header_cut.then(|| n + 8),
        };
        let claimed = claimed.filter(|&claimed| claimed > self.len);
        Ok(claimed.map(|of| incomplete(self.len, of)))
    }

    /// Read `len` bytes at `start`; `out` is resized to hold them.
    pub(super) fn read(&self, start: u64, out: &mut Vec<u8>, len: usize) -> Result<()> {
        out.resize(len, 0);
        self.read_at(start, out)
    }

    fn read_at(&self, start: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, start).about_path(self.path)
    }

    fn header_json(&self) -> Result<Option<Vec<u8>>> {
        header_json(&|start, out| self.read_at(start, out), self.len)
    }

    /// The safetensors header, if there is a valid one.
    pub(super) fn header(&self) -> Result<Option<Header>> {
        Ok(self.header_json()?.and_then(|json| Header::parse(&json, self.len)))
    }

    /// What a container other than safetensors says about itself, or a model beside it.
    fn container(&self) -> Result<Container> {
        let found = container(&|start, out| self.read_at(start, out), self.len)?;
        if found != Container::Unknown {
            return Ok(found);
        }
        Ok(self
            .model_beside()
            .map_or(Container::Unknown, |extents| Container::Known("ONNX", extents)))
    }

    /// The extents that an ONNX model declares whose data this file holds: that of `x.onnx` is
    /// called `x.onnx_data`, `x.onnx.data` or `x.data`.
    fn model_beside(&self) -> Option<Vec<Extent>> {
        let (dir, name) = self.place?;
        let name = name.to_str()?;
        let stem = name.strip_suffix("_data").or_else(|| name.strip_suffix(".data"))?;
        let stem = stem.strip_suffix(".onnx").unwrap_or(stem);
        let model = dir.open_file(OsStr::new(&format!("{stem}.onnx"))).ok()?;
        let len = model.metadata().ok()?.len();
        let read = |at, out: &mut [u8]| model.read_exact_at(out, at).map_err(Error::from);
        // A model that cannot be read says nothing.
        onnx_data(&read, len, name, self.len).ok()?
    }

    /// The extents of the file: those of its header, and what samples say about the rest.
    pub(super) fn extents(&self) -> Result<Vec<Extent>> {
        if let Some(header) = self.header()? {
            return Ok(header.extents(self.len));
        }
        let extents = match self.container()? {
            Container::Known(_, extents) => extents,
            _ => Header::default().extents(self.len),
        };
        detect_unknown(&|at, out, len| self.read(at, out, len), extents)
    }

    /// The tensors among these extents of the file.
    pub(super) fn tensors(&self, extents: &[Extent]) -> Result<Vec<Tensor>> {
        tensors(&|start, out| self.read_at(start, out), self.len, extents)
    }
}

/// Whether elements may be weights: floats, or quants.
fn has_weights(kind: ElementKind) -> bool {
    matches!(kind, ElementKind::Float { .. } | ElementKind::Bytes { width: 1 })
}

fn incomplete(have: u64, of: u64) -> String {
    format!("is incomplete: it has {have} of the {of} bytes that its header declares")
}
