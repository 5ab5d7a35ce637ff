//! A model in the form that the kernels read: `struct Model` of `parse.cuh` and what follows it, in
//! words of 32 bits.

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
const SCRATCH: usize = 512 + 16;
/// Bytes of shared memory that a warp needs for each plane.
const PLANE: usize = 32;
/// Marks the word of the escape: `IS_ESCAPE` in `symbols.cuh`.
const IS_ESCAPE: u32 = 1 << 14;

/// Bytes that [`write_to`] appends, at most.
pub(super) fn len(model: &EntropyModel) -> usize {
    let planes = model.layout().planes().len();
    4 * (HEAD + TABLE * model.tables().len() + planes) + model.columns().len() + LANES + 3 * 16
}

/// Whether elements are cut like nearly all BF16: a symbol for the exponent and two bits of the
/// mantissa, and one plane. The kernels have a loop of its own for this.
fn is_usual_bf16(layout: &Layout) -> bool {
    let [plane] = layout.planes() else { return false };
    (layout.width(), layout.rotated(), layout.symbol_bits()) == (2, true, 10)
        && (plane.bits, plane.low) == (6, 0)
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
        columns.len() as u32,
        model.classes() as u32,
        model.choices() as u32,
        is_usual_bf16(layout).into(),
        shared.len() as u32,
        (4 * (HEAD + shared.len())) as u32,
        tables.len() as u32,
    ];
    words.extend(head);
    words.extend(&shared);
    let classes: Vec<u8> = columns.iter().chain(columns.iter().take(LANES)).copied().collect();
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

/// A word for each symbol: its frequency, whether it is the escape, and its value. Rotated values
/// leave the highest bit free, which then marks the escape, too: a sign is cheaper to test.
fn symbols(model: &EntropyModel, frequencies: &[u16; ALPHABET]) -> [u32; ALPHABET] {
    let values = model.aligned_values();
    let usual = is_usual_bf16(model.layout());
    let escape = if usual { IS_ESCAPE | 1 << 31 } else { IS_ESCAPE };
    std::array::from_fn(|s| {
        let mark = if s == usize::from(model.escape()) { escape } else { 0 };
        u32::from(frequencies[s]) | mark | u32::from(values[s]) >> u32::from(usual) << 16
    })
}
