//! Taking stored bytes off the front of a slice, and appending words.

/// The first `n` bytes, or `None` if there are fewer.
pub(super) fn take<'a>(input: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = input.split_at_checked(n)?;
    *input = rest;
    Some(head)
}

/// The first `N` bytes, or `None` if there are fewer.
pub(super) fn take_array<'a, const N: usize>(input: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = input.split_first_chunk()?;
    *input = rest;
    Some(head)
}

/// Appends words in little-endian order.
pub(super) fn put_words(words: &[u16], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + 2 * words.len(), 0);
    let places = out[start..].as_chunks_mut().0;
    places.iter_mut().zip(words).for_each(|(place, word)| *place = word.to_le_bytes());
}
