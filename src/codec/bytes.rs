//! Taking stored bytes off the front of a slice.

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
