//! `bsz bench --cuda`: the rates at which a GPU decodes and copies.

use super::measure::{best, spread};
use crate::cli::progress::Bar;
use crate::cli::report;
use crate::codec::verify_checksum;
use crate::error::{Error, Result};
use crate::gpu::{self, Gpu, Piece};
use crate::read::{Archive, StoredChunk};
use rayon::prelude::*;
use serde::Serialize;
use std::sync::{Mutex, PoisonError};

/// The most decoded bytes of chunks to measure, approximately.
const MOST: u64 = 2 << 30;
/// Bytes that are copied back and forth.
const COPIED: usize = 64 << 20;
/// The most bytes that are copied within the device: more than its caches hold.
const MOST_ON_DEVICE: usize = 1 << 30;

/// The measurements, as in the JSON. Rates are in GB/s, of decoded bytes unless they are copies.
#[derive(Serialize)]
pub struct Figures {
    device: String,
    /// Decoded bytes of the measured chunks; `stored` is their stored bytes.
    bytes: u64,
    stored: u64,
    upload_gbs: f64,
    download_gbs: f64,
    /// A copy from device memory to device memory, which moves each byte twice: in and out.
    device_copy_gbs: f64,
    /// From device memory to device memory.
    resident_gbs: f64,
    /// The same, with checksums compared on the device.
    checked_gbs: f64,
    /// From host memory to device memory, decoded there.
    to_device_gbs: f64,
    /// From host memory to host memory, with checksums verified.
    to_host_gbs: f64,
}

/// A chunk in memory, and its checksum.
struct Chunk {
    stored: StoredChunk,
    checksum: u64,
}

impl Chunk {
    fn payload(&self) -> &[u8] {
        self.stored.parts().2
    }

    fn verify(&self, decoded: &[u8]) -> Result<()> {
        Ok(verify_checksum(decoded, self.checksum)?)
    }
}

/// Measure each row for about `seconds`.
pub fn figures(gpu: &Gpu, archive: &Archive, seconds: f64, bar: &Bar) -> Result<Figures> {
    bar.say("loading chunks");
    let chunks = load(archive, MOST.min(gpu.free_memory()? as u64 / 3))?;
    let pieces: Vec<Piece> = chunks.iter().map(piece).collect();
    let bytes = pieces.iter().map(|p| p.len as u64).sum();
    let fill = |i: usize, place: &mut [u8]| {
        place.copy_from_slice(chunks[i].payload());
        Ok(())
    };

    bar.say("copies");
    let copies = copies(gpu, &chunks, seconds)?;

    bar.say("on the device");
    let mut placed = gpu.place(&pieces, 0, &fill)?;
    placed.results(&mut |i, decoded, _| chunks[i].verify(decoded?))?;
    let resident_gbs = best(bytes, seconds, |times| placed.decode(times, false))?;
    let checked_gbs = best(bytes, seconds, |times| placed.decode(times, true))?;
    let to_device_gbs = best(bytes, seconds, |times| placed.upload_and_decode(times))?;
    // Once more, since a rate counts only if what was decoded so fast is right.
    placed.results(&mut |i, decoded, _| chunks[i].verify(decoded?))?;
    drop(placed);

    bar.say("to the host");
    let mut session = gpu.session(gpu::DEFAULT_MEMORY)?;
    let failed = Mutex::new(Ok(()));
    let take = |i: usize, decoded: Result<&[u8]>| {
        if let Err(e) = decoded.and_then(|decoded| chunks[i].verify(decoded)) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(e);
        }
    };
    let to_host_gbs = best(bytes, seconds, |times| {
        (0..times).try_for_each(|_| session.decode(&pieces, &fill, &take))
    })?;
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    let device = gpu.name().to_owned();
    let stored = pieces.iter().map(|p| p.stored_len as u64).sum();
    Ok(Figures {
        device,
        bytes,
        stored,
        upload_gbs: copies.up,
        download_gbs: copies.down,
        device_copy_gbs: copies.across,
        resident_gbs,
        checked_gbs,
        to_device_gbs,
        to_host_gbs,
    })
}

/// Rates of copies, in GB/s.
struct Copies {
    up: f64,
    down: f64,
    across: f64,
}

/// Measures the ceilings: copies of the chunks' stored bytes.
fn copies(gpu: &Gpu, chunks: &[Chunk], seconds: f64) -> Result<Copies> {
    let on_device = MOST_ON_DEVICE.min(gpu.free_memory()? / 8).max(COPIED);
    let fill = |place: &mut [u8]| {
        let stored = chunks.iter().flat_map(Chunk::payload).cycle();
        place.iter_mut().zip(stored).for_each(|(to, from)| *to = *from);
    };
    let mut transfer = gpu.transfer(COPIED, on_device, fill)?;
    let on_device = transfer.on_device() as u64;
    Ok(Copies {
        up: best(COPIED as u64, seconds, |times| transfer.up(times))?,
        down: best(COPIED as u64, seconds, |times| transfer.down(times))?,
        across: best(on_device, seconds, |times| transfer.across(times))?,
    })
}

/// Chunks that a GPU can decode, about `most` decoded bytes, evenly spread over the archive.
fn load(archive: &Archive, most: u64) -> Result<Vec<Chunk>> {
    let index = archive.index();
    let chunks =
        (0..index.len()).map(|id| Ok((id, index.chunk(id)?))).collect::<Result<Vec<_>>>()?;
    let known: Vec<_> =
        chunks.into_iter().filter(|(_, chunk)| gpu::supports(chunk.coding)).collect();
    if known.is_empty() {
        return Err(Error::invalid("contains no chunks that a GPU can decode"));
    }
    let bytes = known.iter().map(|(_, chunk)| chunk.len() as u64).sum();
    let load = |i: usize| {
        let (id, chunk) = &known[i];
        Ok(Chunk { stored: archive.stored_chunk(*id)?, checksum: chunk.checksum })
    };
    spread(known.len(), bytes, most).into_par_iter().map(load).collect()
}

fn piece(chunk: &Chunk) -> Piece {
    let (coding, model, payload) = chunk.stored.parts();
    Piece {
        coding,
        model: model.cloned(),
        stored_len: payload.len(),
        len: chunk.stored.decoded_len(),
        checksum: Some(chunk.checksum),
    }
}

impl Figures {
    pub fn lines(&self) -> Vec<String> {
        let row = |name: &str, gbs: f64, of: Option<f64>| {
            let part = of.map_or(String::new(), |of| format!("{:.1} %", 100.0 * gbs / of));
            vec![name.to_owned(), format!("{gbs:.2} GB/s"), part]
        };
        let header = ["", "rate", "of download"].map(String::from).to_vec();
        let rows = [
            header,
            row("decode, device memory to device memory", self.resident_gbs, None),
            row("the same, with checksums compared", self.checked_gbs, None),
            row("decode, host memory to device memory", self.to_device_gbs, None),
            row("decode, host memory to host memory", self.to_host_gbs, Some(self.download_gbs)),
            row("upload", self.upload_gbs, None),
            row("download", self.download_gbs, None),
            row("copy, device memory to device memory", self.device_copy_gbs, None),
        ];
        let (stored, bytes) = (report::bytes(self.stored), report::bytes(self.bytes));
        let head = format!("{}: chunks of {stored} that decode to {bytes}", self.device);
        std::iter::once(head).chain(report::table(&rows, &[1, 2])).collect()
    }
}
