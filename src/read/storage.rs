//! Stored bytes from the disk: past the page cache where the file system can, so that they are not kept a second time
//! beside what is decoded from them.
//!
//! Reading around the page cache takes a fifth of the processor's time of reading through it. What is in the page cache
//! already, as after packing, is read from there.

#![allow(unsafe_code)]

use super::scratch::Scratch;
use crate::{
    error::{Error, Result},
    format::read_exact,
};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::{
    cell::RefCell,
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::atomic::{AtomicBool, Ordering},
};

/// What offsets, lengths and addresses of direct reads are multiples of, on every file system known.
const ALIGN: u64 = 4096;

/// An archive's file.
pub(super) struct Storage {
    file: File,
    direct: AtomicBool,
}

impl Storage {
    pub(super) fn new(file: File) -> Self {
        Self { file, direct: AtomicBool::new(false) }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Read around the page cache from now on, unless most of the file is in it, or it cannot be.
    pub(super) fn prefer_direct(&self) {
        let most_is_cached = self.file.metadata().is_ok_and(|meta| {
            let pages = meta.len().div_ceil(ALIGN);
            cached_pages(&self.file).is_some_and(|cached| cached > pages / 2)
        });
        if !most_is_cached {
            self.set_direct(true);
        }
    }

    fn set_direct(&self, on: bool) {
        let set = fcntl_getfl(&self.file).and_then(|flags| {
            let flags = if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
            fcntl_setfl(&self.file, flags)
        });
        match set {
            Ok(()) => self.direct.store(on, Ordering::Relaxed),
            Err(e) => log::debug!("stored bytes are read through the page cache: {e}"),
        }
    }

    /// `len` bytes from `at` on.
    pub(super) fn read<'s>(
        &self,
        at: u64,
        len: usize,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8]> {
        if self.direct.load(Ordering::Relaxed) {
            let start = at - at % ALIGN;
            let skip = (at - start) as usize;
            let room = scratch.bytes((skip + len).next_multiple_of(ALIGN as usize))?;
            match self.read_direct(start, room, skip + len) {
                // This file system does not do it after all.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.set_direct(false),
                Err(e) => return Err(e.into()),
                Ok(n) if n < skip + len => {
                    return Err(Error::truncated(
                        "the archive is shorter than it was or should be",
                    ));
                }
                Ok(_) => return Ok(&scratch.bytes(skip + len)?[skip..]),
            }
        }
        let room = scratch.bytes(len)?;
        read_exact(&self.file, room, at)?;
        Ok(room)
    }

    /// The bytes from `at` on, to all of `out`.
    pub(super) fn read_to(&self, at: u64, out: &mut [u8]) -> Result<()> {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        if !self.direct.load(Ordering::Relaxed) {
            return read_exact(&self.file, out, at);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            out.copy_from_slice(self.read(at, out.len(), scratch)?);
            Ok(())
        })
    }

    /// The same with memory of its own, for what is read now and then: it needs no [`Scratch`], nor takes one.
    pub(super) fn read_aside(&self, at: u64, out: &mut [u8]) -> Result<()> {
        if !self.direct.load(Ordering::Relaxed) {
            return read_exact(&self.file, out, at);
        }
        let align = ALIGN as usize;
        let skip = (at % ALIGN) as usize;
        let mut memory = vec![0; (skip + out.len()).next_multiple_of(align) + align];
        let aligned = memory.as_ptr().align_offset(align);
        let room = &mut memory[aligned..][..(skip + out.len()).next_multiple_of(align)];
        match self.read_direct(at - skip as u64, room, skip + out.len()) {
            // This file system does not do it after all.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                self.set_direct(false);
                read_exact(&self.file, out, at)
            }
            Err(e) => Err(e.into()),
            Ok(n) if n < skip + out.len() => {
                Err(Error::truncated("the archive is shorter than it was or should be"))
            }
            Ok(_) => {
                out.copy_from_slice(&room[skip..][..out.len()]);
                Ok(())
            }
        }
    }

    /// Read until `enough` bytes are there, or the file ends.
    fn read_direct(&self, start: u64, room: &mut [u8], enough: usize) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < enough {
            match self.file.read_at(&mut room[filled..], start + filled as u64) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(n) => {
                    filled += n;
                    // Less than asked for, and not up to a multiple: the end.
                    if n == 0 || !(filled as u64).is_multiple_of(ALIGN) {
                        break;
                    }
                }
            }
        }
        Ok(filled)
    }
}

/// How many pages of the file are in the page cache; `None` where the kernel (before 6.5) does not tell.
fn cached_pages(file: &File) -> Option<u64> {
    // The same on every architecture but Alpha, which has no such number and answers with an error.
    const CACHESTAT: libc::c_long = 451;
    let all = [0u64, 0];
    let mut stat = [0u64; 5];
    // SAFETY: `cachestat` reads two numbers, of a range up to the end of the file, and writes five.
    let rc =
        unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), all.as_ptr(), stat.as_mut_ptr(), 0) };
    (rc == 0).then_some(stat[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_read_either_way_and_the_end_is_noticed() {
        // Not in /tmp, which may be in memory.
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        let bytes: Vec<u8> = (0..20_001u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::io::Write::write_all(&mut file, &bytes).expect("written");
        let storage = Storage::new(file);
        let mut scratch = Scratch::default();
        for direct in [false, true] {
            storage.set_direct(direct);
            for (at, len) in
                [(0, 1), (0, 20_001), (4095, 2), (4096, 4096), (5000, 15_001), (20_000, 1)]
            {
                let got = storage.read(at as u64, len, &mut scratch).expect("read");
                assert!(got == &bytes[at..at + len], "{len} bytes at {at}, direct: {direct}");
            }
            assert!(storage.read(20_000, 2, &mut scratch).is_err());
            assert!(storage.read(30_000, 2, &mut scratch).is_err());
        }
    }
}
