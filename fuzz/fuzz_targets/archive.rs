//! A whole archive from arbitrary bytes with corrected checksums: every way of reading it gives the
//! same bytes or an error.
#![no_main]

use bszfs::codec::checksum;
use bszfs::format::{NO_MODEL, VERSION, header};
use bszfs::read::{Archive, Scratch, describe, verify};
use bszfs::sha256::Hasher;
use bszfs_fuzz::{DECODERS, FOOTER, Tested, correct_footer, decode, seal_footer};
use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::io::Write;

/// The most bytes of an original: enough for several SHA-256 states.
const MOST: u64 = 5 << 19;

fuzz_target!(
    init: {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
        pool.build_global().expect("the only pool");
    },
    |data: &[u8]| {
        let _ = archive(data);
    }
);

/// `flags offset(3) len(3) archive`
fn archive(data: &[u8]) -> Tested {
    let (head, file) = data.split_first_chunk::<7>()?;
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], 0]) as usize;
    let mut file = Sealed::new(file)?;
    let mut archive = file.open()?;
    // The output of every decoder for each chunk, regardless of its checksum.
    let mut chunks = decode_chunks(&archive, &file.bytes);
    if head[0] & 1 == 1 {
        file.put_right(&chunks)?;
        archive = file.open().expect("it opened before");
    } else {
        let ids = 0..archive.index().len();
        let right = |id: usize, c: &[u8]| {
            checksum(c) == archive.index().chunk(id).expect("it was checked").checksum
        };
        chunks = ids.zip(chunks).map(|(id, c)| c.filter(|c| right(id, c))).collect();
    }
    let original: Option<Vec<u8>> =
        chunks.iter().cloned().collect::<Option<Vec<_>>>().map(|c| c.concat());
    for decoder in &DECODERS[..DECODERS.len() - 1] {
        let decoder = &**decoder;
        let mut scratch = Scratch::default();
        for (id, chunk) in chunks.iter().enumerate() {
            let mut out = vec![0xaa; archive.index().chunk(id).expect("it was checked").len()];
            let read = archive.read_chunk(id, decoder, &mut scratch, &mut out);
            assert_eq!(read.is_ok(), chunk.is_some(), "chunk {id}: {read:?}");
            assert!(chunk.as_ref().is_none_or(|c| *c == out), "chunk {id} reads differently");
        }
        let len = archive.footer().original_len as usize;
        for (at, n) in [(0, len + 1), (number(1) % (len + 2), number(4) % (len + 2))] {
            let mut out = vec![0xaa; n];
            let read = archive.read_at(at as u64, &mut out, decoder);
            assert!(read.is_ok() || original.is_none(), "{read:?}");
            if let (Ok(n), Some(original)) = (&read, &original) {
                let from = at.min(len);
                assert!(
                    out[..*n] == original[from..(at + out.len()).clamp(from, len)],
                    "{n} bytes at {at}"
                );
            }
        }
        let described = describe(&archive, decoder);
        assert!(described.is_ok() || original.is_none(), "{described:?}");
        if let Ok(d) = described {
            let bytes = d.tensors.iter().map(|t| t.coded.bytes).sum::<u64>() + d.rest.bytes;
            assert_eq!((d.chunks, bytes), (chunks.len(), len as u64));
        }
        let verified = verify(&archive, decoder, &|_| ());
        let whole = original.as_ref().is_some_and(|o| sha256(o).0 == archive.footer().sha256);
        assert!(whole || verified.is_err(), "verified although its hash differs");
        assert!(!whole || verified.is_ok() || head[0] & 1 == 0, "{verified:?}");
    }
    Some(())
}

fn sha256(bytes: &[u8]) -> ([u8; 32], Vec<[u32; 8]>) {
    let mut h = Hasher::default();
    h.update(bytes);
    h.finish()
}

fn decode_chunks(archive: &Archive, file: &[u8]) -> Vec<Option<Vec<u8>>> {
    let decoded = |id: usize| {
        let c = archive.index().chunk(id).expect("it was checked");
        let model =
            if c.model == NO_MODEL { None } else { Some(archive.index().model(c.model).ok()?) };
        let payload = &file[c.stored_at as usize..][..c.stored_len as usize];
        decode(c.coding, model.as_ref(), payload, c.len(), 0).ok()
    };
    (0..archive.index().len()).map(decoded).collect()
}

/// An archive whose index and footer match their checksums.
struct Sealed {
    bytes: Vec<u8>,
    index: usize,
}

impl Sealed {
    fn new(bytes: &[u8]) -> Option<Self> {
        let mut bytes = bytes.to_vec();
        let before = bytes.len().checked_sub(FOOTER).filter(|&n| n >= 16)?;
        bytes[..16].copy_from_slice(&header(VERSION));
        let index = correct_footer(bytes[before..].as_mut_array()?, before);
        let mut sealed = Self { bytes, index };
        sealed.seal();
        Some(sealed)
    }

    fn footer(&mut self) -> &mut [u8; FOOTER] {
        self.bytes.last_chunk_mut().expect("it has a footer")
    }

    fn seal(&mut self) {
        let sum = checksum(&self.bytes[self.index..self.bytes.len() - FOOTER]);
        self.footer()[80..88].copy_from_slice(&sum.to_le_bytes());
        seal_footer(self.footer());
    }

    fn open(&self) -> Option<Archive> {
        let memory =
            rustix::fs::memfd_create("archive", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
        let mut file = File::from(memory);
        file.write_all(&self.bytes).expect("written");
        Archive::from_file(file).ok().filter(|a| a.footer().original_len <= MOST)
    }

    /// Correct the checksums of the chunks that decode, and the hash if all of them do.
    fn put_right(&mut self, chunks: &[Option<Vec<u8>>]) -> Tested {
        for (id, chunk) in chunks.iter().enumerate() {
            let at = self.index + 32 * id + 16;
            let sum = chunk.as_ref().map_or(0, |c| checksum(c));
            self.bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
        if let Some(original) = chunks.iter().cloned().collect::<Option<Vec<_>>>() {
            let (hash, states) = sha256(&original.concat());
            self.footer()[8..40].copy_from_slice(&hash);
            let at = self.index + 32 * chunks.len();
            let states: Vec<u8> =
                states.as_flattened().iter().flat_map(|w| w.to_le_bytes()).collect();
            self.bytes[at..at + states.len()].copy_from_slice(&states);
        }
        self.seal();
        Some(())
    }
}
