//! The measurements: passes over chunks in memory, and over an open archive, repeated for a while.

use crate::cli::generate::Random;
use crate::codec::ChunkDecoder;
use crate::error::{Error, Result};
use crate::read::{Archive, StoredChunk};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Serialize;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The most stored bytes of chunks to hold in memory, approximately.
const MOST_STORED: u64 = 1 << 30;
/// The most bytes to copy from, approximately: more than the processor caches hold.
const MOST_COPIED: usize = 256 << 20;
/// The shortest pass, in seconds. A shorter one would measure clocks and thread starts, not work.
const SHORTEST: f64 = 0.02;
/// Bytes of a random read.
const READ: u64 = 4 << 10;
/// The fewest random reads that give percentiles.
const FEWEST_READS: usize = 100;

/// A pool of `threads` threads, separate from the global one.
pub fn pool(threads: usize) -> Result<ThreadPool> {
    let pool =
        ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("bsz-{i}")).build();
    pool.map_err(|e| Error::invalid(e.to_string()).about("threads"))
}

/// The best rate of the passes that fit into `seconds`, but of at least one, in GB/s. `pass` works
/// on `bytes` bytes, as many times as its argument says.
pub fn best(bytes: u64, seconds: f64, mut pass: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let (mut times, mut best) = (1, 0f64);
    let begun = Instant::now();
    loop {
        let pass_begun = Instant::now();
        pass(times)?;
        let took = pass_begun.elapsed().as_secs_f64();
        if took < SHORTEST {
            times = (1.5 * times as f64 * SHORTEST / took.max(1e-6)).ceil() as usize;
            continue;
        }
        best = best.max(times as f64 * bytes as f64 / took / 1e9);
        if begun.elapsed().as_secs_f64() + took > seconds {
            return Ok(best);
        }
    }
}

/// An evenly spread selection of `count` chunks of `stored` bytes that takes about `most` bytes, or
/// all of them if they fit.
pub fn spread(count: usize, stored: u64, most: u64) -> Vec<usize> {
    let taken =
        (count as u128 * u128::from(most) / u128::from(stored.max(1))).clamp(1, count as u128);
    (0..taken).map(|i| (i * count as u128 / taken) as usize).collect()
}

/// Stored chunks of an archive in memory: all, or an evenly spread selection.
pub struct Sample {
    chunks: Vec<StoredChunk>,
    /// The source of copies: slots of the length of the longest chunk.
    source: Vec<u8>,
    /// Decoded bytes of the longest chunk.
    longest: usize,
}

impl Sample {
    /// Read the chunks, and decode each once, so that their tables are built.
    ///
    /// # Errors
    /// As [`Archive::stored_chunk`] and [`StoredChunk::decode`].
    pub fn load(archive: &Archive, decoder: &dyn ChunkDecoder) -> Result<Self> {
        let index = archive.index();
        let stored = |id| index.chunk(id).map(|chunk| u64::from(chunk.stored_len));
        let stored = (0..index.len()).map(stored).sum::<Result<u64>>()?;
        let load = |out: &mut Vec<u8>, id| {
            let chunk = archive.stored_chunk(id)?;
            out.resize(chunk.decoded_len(), 0);
            chunk.decode(decoder, out).map(|()| chunk)
        };
        let chunks = spread(index.len(), stored, MOST_STORED)
            .into_par_iter()
            .map_init(Vec::new, load)
            .collect::<Result<Vec<_>>>()?;
        let longest = chunks.iter().map(StoredChunk::decoded_len).max().unwrap_or(0);
        let places = (MOST_COPIED / longest.max(1)).clamp(1, chunks.len());
        // Not zeros: those would all map to one page.
        Ok(Self { chunks, source: vec![1; places * longest], longest })
    }

    /// Decoded bytes.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|c| c.decoded_len() as u64).sum()
    }

    /// The rate of decoding with `threads` threads, in GB/s.
    ///
    /// # Errors
    /// As [`StoredChunk::decode`].
    pub fn decode(&self, decoder: &dyn ChunkDecoder, threads: usize, seconds: f64) -> Result<f64> {
        self.rate(threads, seconds, &|i, out| self.chunks[i].decode(decoder, out))
    }

    /// The rate of copying the same number of bytes in the same pieces, in GB/s.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn copy(&self, threads: usize, seconds: f64) -> Result<f64> {
        let places = self.source.len() / self.longest;
        self.rate(threads, seconds, &|i, out| {
            out.copy_from_slice(&self.source[i % places * self.longest..][..out.len()]);
            Ok(())
        })
    }

    /// The rate of `work`, which produces the bytes of the chunk of a number. Each thread has one
    /// buffer.
    fn rate(
        &self,
        threads: usize,
        seconds: f64,
        work: &(dyn Fn(usize, &mut [u8]) -> Result<()> + Sync),
    ) -> Result<f64> {
        let pool = pool(threads)?;
        let buffers: Vec<_> = (0..threads).map(|_| Mutex::new(vec![0; self.longest])).collect();
        best(self.bytes(), seconds, |times| {
            let next = AtomicUsize::new(0);
            let done = pool.broadcast(|thread| {
                let mut buffer =
                    buffers[thread.index()].lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= times * self.chunks.len() {
                        return Ok(());
                    }
                    let i = i % self.chunks.len();
                    let out = &mut buffer[..self.chunks[i].decoded_len()];
                    work(i, out)?;
                    black_box(out);
                }
            });
            done.into_iter().collect()
        })
    }
}

/// The latency of reading 4 KiB of the original from an open archive.
#[derive(Serialize)]
pub struct RandomReads {
    pub reads_per_s: f64,
    /// Microseconds.
    pub median_us: f64,
    pub p99_us: f64,
}

/// Read 4 KiB at random offsets, one after the other, decoding the chunk for each.
///
/// # Errors
/// As [`Archive::read_at`].
pub fn random_reads(
    archive: &Archive,
    decoder: &dyn ChunkDecoder,
    seconds: f64,
) -> Result<RandomReads> {
    let len = archive.footer().original_len;
    let mut out = vec![0; READ.min(len) as usize];
    let places = len - out.len() as u64 + 1;
    let mut random = Random(0);
    let mut took = Vec::new();
    let begun = Instant::now();
    while took.len() < FEWEST_READS || begun.elapsed().as_secs_f64() < seconds {
        let at = random.next() % places;
        let one = Instant::now();
        archive.read_at(at, &mut out, decoder)?;
        took.push(one.elapsed());
    }
    let all = begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let percentile = |p: usize| took[took.len() * p / 100].as_secs_f64() * 1e6;
    Ok(RandomReads {
        reads_per_s: took.len() as f64 / all,
        median_us: percentile(50),
        p99_us: percentile(99),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_over_all_chunks() {
        assert_eq!(spread(4, 100, 100), [0, 1, 2, 3]);
        assert_eq!(spread(4, 100, 1000), [0, 1, 2, 3]);
        assert_eq!(spread(10, 1000, 500), [0, 2, 4, 6, 8]);
        assert_eq!(spread(10, 1000, 300), [0, 3, 6]);
        assert_eq!(spread(10, u64::MAX, 1), [0]);
    }
}
