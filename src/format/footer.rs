//! The fixed ends of an archive: 16 bytes of header, 128 bytes of footer.

use super::{
    HEADER_LEN, MAX_CHUNK, VERSION, VERSION_WITH_BASES,
    bases::{MAX_BASES, MAX_TABLE},
    naming::Naming,
    record::RECORD,
};
use crate::{
    codec::{checksum, model::MAX_WIRE_LEN},
    error::{Error, ErrorKind, Result},
    sha256,
};
use std::{fs::File, ops::RangeInclusive, os::unix::fs::FileExt};

/// Bytes of the footer, which is at the end of the archive.
pub const FOOTER_LEN: u64 = 128;

/// Neither text nor valid UTF-8, and damaged by anything that converts line endings.
const HEADER_MAGIC: [u8; 8] = *b"\x89BSZ\r\n\x1a\n";
const FOOTER_MAGIC: [u8; 6] = *b"BSZEND";
/// The position of the checksum, which covers the rest of the footer.
const CHECKSUM_AT: usize = 112;
/// The longest index, in bytes: that of a model of 8 TiB.
const MAX_INDEX: u64 = 1 << 30;

/// The header of an archive of this version.
pub fn header(version: u16) -> [u8; HEADER_LEN as usize] {
    let mut h = [0; HEADER_LEN as usize];
    h[..8].copy_from_slice(&HEADER_MAGIC);
    h[8..10].copy_from_slice(&version.to_le_bytes());
    h
}

/// Whether a file that begins with `start` is an archive.
///
/// # Errors
/// Compatibility if it is one of another version; corruption if reserved bytes are set.
pub fn check_header(start: &[u8; HEADER_LEN as usize]) -> Result<bool> {
    if start[..8] != HEADER_MAGIC {
        return Ok(false);
    }
    check_version(u16::from_le_bytes([start[8], start[9]]))?;
    if start[10..].iter().any(|&b| b != 0) {
        return Err(Error::corrupt("the archive's header has reserved bytes set"));
    }
    Ok(true)
}

fn check_version(version: u16) -> Result<()> {
    if !(VERSION..=VERSION_WITH_BASES).contains(&version) {
        return Err(Error::unsupported(format!(
            "the archive has format version {version}, but this bsz reads versions {VERSION} to \
             {VERSION_WITH_BASES}"
        )));
    }
    Ok(())
}

/// What the footer says about an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Bytes of the original file.
    pub original_len: u64,
    /// SHA-256 of the original file.
    pub sha256: [u8; 32],
    /// The original's modification time: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// The original's permission bits (`0o7777`).
    pub mode: u32,
    /// How the original's name follows from the archive's.
    pub naming: Naming,
    /// Where the index starts.
    pub index_offset: u64,
    /// Bytes of the index.
    pub index_len: u64,
    /// Checksum of the index.
    pub index_checksum: u64,
    /// The number of chunks.
    pub chunk_count: u32,
    /// The number of models.
    pub model_count: u32,
    /// The decoded length of the longest chunk, or more.
    pub max_chunk: u32,
    /// The number of bases. An archive that has any is of version 2, others are of version 1.
    pub base_count: u32,
    /// Bytes of the table of bases, which is at the end of the index.
    pub bases_len: u32,
}

