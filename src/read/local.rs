//! Stored bytes of a file, read with direct I/O if the file system supports it. They need not be
//! cached, because the bytes decoded from them are.
//!
//! Direct reads take a fifth of the CPU time of reads through the page cache. A file that is in the
//! page cache already, as after packing, is read from there.

#![allow(unsafe_code)]

use super::scratch::Scratch;
use crate::{
    error::{Error, Result},
    format::read_exact,
};
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use std::{
    cell::RefCell,
    fs::File,
    num::NonZeroU64,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::atomic::{AtomicBool, Ordering},
};

/// Alignment of offsets, lengths and addresses of direct reads that suffices on all file systems.
const ALIGN: usize = 4096;

/// The file of an archive.
pub(super) struct LocalFile {
    file: File,
    direct: AtomicBool,
}

impl LocalFile {
    pub(super) fn new(file: File) -> Self {
        Self { file, direct: AtomicBool::new(false) }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bypass the page cache from now on, unless most of the file is in it, or the file system
    /// cannot do that.
    pub(super) fn prefer_direct(&self) {
        let most_is_cached = self.file.metadata().is_ok_and(|meta| {
            let pages = meta.len().div_ceil(ALIGN as u64);
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

    /// Read `len` bytes at `at` into `scratch`.
    pub(super) fn read<'s>(
        &self,
        at: u64,
        len: usize,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [u8]> {
        if self.direct.load(Ordering::Relaxed) {
            let extent = Extent::of(at, len);
            if self.read_direct(&extent, scratch.bytes(extent.aligned_len)?)? {
                return Ok(&scratch.bytes(extent.aligned_len)?[extent.range]);
            }
        }
        let out = scratch.bytes(len)?;
        read_exact(&self.file, out, at)?;
        Ok(out)
    }

    /// Have the kernel start to read these bytes, unless the page cache is bypassed.
    pub(super) fn read_ahead(&self, range: &Range<u64>) {
        let len = NonZeroU64::new(range.end - range.start);
        if len.is_some() && !self.direct.load(Ordering::Relaxed) {
            // A hint. What is wrong with the file shows when it is read.
            let _ = fadvise(&self.file, range.start, len, Advice::WillNeed);
        }
    }

    /// Fill `out` with the bytes at `at`.
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

    /// The same with temporary memory, for infrequent reads: no [`Scratch`] is kept for them.
    pub(super) fn read_aside(&self, at: u64, out: &mut [u8]) -> Result<()> {
        if self.direct.load(Ordering::Relaxed) {
            let extent = Extent::of(at, out.len());
            let mut memory = vec![0; extent.aligned_len + ALIGN];
            let aligned = memory.as_ptr().align_offset(ALIGN);
            let buffer = &mut memory[aligned..][..extent.aligned_len];
            if self.read_direct(&extent, buffer)? {
                out.copy_from_slice(&buffer[extent.range]);
                return Ok(());
            }
        }
        read_exact(&self.file, out, at)
    }

    /// Read an extent into an aligned buffer of its aligned length. Returns false, and reads
    /// through the page cache from now on, if the file system does not support direct reads after
    /// all.
    ///
    /// # Errors
    /// Io; truncated, if the file ends before the extent.
    fn read_direct(&self, extent: &Extent, buffer: &mut [u8]) -> Result<bool> {
        match self.fill(extent.start, buffer, extent.range.end) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                self.set_direct(false);
                Ok(false)
            }
            Err(e) => Err(e.into()),
            Ok(n) if n < extent.range.end => {
                Err(Error::truncated("the archive is shorter than it was or should be"))
            }
            Ok(_) => Ok(true),
        }
    }

    /// Read until `enough` bytes are in the buffer, or the file ends. Returns the number of bytes.
    fn fill(&self, start: u64, buffer: &mut [u8], enough: usize) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < enough {
            match self.file.read_at(&mut buffer[filled..], start + filled as u64) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(n) => {
                    filled += n;
                    // A short read that ends at an unaligned offset has reached the end of the
                    // file.
                    if n == 0 || !filled.is_multiple_of(ALIGN) {
                        break;
                    }
                }
            }
        }
        Ok(filled)
    }
}

/// The aligned part of a file that covers some bytes.
struct Extent {
    /// Offset in the file.
    start: u64,
    aligned_len: usize,
    /// Where in it the bytes are.
    range: Range<usize>,
}

impl Extent {
    fn of(at: u64, len: usize) -> Self {
        let skip = (at % ALIGN as u64) as usize;
        let range = skip..skip + len;
        Self { start: at - skip as u64, aligned_len: range.end.next_multiple_of(ALIGN), range }
    }
}

/// The number of the file's pages in the page cache; `None` if the kernel (before 6.5) cannot tell.
fn cached_pages(file: &File) -> Option<u64> {
    // The same on every architecture but Alpha, where the call fails.
    const CACHESTAT: libc::c_long = 451;
    let all = [0u64, 0];
    let mut stat = [0u64; 5];
    // SAFETY: cachestat(2) reads the two numbers of a range, here the whole file, and writes five.
    let rc =
        unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), all.as_ptr(), stat.as_mut_ptr(), 0) };
    (rc == 0).then_some(stat[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_read_with_and_without_direct_io_up_to_the_end() {
        // Not in /tmp, which may be a tmpfs.
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        let bytes: Vec<u8> = (0..20_001u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::io::Write::write_all(&mut file, &bytes).expect("written");
        let storage = LocalFile::new(file);
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
