//! The arguments of `fuser`'s requests as those of system calls.

use fuser::TimeOrNow;
use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::time::{SystemTime, UNIX_EPOCH};

/// The flags of open(2) that the kernel passes on.
pub(super) fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags as u32)
}

/// The times that a request sets, if it sets any.
pub(super) fn times(atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>) -> Option<Timestamps> {
    let time = |time: Option<TimeOrNow>| match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => timespec(time),
    };
    let set = atime.is_some() || mtime.is_some();
    set.then(|| Timestamps { last_access: time(atime), last_modification: time(mtime) })
}

fn timespec(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timespec {
            tv_sec: since.as_secs().cast_signed(),
            tv_nsec: i64::from(since.subsec_nanos()),
        },
        // Nanoseconds count forwards, but `fuser` has subtracted them with the seconds.
        Err(before) => {
            let before = before.duration();
            Timespec {
                tv_sec: -before.as_secs().cast_signed(),
                tv_nsec: i64::from(before.subsec_nanos()),
            }
        }
    }
}
