//! Sizes as people write them on a command line.

use std::result::Result;

/// A number of bytes: plain, or in KiB, MiB, GiB, TiB (K, M, G, T for short), KB, MB, GB, TB.
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
        _ => return Err("not a size: write bytes, or a number and a unit, as in 512M or 2GiB".into()),
    };
    let number: u64 = number.parse().map_err(|_| "not a size: it needs a number, as in 512M")?;
    match number.checked_mul(scale) {
        Some(0) => Err("a size of nothing".into()),
        Some(bytes) => Ok(bytes),
        None => Err("more bytes than can be counted".into()),
    }
}

/// The decoded size of a chunk.
pub fn parse_chunk(text: &str) -> Result<u32, String> {
    parse(text)?.try_into().map_err(|_| "a chunk has less than 4 GiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_the_units_people_write() {
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
        assert!(parse_chunk("4G").is_err(), "does not fit the field");
    }
}
