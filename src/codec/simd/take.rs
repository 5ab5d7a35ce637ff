//! The shuffles that move words to the lanes that take them.

/// By mask of the lanes, out of eight, that take a word: the shuffle that moves the next words to
/// these lanes and zeroes the others.
pub(super) static TAKE: [[u8; 16]; 256] = {
    let mut table = [[0x80; 16]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut byte) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][2 * lane] = byte;
                table[mask][2 * lane + 1] = byte + 1;
                byte += 2;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};
