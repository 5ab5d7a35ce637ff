//! The control interface of a store: that of every mount, and commands to the packer. All are
//! extended attributes of the root.

use crate::mount::{DROP_CACHE, PACK_NOW, PAUSE, RESUME, ROOT, STATUS};
use std::ffi::OsStr;

/// A command to the packer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    PackNow,
    Pause,
    Resume,
}

/// What reading an attribute requests.
pub(super) enum Request {
    Status,
    DropCache,
    Packer(Command),
    /// It is an ordinary attribute.
    None,
}

/// What reading the attribute `name` of a node requests.
pub(super) fn request(id: u64, name: &OsStr) -> Request {
    match name.to_str().filter(|_| id == ROOT) {
        Some(STATUS) => Request::Status,
        Some(DROP_CACHE) => Request::DropCache,
        Some(PACK_NOW) => Request::Packer(Command::PackNow),
        Some(PAUSE) => Request::Packer(Command::Pause),
        Some(RESUME) => Request::Packer(Command::Resume),
        _ => Request::None,
    }
}
