//! A chunk as planes: the encoder of a model.

use super::{
    kernel::{Words, encode_round, scalar_costs, scalar_rounds},
    table::{Costs, TableEncoder},
};
use crate::codec::{
    EntropyModel, LANES, PROB_BITS, STATE_LOW,
    bytes::put_words,
    model::{ALPHABET, MAX_CHOICES},
    planes::{Plane, pack, packed_len},
    wire::{CARRIED, StorageMode},
};
use std::sync::{Arc, Mutex, PoisonError};

/// The encoder for one instruction set, and its inner loops.
pub(in crate::codec) struct EncodeKernel {
    /// [`Encoder::encode_planes`], compiled for it.
    pub planes: fn(&Encoder<'_>, &[u8]) -> Option<Vec<u8>>,
    /// Encodes whole rounds of symbols, last round first, each with its table.
    pub rounds: fn(&[&TableEncoder], &[u8], &mut [u32; LANES], &mut Words),
    /// The cost of symbols with each choice, in sixteenths of a bit.
    pub costs: fn(&Costs, &[u8]) -> [u32; MAX_CHOICES],
}

impl EncodeKernel {
    /// The scalar loops.
    pub const SCALAR: Self = Self {
        planes: |encoder, chunk| encoder.encode_planes(chunk),
        rounds: scalar_rounds,
        costs: scalar_costs,
    };
}

/// A model prepared for encoding.
pub struct Encoder<'a> {
    pub(super) model: &'a EntropyModel,
    /// By symbol value: its symbol.
    symbols: Box<[u8; 1 << 16]>,
    pub(super) tables: Vec<TableEncoder>,
    /// By class: what symbols cost.
    pub(super) costs: Vec<Costs>,
    kernel: EncodeKernel,
    memory: Arc<EncodeMemory>,
}

/// Memory that encoding takes, for several encoders: for as many chunks as are encoded at a time.
#[derive(Default)]
pub struct EncodeMemory(Mutex<Vec<Scratch>>);

/// Buffers that encoding a chunk takes.
#[derive(Default)]
struct Scratch {
    symbol_values: Vec<u16>,
    /// Of one plane.
    values: Vec<u8>,
    /// All planes.
    packed: Vec<u8>,
    symbols: Vec<u8>,
    words: Words,
}

impl<'a> Encoder<'a> {
    /// An encoder of `model` that uses `kernel`.
    pub(in crate::codec) fn with_kernel(
        model: &'a EntropyModel,
        kernel: EncodeKernel,
        memory: &Arc<EncodeMemory>,
    ) -> Self {
        let mut symbols = Box::new([model.escape(); 1 << 16]);
        model.values().iter().enumerate().for_each(|(s, &v)| symbols[usize::from(v)] = s as u8);
        let classes = model.classes();
        let mut costs: Vec<Costs> = vec![[[u8::MAX; ALPHABET]; MAX_CHOICES]; classes];
        for (i, table) in model.tables().iter().enumerate() {
            let cost =
                |f: u16| (16.0 * (PROB_BITS as f32 - f32::from(f.max(1)).log2())).round() as u8;
            costs[i % classes][i / classes] = table.frequencies().map(cost);
        }
        let tables = model.tables().iter().map(TableEncoder::new).collect();
        Self { model, symbols, tables, costs, kernel, memory: Arc::clone(memory) }
    }

    /// The chunk as [`crate::codec::Coding::Planes`], or `None` if it is not a whole number of
    /// elements.
    pub(in crate::codec) fn planes(&self, chunk: &[u8]) -> Option<Vec<u8>> {
        (self.kernel.planes)(self, chunk)
    }

    /// [`Self::planes`], in a copy for each instruction set.
    #[inline(always)]
    pub(in crate::codec) fn encode_planes(&self, chunk: &[u8]) -> Option<Vec<u8>> {
        let lock = || self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = lock().pop().unwrap_or_default();
        let encoded = self.encode_with(chunk, &mut scratch);
        lock().push(scratch);
        encoded
    }

