//! A model in the form that the kernels read: `struct Model` of `parse.cuh` and what follows it, in
//! words of 32 bits.

use super::loops::Loop;
use crate::codec::{
    EntropyModel, LANES,
    model::{ALPHABET, DecodeTable},
    planes::Layout,
};

/// Words of a table.
const TABLE: usize = 2 * ALPHABET;
/// Words of `struct Model`, which precedes what a block keeps in shared memory.
const HEAD: usize = 12;
/// Bytes of shared memory for a warp: `SCRATCH` in `kernel.cu`.
const SCRATCH: usize = 512 + 16 + 48;
/// Bytes of shared memory that a warp needs for each plane.
const PLANE: usize = 32;
/// Marks the word of the escape: `IS_ESCAPE` in `symbols.cuh`.
const IS_ESCAPE: u32 = 1 << 14;

/// Bytes that [`write_to`] appends, at most.
pub(super) fn len(model: &EntropyModel) -> usize {
    let planes = model.layout().planes().len();
    let columns = repeats(model) * model.columns().len();
    4 * (HEAD + TABLE * model.tables().len() + planes) + columns + LANES + 3 * 16
}

/// Multiplies the class of a column: `CLASS` in `parse.cuh`.
const CLASS: u8 = 4;

/// By how many bits a loop expects symbol values to be shifted down. Elements of four bytes and
/// more are rotated when they are whole.
fn shift(layout: &Layout) -> u8 {
    (Loop::of(layout).is_some() && layout.rotated() && layout.width() < 4).into()
}

/// How often the classes of all columns are repeated, so that their number is a multiple of four:
/// a thread reads those of four columns at once.
fn repeats(model: &EntropyModel) -> usize {
    [1, 4, 2, 4][model.columns().len() % 4]
}

/// Appends `model` to `words`, whose length is a multiple of 16 bytes before and after. Returns how
/// many bytes of shared memory a block of `warps` warps needs to decode with it.
pub(super) fn write_to(model: &EntropyModel, warps: usize, words: &mut Vec<u32>) -> usize {
    let (layout, tables, columns) = (model.layout(), model.decode_tables(), model.columns());
    let mut shared = Vec::new();
    for (table, frequencies) in tables.iter().zip(model.tables()) {
        shared.extend(buckets(table));
        shared.extend(symbols(model, frequencies.frequencies()));
    }
    shared.extend(layout.planes().iter().map(|p| u32::from(p.bits) | u32::from(p.low) << 8));
    shared.resize(shared.len().next_multiple_of(4), 0);
    let head: [u32; HEAD] = [
        layout.width().into(),
        layout.rotated().into(),
        layout.symbol_bits().into(),
        layout.planes().len() as u32,
        model.block() as u32,
        (repeats(model) * columns.len()) as u32,
        model.classes() as u32,
        model.choices() as u32,
        Loop::of(layout).map_or(0, |own| own as u32),
        shift(layout).into(),
        shared.len() as u32,
        (4 * (HEAD + shared.len())) as u32,
    ];
    words.extend(head);
    words.extend(&shared);
    let count = if columns.is_empty() { 0 } else { repeats(model) * columns.len() + LANES };
    let classes: Vec<u8> = columns.iter().cycle().take(count).map(|c| CLASS * c).collect();
    words.extend(
        classes
            .chunks(4)
            .map(|c| c.iter().rev().fold(0, |word, &class| word << 8 | u32::from(class))),
    );
    words.resize(words.len().next_multiple_of(4), 0);
    4 * shared.len() + warps * (SCRATCH + PLANE * layout.planes().len())
}

/// A word for each bucket: the shift and four times the number of the other symbol, and how many
/// slots belong to the bucket's own.
fn buckets(table: &DecodeTable) -> [u32; ALPHABET] {
    table.entries.map(|[own, other]| {
        let [shift, symbol, count] = [other & 0xffff, other >> 48 & 0xff, own >> 56];
        (shift | symbol << 18 | count << 24) as u32
    })
}

/// A word for each symbol: its frequency, whether it is the escape, and its value. Values that are
/// shifted down leave the highest bit free, which then marks the escape, too: a sign is cheaper to
/// test.
fn symbols(model: &EntropyModel, frequencies: &[u16; ALPHABET]) -> [u32; ALPHABET] {
    let values = model.aligned_values();
    let shift = shift(model.layout());
    let escape = IS_ESCAPE | u32::from(shift) << 31;
    std::array::from_fn(|s| {
        let mark = if s == usize::from(model.escape()) { escape } else { 0 };
        u32::from(frequencies[s]) | mark | u32::from(values[s] >> shift) << 16
    })
}
