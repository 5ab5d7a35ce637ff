//! The raw bits of differences: each table has planes of its own, which hold only the elements that
//! it codes.

use super::kernel::Kernel;
use crate::codec::{
    ChunkError,
    bytes::take,
    model::{Delta, MAX_TABLES},
    planes::{GROUP, Plane, packed_len, raw_planes},
    wire::CARRIED,
};
use std::{borrow::Cow, ops::Range};

/// Values that are unpacked at a time.
const AHEAD: usize = 16 * GROUP;

/// The raw bits of a chunk, which are taken group by group.
pub(super) struct RawBits<'a> {
    planes: Vec<RawPlane<'a>>,
    /// The plane whose last [`CARRIED`] bytes are in the final states.
    carrier: Option<usize>,
    /// By table: which of them are its planes.
    of_tables: [Range<usize>; MAX_TABLES + 1],
}

/// A plane of the raw bits of the elements that a table codes.
struct RawPlane<'a> {
    /// Which byte of the difference its bits are in.
    byte: usize,
    bits: u8,
    packed: Cow<'a, [u8]>,
    /// How many bytes of it are unpacked.
    at: usize,
    /// Unpacked values; those before `next` were taken.
    values: [u8; AHEAD + GROUP],
    next: usize,
    end: usize,
}

impl<'a> RawBits<'a> {
    /// Takes the planes of a chunk with so many elements for each table from `input`.
    pub(super) fn parse(
        delta: &Delta,
        counts: &[usize; MAX_TABLES],
        input: &mut &'a [u8],
    ) -> Result<Self, ChunkError> {
        let mut planes = Vec::new();
        for (table, (cut, &count)) in delta.cuts.iter().zip(counts).enumerate() {
            if count > 0 {
                planes.extend(raw_planes(cut.raw_bits).map(|plane| (table, plane, count)));
            }
        }
        let len = |&(_, plane, count): &(usize, Plane, usize)| packed_len(plane.bits, count);
        let carrier = planes.iter().rposition(|plane| len(plane) >= CARRIED);
        let mut parsed = Vec::with_capacity(planes.len());
        for (i, of) in planes.iter().enumerate() {
            let carried = if carrier == Some(i) { CARRIED } else { 0 };
            let packed = take(input, len(of) - carried).ok_or(ChunkError::Truncated)?;
            let &(_, plane, _) = of;
            parsed.push(RawPlane {
                byte: usize::from(plane.low / 8),
                bits: plane.bits,
                packed: packed.into(),
                at: 0,
                values: [0; AHEAD + GROUP],
                next: 0,
                end: 0,
            });
        }
        let of_tables = std::array::from_fn(|table| {
            let before = |table: usize| planes.partition_point(|plane| plane.0 < table);
            before(table)..before(table + 1)
        });
        Ok(Self { planes: parsed, carrier, of_tables })
    }

    /// Whether a plane ends in the states.
    pub(super) fn are_carried(&self) -> bool {
        self.carrier.is_some()
    }

    /// Appends what the states carry.
    pub(super) fn append(&mut self, carried: &[u8; CARRIED]) {
        if let Some(carrier) = self.carrier {
            self.planes[carrier].packed.to_mut().extend_from_slice(carried);
        }
    }

    /// The raw bits of the next group, in the lowest `BYTES` bytes of its differences. The elements
    /// whose bits are set in `members` are coded by `table` and by the next one.
    #[inline(always)]
    pub(super) fn next<K: Kernel, const BYTES: usize>(
        &mut self,
        kernel: K,
        table: usize,
        members: [u64; 2],
    ) -> [[u8; GROUP]; BYTES] {
        let mut group = [[0; GROUP]; BYTES];
        for (table, members) in [table, table + 1].into_iter().zip(members) {
            if members == 0 {
                continue;
            }
            for plane in &mut self.planes[self.of_tables[table].clone()] {
                let spread = plane.take(kernel, members);
                if let Some(group) = group.get_mut(plane.byte) {
                    group.iter_mut().zip(spread).for_each(|(byte, value)| *byte |= value);
                }
            }
        }
        group
    }
}

impl RawPlane<'_> {
    /// A group that has the next values in the places of the `members`.
    #[inline(always)]
    fn take<K: Kernel>(&mut self, kernel: K, members: u64) -> [u8; GROUP] {
        let count = members.count_ones() as usize;
        if self.end - self.next < count {
            self.unpack(kernel);
        }
        let values = self.values[self.next..].first_chunk().unwrap_or(&[0; GROUP]);
        self.next += count;
        kernel.spread(values, members)
    }

    /// Unpacks more values behind those that are left, which are fewer than a group.
    #[inline(always)]
    fn unpack<K: Kernel>(&mut self, kernel: K) {
        let left = self.end - self.next;
        self.values.copy_within(self.next..self.end, 0);
        let packed_group = GROUP / 8 * usize::from(self.bits);
        let packed = &self.packed[self.at..];
        let groups = (packed.len() / packed_group).min((AHEAD - GROUP) / GROUP);
        let packed = &packed[..groups * packed_group];
        let values = &mut self.values[left..left + groups * GROUP];
        kernel.unpack(packed, self.bits, 0, false, values);
        self.at += packed.len();
        (self.next, self.end) = (0, left + groups * GROUP);
    }
}