    #[inline(always)]
    fn encode_with(&self, chunk: &[u8], scratch: &mut Scratch) -> Option<Vec<u8>> {
        let layout = self.model.layout();
        let width = usize::from(layout.width());
        if !chunk.len().is_multiple_of(width) {
            return None;
        }
        layout.symbol_values(chunk, &mut scratch.symbol_values);
        let first = scratch.symbol_values[0];
        let constant = scratch.symbol_values.iter().all(|&v| v == first);
        let mode = if constant { StorageMode::Constant } else { StorageMode::Stored };
        let mut head = vec![mode as u8, 0];
        head.extend_from_slice(&if constant { first.to_le_bytes() } else { [0, 0] });
        let mut packed = std::mem::take(&mut scratch.packed);
        packed.clear();
        // The end of the plane that will end in the states: the last one that is long enough.
        let mut carrier = None;
        for &plane in layout.planes() {
            layout.plane_values(plane, chunk, &mut scratch.values);
            let start = packed.len();
            let (mode, value) = self.plane(plane, &scratch.values, &mut packed);
            head.extend_from_slice(&[mode as u8, value]);
            if mode == StorageMode::Stored && packed.len() - start >= CARRIED {
                carrier = Some(packed.len());
            }
        }
        if !constant {
            let carried = carrier.map(|end| packed.drain(end - CARRIED..end).collect::<Vec<u8>>());
            self.symbols(scratch, carried.as_deref(), packed.len(), &mut head);
        }
        head.extend_from_slice(&packed);
        scratch.packed = packed;
        Some(head)
    }

    /// Appends a plane in the smallest way.
    #[inline(always)]
    fn plane(&self, plane: Plane, values: &[u8], out: &mut Vec<u8>) -> (StorageMode, u8) {
        if values.iter().all(|&v| v == values[0]) {
            return (StorageMode::Constant, values[0]);
        }
        let block = self.model.block();
        let present: Vec<bool> =
            values.chunks(block).map(|b| b.iter().fold(0, |any, v| any | v) != 0).collect();
        let absent = present.iter().filter(|p| !**p).count();
        if absent * packed_len(plane.bits, block) <= present.len().div_ceil(8) {
            pack(values, plane.bits, out);
            return (StorageMode::Stored, 0);
        }
        let bits = |eight: &[bool]| eight.iter().rev().fold(0, |byte, &p| byte << 1 | u8::from(p));
        out.extend(present.chunks(8).map(bits));
        for (block, _) in values.chunks(block).zip(&present).filter(|(_, p)| **p) {
            pack(block, plane.bits, out);
        }
        (StorageMode::Sparse, 0)
    }

    /// Appends the entropy-coded symbols of the elements with these symbol values. The initial
    /// states take up what is `carried`. The caller appends `following` bytes afterwards.
    #[inline(always)]
    fn symbols(
        &self,
        scratch: &mut Scratch,
        carried: Option<&[u8]>,
        following: usize,
        out: &mut Vec<u8>,
    ) {
        let Scratch { symbol_values, symbols, words, .. } = scratch;
        let rounds = symbol_values.len().div_ceil(LANES);
        symbols.clear();
        symbols.reserve(rounds * LANES);
        symbols.extend(symbol_values.iter().map(|&v| self.symbols[usize::from(v)]));
        let escapes = self.escapes(symbols, symbol_values);
        let choices = self.choices(symbols);
        let per_block = self.model.block() / LANES;
        let classes = self.model.classes();
        let first_table = |round: usize| usize::from(choices[round / per_block]) * classes;
        let columns = self.model.columns();
        while symbols.len() < rounds * LANES {
            // The padding gets the symbol that costs least.
            let class =
                columns.get(symbols.len() % columns.len().max(1)).map_or(0, |&c| usize::from(c));
            symbols.push(self.tables[first_table(rounds - 1) + class].likely);
        }
        let mut states = initial_states(carried);
        words.buffer.resize(symbols.len(), 0);
        words.free = symbols.len();
        if classes == 1 {
            let tables: Vec<&TableEncoder> =
                (0..rounds).map(|r| &self.tables[first_table(r)]).collect();
            (self.kernel.rounds)(&tables, symbols, &mut states, words);
        } else {
            for (i, symbols) in symbols.as_chunks().0.iter().enumerate().rev() {
                let tables = &self.tables[first_table(i)..];
                let class = self.model.classes_from(i * LANES % columns.len());
                let table = |lane: usize| &tables[usize::from(class[lane])];
                encode_round(table, symbols, &mut states, words);
            }
        }
        let words = &words.buffer[words.free..];
        out.reserve(8 + choices.len() + 4 * LANES + 2 * words.len() + escapes.len() + following);
        self.put_stream(words, escapes.len() / 2, &choices, &states, out);
        out.extend_from_slice(&escapes);
    }

