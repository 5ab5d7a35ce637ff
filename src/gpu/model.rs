//! A model in the form that the kernels read: `struct Model` of `parse.cuh` and what follows it, in
//! words of 32 bits.

use crate::codec::{EntropyModel, LANES, model::DecodeTable};

/// Words of a table.
const TABLE: usize = 128;
/// Words of `struct Model`, which precedes what a block keeps in shared memory.
const HEAD: usize = 12;
/// Bytes of shared memory in which a warp collects what its states carry.
const CARRIED: usize = 256;
/// Bytes of shared memory that a warp needs for each plane.
const PLANE: usize = 32;

/// Bytes that [`write_to`] appends, at most.
pub(super) fn len(model: &EntropyModel) -> usize {
    let planes = model.layout().planes().len();
    4 * (HEAD + 64 + TABLE * model.tables().len() + planes) + model.columns().len() + LANES + 3 * 16
}

/// Appends `model` to `words`, whose length is a multiple of 16 bytes before and after. Returns how
/// many bytes of shared memory a block of `warps` warps needs to decode with it.
pub(super) fn write_to(model: &EntropyModel, warps: usize, words: &mut Vec<u32>) -> usize {
    let (layout, tables, columns) = (model.layout(), model.decode_tables(), model.columns());
    let mut shared = model.aligned_values().map(u32::from).to_vec();
    tables.iter().for_each(|t| shared.extend(table(t)));
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
        model.escape().into(),
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
    4 * shared.len() + warps * (CARRIED + PLANE * layout.planes().len())
}

/// The words of a table. The first 64 hold the frequencies of the bucket's own symbol and of the
/// other one; the last 64 hold the shift and four times the number of the other symbol, and how
/// many slots belong to the bucket's own.
fn table(table: &DecodeTable) -> [u32; TABLE] {
    std::array::from_fn(|i| {
        let [own, other] = table.entries[i % 64];
        let frequency = |side: u64| side as u32 >> 16;
        if i < 64 {
            frequency(own) | frequency(other) << 16
        } else {
            let [shift, symbol, count] = [other & 0xffff, other >> 48 & 0xff, own >> 56];
            (shift | symbol << 18 | count << 24) as u32
        }
    })
}
