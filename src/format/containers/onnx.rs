//! The initializers of an ONNX model: a walk over its protocol buffers, which are nested to a
//! fixed depth. Their data is inside the model, or in files beside it.
//!
//! Format: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>.

use super::{
    Known, MAX_TENSORS, Named,
    cursor::{Cursor, Input, Result, Stop},
};
use crate::{
    codec::ElementKind,
    format::extent::{Extent, row},
};
use std::ops::Range;

/// Field numbers: of a model, a graph, a node, an attribute and a tensor.
const IR_VERSION: u64 = 1;
const GRAPH: u64 = 7;
const NODE: u64 = 1;
const INITIALIZER: u64 = 5;
const ATTRIBUTE: u64 = 5;
const ATTRIBUTE_TENSOR: u64 = 5;
const DIMS: u64 = 1;
const DATA_TYPE: u64 = 2;
const FLOAT_DATA: u64 = 4;
const NAME: u64 = 8;
const RAW_DATA: u64 = 9;
const DOUBLE_DATA: u64 = 10;
const EXTERNAL_DATA: u64 = 13;
/// The highest field number of a model, and of its version.
const MAX_FIELD: u64 = 32;
const MAX_IR_VERSION: u64 = 64;
/// Nodes that are smaller hold no tensors that matter, in bytes.
const MIN_NODE: u64 = 4096;
const MAX_DIMENSIONS: usize = 8;
/// The longest path of external data, and the longest name that is kept, in bytes.
const MAX_TEXT: usize = 256;
/// The least bytes of a file that is taken for a model.
const MIN_MODEL: u64 = 64;

/// A field: its number, and its value.
enum Field {
    Number(u64, u64),
    Bytes(u64, Range<u64>),
    /// A number of fixed width.
    Fixed,
}

/// Data of a tensor outside the model.
#[derive(Default)]
struct External {
    file: Vec<u8>,
    offset: u64,
    len: Option<u64>,
}

#[derive(Default)]
struct Tensor {
    name: Vec<u8>,
    shape: Vec<u64>,
    data_type: u64,
    /// Where its bytes are in the model, and their type if the field says it.
    data: Option<(Range<u64>, Option<ElementKind>)>,
    external: External,
}

