//! Sizes on the command line.

use crate::format::MAX_CHUNK;
use std::result::Result;

/// Chunk sizes are multiples of this many bytes.
const CHUNK_STEP: u32 = 64 << 10;

/// Parse a number of bytes: plain, or in KiB, MiB, GiB, TiB (K, M, G, T for short), KB, MB, GB, TB.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => {
            return Err("not a size: use bytes, or a number with a unit as in 512M or 2GiB".into());
        }
    };
    let number: u64 = number.parse().map_err(|_| "not a size: use a number, as in 512M")?;
    match number.checked_mul(scale) {
        Some(0) => Err("must not be 0".into()),
        Some(bytes) => Ok(bytes),
        None => Err("too large".into()),
    }
}

/// Parse the decoded size of a chunk, within the limits of the format.
pub fn parse_chunk(text: &str) -> Result<u32, String> {
    let allowed = |&n: &u32| n % CHUNK_STEP == 0 && n <= MAX_CHUNK;
    let why = || format!("must be a multiple of 64 KiB, up to {} MiB", MAX_CHUNK >> 20);
    u32::try_from(parse(text)?).ok().filter(allowed).ok_or_else(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_have_the_usual_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("1GiB", 1 << 30),
            ("512M", 512 << 20),
            ("2 g", 2 << 30),
            ("10k", 10 << 10),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "M", "-1", "1.5G", "1X", "99999999999999999999", "99999999999T"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse_chunk("256KiB"), Ok(256 << 10));
        for text in ["4G", "100", "65K", "1G", "8M"] {
            assert!(parse_chunk(text).is_err(), "{text}");
        }
    }
}
