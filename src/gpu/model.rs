//! A model as the kernel reads it: `struct Model` of `kernel.cu` and what follows it, in words of 32 bits.

use crate::codec::{EntropyModel, LANES, model::DecodeTable};

/// Words of a table, and of what comes before what blocks keep in shared memory.
const TABLE: usize = 128;
const HEAD: usize = 12;
/// Bytes that a warp has in shared memory: what its states carry, and for each plane.
const CARRIED: usize = 256;
const PLANE: usize = 32;
/// As in the kernel.
const WARPS: usize = 4;

/// Bytes that [`write_to`] appends, at most.
pub(super) fn len(model: &EntropyModel) -> usize {
    let planes = model.layout().planes().len();
    4 * (HEAD + 64 + TABLE * model.tables().len() + planes) + model.columns().len() + LANES + 3 * 16
}

/// Append `model` to `words`, which ends at a multiple of 16 bytes and will so again. Returns how many bytes of shared
/// memory a block needs that decodes with it.
pub(super) fn write_to(model: &EntropyModel, words: &mut Vec<u32>) -> usize {
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
    4 * shared.len() + WARPS * (CARRIED + PLANE * layout.planes().len())
}

/// A table's words: of each bucket, the frequencies of its own symbol and of the other one; then what else there is of
/// the other one, its shift and four times its number, and how many slots are the bucket's own.
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
