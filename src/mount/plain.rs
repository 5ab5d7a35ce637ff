//! Reads of plain files, past the page cache of the source where they are large.

#[cfg(feature = "remote")]
use super::{reply::Replier, waiting::Awaited};
use crate::cache::ChunkCache;
#[cfg(feature = "remote")]
use crate::{
    error::{Error, Result as Outcome},
    remote::{Object, Stored},
};
#[cfg(feature = "remote")]
use fuser::RequestId;
use fuser::{Errno, ReplyData};
use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Result};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Most bytes that are read on a thread that reads `/dev/fuse`, if they are in the page cache.
const MAX_INLINE: usize = 128 << 10;

/// What is read of a file beyond this offset does not stay in the page cache of the source, because
/// the kernel caches it as a part of the mount.
const KEPT: u64 = 32 << 20;

/// Reply to a read without blocking: from the page cache, or on a thread of the cache. Handing a
/// small read over to another thread costs more than reading from the page cache.
pub(crate) fn read_plain(
    cache: &Arc<ChunkCache>,
    file: Arc<File>,
    offset: u64,
    len: usize,
    reply: ReplyData,
) {
    if len <= MAX_INLINE {
        let mut buffer = vec![0; len];
        if let Some(len) = read_cached(&file, offset, &mut buffer) {
            return reply.data(&buffer[..len]);
        }
    }
    let worker = Arc::clone(cache);
    cache.spawn(move || read_plain_blocking(&worker, &file, offset, len, reply));
}

/// Reply to a read on a thread that may block.
pub(crate) fn read_plain_blocking(
    cache: &ChunkCache,
    file: &File,
    offset: u64,
    len: usize,
    reply: ReplyData,
) {
    cache.with_scratch(len, |buffer| match buffer {
        Ok(buffer) => match read_to_end(file, offset, buffer) {
            Ok(len) => {
                reply.data(&buffer[..len]);
                if offset >= KEPT {
                    drop_cached(file, offset, len as u64);
                }
            }
            Err(e) => reply.error(e.into()),
        },
        Err(e) => {
            log::error!("{e}");
            reply.error(Errno::ENOMEM);
        }
    });
}

/// Reply to a read of an object on another machine. No thread waits for the network.
#[cfg(feature = "remote")]
pub(super) fn read_object(
    cache: &Arc<ChunkCache>,
    object: &Arc<Object>,
    offset: u64,
    len: usize,
    (replier, request, reply): (Arc<Replier>, RequestId, Awaited<ReplyData>),
    failed: impl FnOnce(&Error) -> Errno + Send + 'static,
) {
    let range = offset.min(object.size())..offset.saturating_add(len as u64).min(object.size());
    let (worker, object) = (Arc::clone(cache), Arc::clone(object));
    cache.spawn(move || {
        let done = move |stored: Outcome<Stored>| {
            worker.spawn(move || match (stored, reply.take()) {
                (_, None) => {}
                (Ok(stored), Some(reply)) => replier.data(request, stored.pieces(), reply),
                (Err(e), Some(reply)) => reply.error(failed(&e)),
            });
        };
        object.fetch_in_order(range, Box::new(done));
    });
}

/// Drop a range of a file from the page cache. Pages that have changed are not dropped, but sent to
/// the disk.
pub(crate) fn drop_cached(file: &File, offset: u64, len: u64) {
    if let Err(e) = fadvise(file, offset, NonZeroU64::new(len), Advice::DontNeed) {
        log::debug!("a range stays in the page cache: {e}");
    }
}

/// Read at `offset` until the buffer is full or the file ends. Returns the number of bytes.
fn read_to_end(file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Read without blocking, if all that is asked for is in the page cache. `None` if it is not.
fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> Option<usize> {
    let wanted = buffer.len();
    let mut part = [IoSliceMut::new(buffer)];
    let n = preadv2(file, &mut part, offset, ReadWriteFlags::NOWAIT).ok()?;
    let is_end = || file.metadata().is_ok_and(|meta| meta.len() <= offset + n as u64);
    (n == wanted || is_end()).then_some(n)
}