impl Footer {
    /// The wire form.
    pub fn to_bytes(&self) -> [u8; FOOTER_LEN as usize] {
        let mut b = Vec::with_capacity(FOOTER_LEN as usize);
        b.extend_from_slice(&self.original_len.to_le_bytes());
        b.extend_from_slice(&self.sha256);
        b.extend_from_slice(&self.mtime.0.to_le_bytes());
        b.extend_from_slice(&self.mtime.1.to_le_bytes());
        b.extend_from_slice(&self.mode.to_le_bytes());
        b.extend_from_slice(&u64::from(self.naming as u8).to_le_bytes());
        for v in [self.index_offset, self.index_len, self.index_checksum] {
            b.extend_from_slice(&v.to_le_bytes());
        }
        for v in
            [self.chunk_count, self.model_count, self.max_chunk, self.base_count, self.bases_len]
        {
            b.extend_from_slice(&v.to_le_bytes());
        }
        b.resize(FOOTER_LEN as usize, 0);
        b[120..122].copy_from_slice(&self.version().to_le_bytes());
        b[122..].copy_from_slice(&FOOTER_MAGIC);
        let sum = footer_checksum(&b);
        b[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
        let mut out = [0; FOOTER_LEN as usize];
        out.copy_from_slice(&b);
        out
    }

    /// The version of the archive.
    pub fn version(&self) -> u16 {
        if self.base_count > 0 { VERSION_WITH_BASES } else { VERSION }
    }

    /// Bytes of the index before the models.
    pub(super) fn tables_len(&self) -> u64 {
        RECORD as u64 * u64::from(self.chunk_count)
            + 32 * sha256::state_count(self.original_len)
            + 4 * u64::from(self.model_count)
    }

    /// Where the models end in the index, and the table of bases starts.
    pub(super) fn models_end(&self) -> u64 {
        self.index_len - u64::from(self.bases_len)
    }

    /// The lengths of an index with these numbers of chunks and models.
    fn index_lens(&self) -> RangeInclusive<u64> {
        let least = self.tables_len() + u64::from(self.bases_len);
        least..=MAX_INDEX.min(least + MAX_WIRE_LEN as u64 * u64::from(self.model_count))
    }

    /// Reads the footer of an archive of `file_len` bytes.
    ///
    /// # Errors
    /// Truncated if the archive does not end in a footer; compatibility if its version is unknown;
    /// corruption if its checksum does not match or a value is out of bounds.
    pub fn from_bytes(b: &[u8; FOOTER_LEN as usize], file_len: u64) -> Result<Self> {
        if b[122..] != FOOTER_MAGIC {
            return Err(Error::truncated(
                "the archive does not end in a footer: it was cut short or never finished",
            ));
        }
        let version = u16::from_le_bytes([b[120], b[121]]);
        check_version(version)?;
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| b[at + i]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| b[at + i]));
        if u64_at(CHECKSUM_AT) != footer_checksum(b) {
            return Err(Error::corrupt("the archive's footer does not match its checksum"));
        }
        let naming = Naming::from_wire(u64_at(56))?;
        let footer = Self {
            original_len: u64_at(0),
            sha256: std::array::from_fn(|i| b[8 + i]),
            mtime: (u64_at(40) as i64, u32_at(48)),
            mode: u32_at(52),
            naming,
            index_offset: u64_at(64),
            index_len: u64_at(72),
            index_checksum: u64_at(80),
            chunk_count: u32_at(88),
            model_count: u32_at(92),
            max_chunk: u32_at(96),
            base_count: u32_at(100),
            bases_len: u32_at(104),
        };
        let end = footer
            .index_offset
            .checked_add(footer.index_len)
            .and_then(|n| n.checked_add(FOOTER_LEN));
        let sound = b[108..CHECKSUM_AT].iter().all(|&b| b == 0)
            && end == Some(file_len)
            && footer.index_offset >= HEADER_LEN
            && footer.original_len <= i64::MAX as u64
            && u64::from(footer.chunk_count) <= footer.original_len
            && footer.model_count <= footer.chunk_count
            && footer.version() == version
            && footer.base_count as usize <= MAX_BASES
            && footer.bases_len as usize <= MAX_TABLE
            && (footer.base_count > 0) == (footer.bases_len > 0)
            && footer.index_lens().contains(&footer.index_len)
            && footer.mode <= 0o7777
            && footer.mtime.1 < 1_000_000_000
            && footer.max_chunk <= MAX_CHUNK;
        sound
            .then_some(footer)
            .ok_or_else(|| Error::corrupt("the archive's footer contradicts the archive"))
    }
}

fn footer_checksum(b: &[u8]) -> u64 {
    let mut covered = Vec::with_capacity(FOOTER_LEN as usize);
    covered.extend_from_slice(&b[..CHECKSUM_AT]);
    covered.extend_from_slice(&b[CHECKSUM_AT + 8..]);
    checksum(&covered)
}

/// The footer of `file`, or `None` if that is not an archive. Reads 144 bytes.
///
/// # Errors
/// If the archive is damaged or of an unknown version.
pub fn peek(file: &File) -> Result<Option<Footer>> {
    let len = file.metadata()?.len();
    let mut start = [0; HEADER_LEN as usize];
    if len < HEADER_LEN {
        return Ok(None);
    }
    read_exact(file, &mut start, 0)?;
    if !check_header(&start)? {
        return Ok(None);
    }
    let mut end = [0; FOOTER_LEN as usize];
    let at = len.checked_sub(FOOTER_LEN).filter(|&at| at >= HEADER_LEN);
    let at = at.ok_or_else(|| Error::truncated("the archive was cut short or never finished"))?;
    read_exact(file, &mut end, at)?;
    Footer::from_bytes(&end, len).map(Some)
}

/// `read_exact_at`, with an error of its own for a file that is too short.
pub fn read_exact(file: &File, out: &mut [u8], at: u64) -> Result<()> {
    file.read_exact_at(out, at).map_err(|e| match Error::from(e) {
        e if e.kind() == ErrorKind::Truncated => {
            Error::truncated("the archive is shorter than it was or should be")
        }
        e => e,
    })
}