/// The tensors inside a model.
pub(super) fn inside(input: &Input<'_>) -> Known {
    // There is no signature: a model starts with its version, and consists of known fields.
    let start = input.start()?;
    let is_version = |&v: &u8| (1..=MAX_IR_VERSION).contains(&u64::from(v));
    if start.first() != Some(&8) || !start.get(1).is_some_and(is_version) || input.len() < MIN_MODEL
    {
        return Ok(None);
    }
    match tensors(input) {
        Ok(Some(tensors)) => Ok(Some(tensors.iter().filter_map(Tensor::inside).collect())),
        Err(Stop::Io(e)) => Err(Stop::Io(e)),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// The tensors of a model that are in the file called `name` beside it.
pub(super) fn external(input: &Input<'_>, name: &str) -> Result<Vec<Extent>> {
    let tensors = tensors(input)?.unwrap_or_default();
    let is_there = |t: &&Tensor| {
        let file = &*t.external.file;
        file.strip_prefix(b"./").unwrap_or(file) == name.as_bytes()
    };
    Ok(tensors.iter().filter(is_there).filter_map(Tensor::outside).collect())
}

/// All tensors of a model; `None` if the file is none.
fn tensors(input: &Input<'_>) -> Result<Option<Vec<Tensor>>> {
    let mut model = input.cursor(0..input.len());
    let mut tensors = Vec::new();
    let mut has_graph = false;
    while model.left() > 0 {
        match field(&mut model)? {
            Field::Bytes(GRAPH, graph) => {
                has_graph = true;
                initializers(input, graph, &mut tensors)?;
            }
            Field::Number(IR_VERSION, version) if version > MAX_IR_VERSION => return Ok(None),
            Field::Number(n, _) | Field::Bytes(n, _) if n > MAX_FIELD => return Ok(None),
            Field::Fixed => return Ok(None),
            _ => {}
        }
    }
    Ok(has_graph.then_some(tensors))
}

/// Add the tensors of a graph.
fn initializers(input: &Input<'_>, graph: Range<u64>, tensors: &mut Vec<Tensor>) -> Result<()> {
    let mut cursor = input.cursor(graph);
    while cursor.left() > 0 && tensors.len() < MAX_TENSORS {
        match field(&mut cursor)? {
            Field::Bytes(INITIALIZER, part) => tensors.push(tensor(input, part)?),
            Field::Bytes(NODE, part) if part.end - part.start >= MIN_NODE => {
                constants(input, part, tensors)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Add the tensors that are attributes of a node.
fn constants(input: &Input<'_>, node: Range<u64>, tensors: &mut Vec<Tensor>) -> Result<()> {
    let mut node = input.cursor(node);
    while node.left() > 0 && tensors.len() < MAX_TENSORS {
        let Field::Bytes(ATTRIBUTE, part) = field(&mut node)? else { continue };
        let mut attribute = input.cursor(part);
        while attribute.left() > 0 {
            if let Field::Bytes(ATTRIBUTE_TENSOR, part) = field(&mut attribute)? {
                tensors.push(tensor(input, part)?);
            }
        }
    }
    Ok(())
}

fn tensor(input: &Input<'_>, part: Range<u64>) -> Result<Tensor> {
    let mut tensor = Tensor::default();
    let mut cursor = input.cursor(part);
    while cursor.left() > 0 {
        match field(&mut cursor)? {
            Field::Number(DIMS, dimension) => tensor.shape.push(dimension),
            Field::Bytes(DIMS, packed) => {
                let mut packed = input.cursor(packed);
                while packed.left() > 0 && tensor.shape.len() <= MAX_DIMENSIONS {
                    tensor.shape.push(varint(&mut packed)?);
                }
            }
            Field::Number(DATA_TYPE, number) => tensor.data_type = number,
            Field::Bytes(NAME, name) if name.end - name.start <= MAX_TEXT as u64 => {
                tensor.name = input.cursor(name.clone()).bytes(name.end - name.start, MAX_TEXT)?;
            }
            Field::Bytes(RAW_DATA, data) => tensor.data = Some((data, None)),
            Field::Bytes(FLOAT_DATA, data) => {
                let kind = ElementKind::Float { width: 4, exponent: 8 };
                tensor.data = Some((data, Some(kind)));
            }
            Field::Bytes(DOUBLE_DATA, data) => {
                let kind = ElementKind::Float { width: 8, exponent: 11 };
                tensor.data = Some((data, Some(kind)));
            }
            Field::Bytes(EXTERNAL_DATA, pair) => pair_of(input, pair, &mut tensor.external)?,
            _ => {}
        }
        if tensor.shape.len() > MAX_DIMENSIONS {
            return Err(Stop::Malformed);
        }
    }
    Ok(tensor)
}

/// A key and its value, both texts, of the place of external data.
fn pair_of(input: &Input<'_>, pair: Range<u64>, external: &mut External) -> Result<()> {
    let mut cursor = input.cursor(pair);
    let (mut key, mut value) = (Vec::new(), Vec::new());
    while cursor.left() > 0 {
        let Field::Bytes(number, text) = field(&mut cursor)? else { continue };
        let text = input.cursor(text.clone()).bytes(text.end - text.start, MAX_TEXT)?;
        *(if number == 1 { &mut key } else { &mut value }) = text;
    }
    let number = || std::str::from_utf8(&value).ok()?.parse::<u64>().ok();
    match &*key {
        b"location" => external.file = value,
        b"offset" => external.offset = number().ok_or(Stop::Malformed)?,
        b"length" => external.len = number(),
        _ => {}
    }
    Ok(())
}

/// The next field; its bytes are skipped.
fn field(cursor: &mut Cursor<'_>) -> Result<Field> {
    let tag = varint(cursor)?;
    let number = tag >> 3;
    match tag & 7 {
        0 => Ok(Field::Number(number, varint(cursor)?)),
        1 => cursor.skip(8).map(|()| Field::Fixed),
        2 => {
            let len = varint(cursor)?;
            let start = cursor.position();
            cursor.skip(len)?;
            Ok(Field::Bytes(number, start..cursor.position()))
        }
        5 => cursor.skip(4).map(|()| Field::Fixed),
        _ => Err(Stop::Malformed),
    }
}

fn varint(cursor: &mut Cursor<'_>) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = cursor.u8()?;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Ok(value);
        }
    }
    Err(Stop::Malformed)
}

impl Tensor {
    /// It, if its data is in the model.
    fn inside(&self) -> Option<Named> {
        let (data, kind) = self.data.clone()?;
        let extent = self.extent(data.start, data.end - data.start, kind)?;
        let name = String::from_utf8_lossy(&self.name).into_owned();
        let dtype = dtype(self.data_type).to_owned();
        Some(Named { name, dtype, shape: self.shape.clone(), extent })
    }

    /// Its extent in the file beside the model.
    fn outside(&self) -> Option<Extent> {
        let width = kind(self.data_type)?.0.width() as u64;
        let count = self.shape.iter().try_fold(width, |n, &d| n.checked_mul(d))?;
        self.extent(self.external.offset, self.external.len.unwrap_or(count), None)
    }

    fn extent(&self, start: u64, len: u64, known: Option<ElementKind>) -> Option<Extent> {
        let (kind, parts) = known.map(|kind| (kind, 1)).or_else(|| kind(self.data_type))?;
        // Types of four bits share bytes.
        let fits = |row: &usize| {
            let bytes = (*row as u64).checked_mul(kind.width() as u64);
            bytes.is_some_and(|bytes| len.is_multiple_of(bytes))
        };
        let row = row(parts, &self.shape).filter(fits);
        Some(Extent { start, len, kind: Some(kind), row })
    }
}

/// The name of a type in the format's own list.
fn dtype(data_type: u64) -> &'static str {
    const NAMES: [&str; 25] = [
        "UNDEFINED",
        "FLOAT",
        "UINT8",
        "INT8",
        "UINT16",
        "INT16",
        "INT32",
        "INT64",
        "STRING",
        "BOOL",
        "FLOAT16",
        "DOUBLE",
        "UINT32",
        "UINT64",
        "COMPLEX64",
        "COMPLEX128",
        "BFLOAT16",
        "FLOAT8E4M3FN",
        "FLOAT8E4M3FNUZ",
        "FLOAT8E5M2",
        "FLOAT8E5M2FNUZ",
        "UINT4",
        "INT4",
        "FLOAT4E2M1",
        "FLOAT8E8M0",
    ];
    usize::try_from(data_type).ok().and_then(|n| NAMES.get(n)).unwrap_or(&NAMES[0])
}

/// The kind of an element, and how many of them make a number.
fn kind(data_type: u64) -> Option<(ElementKind, usize)> {
    let float = |width, exponent, parts| Some((ElementKind::Float { width, exponent }, parts));
    let bytes = |width| Some((ElementKind::Bytes { width }, 1));
    match data_type {
        1 => float(4, 8, 1),
        10 => float(2, 5, 1),
        11 => float(8, 11, 1),
        14 => float(4, 8, 2),
        15 => float(8, 11, 2),
        16 => float(2, 8, 1),
        // F8_E4M3 and F8_E5M2, with and without a negative zero.
        17 | 18 => float(1, 4, 1),
        19 | 20 => float(1, 5, 1),
        // Integers and booleans; those of four bits share bytes.
        2 | 3 | 9 | 21..=24 => bytes(1),
        4 | 5 => bytes(2),
        6 | 12 => bytes(4),
        7 | 13 => bytes(8),
        _ => None,
    }
}