    /// Appends a stream without what is escaped.
    pub(super) fn put_stream(
        &self,
        words: &[u16],
        escapes: usize,
        choices: &[u8],
        states: &[u32; LANES],
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(&(words.len() as u32).to_le_bytes());
        out.extend_from_slice(&(escapes as u32).to_le_bytes());
        if self.model.choices() > 1 {
            out.extend(
                choices.chunks(4).map(|four| four.iter().rev().fold(0, |byte, c| byte << 2 | c)),
            );
        }
        states.iter().for_each(|s| out.extend_from_slice(&s.to_le_bytes()));
        put_words(words, out);
    }

    /// The symbol values whose symbol is the escape, two bytes each.
    #[inline(always)]
    fn escapes(&self, symbols: &[u8], symbol_values: &[u16]) -> Vec<u8> {
        let escape = self.model.escape();
        let mut escapes = Vec::new();
        for (symbols, values) in symbols.chunks(LANES).zip(symbol_values.chunks(LANES)) {
            if symbols.iter().fold(false, |any, &s| any | (s == escape)) {
                let escaped = symbols.iter().zip(values).filter(|(s, _)| **s == escape);
                escapes.extend(escaped.flat_map(|(_, v)| v.to_le_bytes()));
            }
        }
        escapes
    }

    /// The best choice for each block.
    #[inline(always)]
    fn choices(&self, symbols: &[u8]) -> Vec<u8> {
        let block = self.model.block();
        if self.model.choices() == 1 {
            return vec![0; symbols.len().div_ceil(block)];
        }
        let columns = self.model.columns();
        let best = |costs: [u32; MAX_CHOICES]| {
            (0..self.model.choices()).min_by_key(|&choice| costs[choice]).unwrap_or(0) as u8
        };
        if columns.is_empty() {
            return symbols
                .chunks(block)
                .map(|b| best((self.kernel.costs)(&self.costs[0], b)))
                .collect();
        }
        let mut column = 0;
        let blocks = symbols.chunks(block).map(|symbols| {
            let mut sums = [0; MAX_CHOICES];
            for &s in symbols {
                let costs = &self.costs[usize::from(columns[column])];
                sums.iter_mut()
                    .zip(costs)
                    .for_each(|(sum, c)| *sum += u32::from(c[usize::from(s & 63)]));
                column = if column + 1 == columns.len() { 0 } else { column + 1 };
            }
            best(sums)
        });
        blocks.collect()
    }
}

/// The states that the encoder starts from. Their lower halves hold what is `carried`.
pub(super) fn initial_states(carried: Option<&[u8]>) -> [u32; LANES] {
    let mut states = [STATE_LOW; LANES];
    if let Some(carried) = carried {
        let halves = carried.as_chunks().0.iter();
        states.iter_mut().zip(halves).for_each(|(s, &c)| *s |= u32::from(u16::from_le_bytes(c)));
    }
    states
}
