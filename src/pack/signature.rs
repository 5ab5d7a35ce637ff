//! Files that are no models, told by how they start: programs, pictures, and what is compressed
//! already.

/// Bytes from the start of a file that are enough to tell.
pub const START: usize = 512;

const PROGRAM: &str = "is a program";
const IMAGE: &str = "is an image";
const MEDIA: &str = "is audio or video";
const COMPRESSED: &str = "is compressed already";
const DOCUMENT: &str = "is a document";
const FONT: &str = "is a font";
const DATABASE: &str = "is a database";

/// What starts with these bytes, and what it is.
const SIGNATURES: &[(&[u8], &str)] = &[
    (b"\x7fELF", PROGRAM),
    (b"MZ", PROGRAM),
    (b"#!", PROGRAM),
    (b"!<arch>\n", PROGRAM),
    (b"\xfe\xed\xfa", PROGRAM),
    (b"\xce\xfa\xed\xfe", PROGRAM),
    (b"\xcf\xfa\xed\xfe", PROGRAM),
    (b"\xca\xfe\xba\xbe", PROGRAM),
    (b"\0asm", PROGRAM),
    (b"BC\xc0\xde", PROGRAM),
    (b"\x89PNG", IMAGE),
    (b"\xff\xd8\xff", IMAGE),
    (b"\xff\x0a", IMAGE),
    (b"\0\0\0\x0cJXL ", IMAGE),
    (b"GIF8", IMAGE),
    (b"BM", IMAGE),
    (b"II*\0", IMAGE),
    (b"MM\0*", IMAGE),
    (b"8BPS", IMAGE),
    (b"\0\0\x01\0", IMAGE),
    (b"qoif", IMAGE),
    (b"v/1\x01", IMAGE),
    (b"DDS ", IMAGE),
    (b"\xabKTX", IMAGE),
    (b"RIFF", MEDIA),
    (b"FORM", MEDIA),
    (b"OggS", MEDIA),
    (b"fLaC", MEDIA),
    (b"ID3", MEDIA),
    (b"\x1aE\xdf\xa3", MEDIA),
    (b"\0\0\x01\xba", MEDIA),
    (b"\x1f\x8b", COMPRESSED),
    (b"\x1f\x9d", COMPRESSED),
    (b"\x28\xb5\x2f\xfd", COMPRESSED),
    (b"\xfd7zXZ\0", COMPRESSED),
    (b"BZh", COMPRESSED),
    (b"7z\xbc\xaf", COMPRESSED),
    (b"Rar!", COMPRESSED),
    (b"\x04\x22\x4d\x18", COMPRESSED),
    (b"LZIP", COMPRESSED),
    (b"MSCF", COMPRESSED),
    (b"PAR1", COMPRESSED),
    (b"PACK", COMPRESSED),
    (b"hsqs", COMPRESSED),
    (b"%PDF", DOCUMENT),
    (b"%!PS", DOCUMENT),
    (b"\xd0\xcf\x11\xe0", DOCUMENT),
    (b"OTTO", FONT),
    (b"\0\x01\0\0\0", FONT),
    (b"ttcf", FONT),
    (b"wOF", FONT),
    (b"SQLite format 3", DATABASE),
];

/// Why a file that starts like this is no model, if it is certain.
pub(super) fn foreign(start: &[u8]) -> Option<&'static str> {
    let found = SIGNATURES.iter().find(|(signature, _)| start.starts_with(signature));
    let what = found.map(|(_, what)| *what);
    // Films and pictures of one family differ in what follows.
    let is_media = || start.get(4..8).is_some_and(|tag| tag == b"ftyp");
    what.or_else(|| is_media().then_some(MEDIA)).or_else(|| is_text(start).then_some("is text"))
}

/// Whether a file that starts like this may be a model.
pub fn may_be_model(start: &[u8]) -> bool {
    foreign(start).is_none()
}

/// Whether bytes are text: no control characters, and nothing but UTF-8.
fn is_text(bytes: &[u8]) -> bool {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // The last character may be cut.
        Err(e) if e.error_len().is_none() => {
            std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    text.len() >= START / 2 && !text.chars().any(|c| c.is_control() && !c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_model_is_told_by_its_start() {
        for (start, what) in [
            (&b"\x89PNG\r\n\x1a\n"[..], Some(IMAGE)),
            (b"\x7fELF\x02\x01", Some(PROGRAM)),
            (b"\0\0\0 ftypavif", Some(MEDIA)),
            (b"\x1f\x8b\x08", Some(COMPRESSED)),
            (b"GGUF\x03\0\0\0", None),
            (b"PK\x03\x04", None),
            (b"\x93NUMPY", None),
            (b"\x89HDF\r\n\x1a\n", None),
            (b"", None),
        ] {
            assert_eq!(foreign(start), what, "{start:?}");
        }
        let code = "fn main() { println!(\"Grüße\"); }\n".repeat(20);
        assert_eq!(foreign(&code.as_bytes()[..START]), Some("is text"));
        let header = [&[200, 0, 0, 0, 0, 0, 0, 0][..], &b"{\"__metadata__\": 1}".repeat(40)];
        assert!(may_be_model(&header.concat()[..START]));
    }
}
