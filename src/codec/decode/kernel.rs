//! The interface between the pipeline and the inner loops, which differ by instruction set.

use super::changes::{self, Changes};
use crate::codec::{
    ChunkError, EntropyModel, LANES,
    model::{DecodeTable, ValueMap},
    planes::GROUP,
};

/// The position in a chunk's entropy-coded stream.
pub(in crate::codec) struct Stream<'a> {
    /// The rANS state of each lane.
    pub states: [u32; LANES],
    /// The 16-bit words not yet consumed, little-endian, followed by the rest of the stored chunk.
    /// A kernel may read beyond the last word; the pipeline checks how many it has consumed.
    pub words: &'a [u8],
}

/// The tables that lanes decode with, round by round.
#[derive(Clone, Copy)]
pub(in crate::codec) struct RoundTables<'a> {
    pub model: &'a EntropyModel,
    /// All tables of the model.
    pub tables: &'a [DecodeTable],
    /// The model's symbol values.
    pub map: &'a ValueMap,
    /// By round: the choice of its block.
    pub choices: &'a [u8],
    /// The column of the first element of the first round.
    pub column: usize,
    /// The class of each element, if columns do not tell it.
    pub of_elements: &'a [u8],
}

impl<'a> RoundTables<'a> {
    /// The tables of the first round, one for each class, the class of each lane if there are
    /// several, and the tables of the rounds after it.
    #[inline(always)]
    pub fn next(mut self) -> (&'a [DecodeTable], &'a [u8], Self) {
        let classes = self.model.classes();
        let tables = &self.tables[usize::from(self.choices[0]) * classes..][..classes];
        self.choices = &self.choices[1..];
        if classes == 1 {
            return (tables, &[], self);
        }
        if !self.of_elements.is_empty() {
            let (of_lanes, rest) = self.of_elements.split_at(LANES);
            self.of_elements = rest;
            return (tables, of_lanes, self);
        }
        let of_lanes = self.model.classes_from(self.column);
        self.column += LANES;
        while self.column >= self.model.columns().len() {
            self.column -= self.model.columns().len();
        }
        (tables, of_lanes, self)
    }
}

/// The output of whole rounds.
pub(in crate::codec) struct Rounds<'a> {
    /// The symbols.
    pub symbols: &'a mut [[u8; LANES]],
    /// Their symbol values, left-aligned in 16 bits; unspecified for the escape.
    pub values: &'a mut [[u16; LANES]],
    /// The memory that the elements will be merged into, which may not be in the CPU's caches yet.
    pub elements: &'a [u8],
    /// Whether the values are needed. A kernel may write them anyway.
    pub want_values: bool,
}

impl<'a> Rounds<'a> {
    /// The part of `elements` that belongs to each round; empty where it is unknown.
    pub fn elements_by_round(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let of_round = (self.elements.len() / self.symbols.len().max(1)).max(1);
        self.elements.chunks(of_round).chain(std::iter::repeat(&[][..]))
    }

    /// The rounds after the first `n`.
    pub fn after(self, n: usize) -> Self {
        let (symbols, values) = (&mut self.symbols[n..], &mut self.values[n..]);
        Self { symbols, values, elements: &[], ..self }
    }
}

/// The inner loops of one instruction set.
pub(in crate::codec) trait Kernel: Copy {
    /// The name for users.
    const NAME: &'static str;

    /// Runs [`super::decode_planes`] with this kernel, compiled for its instruction set.
    ///
    /// # Errors
    /// As [`super::decode_planes`].
    fn decode_planes(
        self,
        model: &EntropyModel,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), ChunkError>;

    /// Runs [`super::decode_delta`] with this kernel, compiled for its instruction set.
    ///
    /// # Errors
    /// As [`super::decode_delta`].
    fn decode_delta(
        self,
        model: &EntropyModel,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), ChunkError>;

    /// Fills `out` with the next symbols.
    ///
    /// # Errors
    /// [`ChunkError::Truncated`] if there are too few words.
    fn symbols(
        self,
        stream: &mut Stream<'_>,
        tables: RoundTables<'_>,
        out: Rounds<'_>,
    ) -> Result<(), ChunkError>;

    /// Unpacks groups of values of `bits` bits into `bytes`, one value per byte, shifted left by
    /// `shift`. If `keep`, the values are ORed into `bytes`; otherwise they replace it.
    fn unpack(self, packed: &[u8], bits: u8, shift: u8, keep: bool, bytes: &mut [u8]);

    /// A group that has one of `values` after the other in the places whose bits are set in
    /// `members`, and 0 elsewhere.
    fn spread(self, values: &[u8; GROUP], members: u64) -> [u8; GROUP];

    /// The classes of elements of two bytes by those of the base: 1 where they, without their top
    /// bit, are below `threshold`. Returns a bit for each of these, too.
    #[inline(always)]
    fn classes16(self, base: &[u8; 2 * GROUP], threshold: u16, classes: &mut [u8; GROUP]) -> u64 {
        changes::classes(base, threshold, classes)
    }

    /// The same for elements of four bytes.
    #[inline(always)]
    fn classes32(self, base: &[u8; 4 * GROUP], threshold: u32, classes: &mut [u8; GROUP]) -> u64 {
        changes::classes(base, threshold, classes)
    }

    /// Adds differences to the elements of two bytes in `out`.
    #[inline(always)]
    fn change16<const BYTES: usize>(
        self,
        out: &mut [u8; 2 * GROUP],
        changes: &Changes<'_, u16, BYTES>,
    ) {
        changes.add_to(out);
    }

    /// The same for elements of four bytes.
    #[inline(always)]
    fn change32<const BYTES: usize>(
        self,
        out: &mut [u8; 4 * GROUP],
        changes: &Changes<'_, u32, BYTES>,
    ) {
        changes.add_to(out);
    }
}

/// [`Kernel::spread`], one byte at a time.
#[inline(always)]
pub(in crate::codec) fn spread(values: &[u8; GROUP], members: u64) -> [u8; GROUP] {
    let mut next = 0;
    std::array::from_fn(|i| {
        let member = (members >> i & 1) as u8;
        // The mask changes nothing but saves a bounds check.
        let value = values[next & (GROUP - 1)] & member.wrapping_neg();
        next += usize::from(member);
        value
    })
}
