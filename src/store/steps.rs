//! The steps of the protocols that change names. A test ends the process at each of them, and
//! checks that every file is still readable, exactly once, with its bytes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The environment variable that ends the process at a step: `7`, or `7:2` for the second time
/// that step 7 is reached.
const VARIABLE: &str = "BSZ_END_AT_STEP";

macro_rules! steps {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// A step that has just been done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Step { $($name = $number),* }

        /// All steps: their numbers, and what has been done.
        pub const STEPS: &[(u32, &str)] = &[$(($number, $text)),*];
    };
}

steps! {
    SwapPrepared = 1, "swap: the archive is written, verified and synced, but has no name";
    SwapLinked = 2, "swap: the archive has its name beside the plain file";
    SwapSynced = 3, "swap: the directory is synced";
    SwapRemoved = 4, "swap: the plain file has lost its name";
    UnpackDecoded = 5, "unpack: the plain file is written and synced, but has no name";
    TruncateRenamed = 6, "truncate: the archive is called .bsz-old";
    UnpackLinked = 7, "unpack: the plain file has its name beside the archive";
    UnpackSynced = 8, "unpack: the directory is synced";
    UnpackRemoved = 9, "unpack: the archive is removed";
    FormRemoved = 10, "remove: one form of a file is removed";
    ReplacedIsOld = 11, "rename over a packed file: its archive is called .bsz-old";
    ReplacedRenamed = 12, "rename over a packed file: the new file has the name";
    ReplacedSynced = 13, "rename over a packed file: the directory is synced";
    OverRenamed = 14, "rename packed over plain: the archive is called .bsz-over";
    OverSynced = 15, "rename packed over plain: the directory is synced";
    OverRemoved = 16, "rename packed over plain: the plain file is removed";
    OverDone = 17, "rename packed over plain: the archive has its name";
}

/// End the process if it was told to end at this step.
pub(super) fn reached(step: Step) {
    static END: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let end = END.get_or_init(|| {
        let value = std::env::var(VARIABLE).ok()?;
        let (step, time) = value.split_once(':').unwrap_or((&value, "1"));
        Some((step.parse().ok()?, time.parse().ok()?))
    });
    let Some((number, time)) = *end else { return };
    if number == step as u32 && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == time {
        std::process::abort();
    }
}
