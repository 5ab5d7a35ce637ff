//! One request on its way: attempts until all of its parts have arrived, each beginning where the
//! last one broke.

use super::{
    answer::{Answer, Wanted},
    blocks::{PartKey, Request},
    demand::Stored,
    failure::Failure,
    options::Deadlines,
    retry::{Retry, within},
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use std::future::Future;
use tokio::time::Instant;

/// Told about what arrives.
pub trait Progress: Sync {
    /// A part has arrived. The next one is not received before this is done.
    fn arrived(
        &self,
        request: &Request,
        part: PartKey,
        bytes: Stored,
    ) -> impl Future<Output = ()> + Send;
    /// A request is about to be sent.
    fn asking(&self);
    /// An attempt has failed.
    fn failed(&self, request: &Request, failure: &Failure);
}

/// Pieces of an answer that are shorter are put together: many of them would cost more than a copy.
const SHORT: usize = 32 << 10;

/// Where a request stands.
#[derive(Default)]
struct Position {
    /// The part that arrives.
    part: usize,
    /// How many bytes of it are here.
    len: usize,
    /// These bytes, as they arrived, and the short pieces behind them.
    pieces: Vec<Bytes>,
    short: Vec<u8>,
}

/// Fetch all parts of a request.
///
/// # Errors
/// Why the rest of them cannot be had.
pub async fn run<P: Progress>(
    request: &Request,
    deadlines: Deadlines,
    progress: &P,
) -> Result<(), Failure> {
    let mut retry = Retry::new();
    let mut at = Position::default();
    loop {
        let before = at.offset(request);
        let Err(failure) = attempt(request, deadlines, progress, &mut at).await else {
            return Ok(());
        };
        progress.failed(request, &failure);
        if at.offset(request) > before {
            retry.progressed();
        }
        retry.wait(failure.while_open(), &request.source.store, request.deadline()).await?;
    }
}

impl Position {
    fn offset(&self, request: &Request) -> u64 {
        request.parts.get(self.part).map_or(u64::MAX, |part| part.start + self.len as u64)
    }

    /// Take a piece of the answer.
    async fn take<P: Progress>(
        &mut self,
        mut piece: Bytes,
        request: &Request,
        progress: &P,
    ) -> Result<(), Failure> {
        while !piece.is_empty() {
            let Some(part) = request.parts.get(self.part) else {
                return Err(Failure::Fatal("the server sends more than it was asked for".into()));
            };
            let len = part.len as usize;
            self.add(piece.split_to(piece.len().min(len - self.len)), len);
            if self.len == len {
                self.gather();
                let bytes = std::mem::take(&mut self.pieces).into();
                (self.part, self.len) = (self.part + 1, 0);
                progress.arrived(request, *part, bytes).await;
            }
        }
        Ok(())
    }

    /// Add a piece of a part of `whole` bytes.
    fn add(&mut self, piece: Bytes, whole: usize) {
        if piece.len() >= SHORT {
            self.gather();
            self.len += piece.len();
            return self.pieces.push(piece);
        }
        if self.len == 0 {
            // The others are likely to be short, too.
            self.short.reserve_exact(whole);
        }
        self.len += piece.len();
        self.short.extend_from_slice(&piece);
    }

    /// Put the short pieces together.
    fn gather(&mut self) {
        if !self.short.is_empty() {
            let short = std::mem::take(&mut self.short).into_boxed_slice();
            self.pieces.push(short.into());
        }
    }
}

async fn attempt<P: Progress>(
    request: &Request,
    deadlines: Deadlines,
    progress: &P,
    at: &mut Position,
) -> Result<(), Failure> {
    let source = &request.source;
    let wanted = Wanted::Range(at.offset(request)..request.range().end);
    progress.asking();
    let ask = source.store.get(&source.key, &wanted, Some(&source.identity.facts));
    let Answer { mut body, .. } = within(deadlines.silence, request.deadline(), ask).await?;
    while at.part < request.parts.len() {
        let piece = body.next().map(Option::transpose);
        match within(deadlines.silence, request.deadline(), piece).await? {
            Some(piece) => at.take(piece, request, progress).await?,
            None => return Err(Failure::transient("the answer ended early")),
        }
        if !request.is_urgent() {
            // As long as it makes progress, nobody is kept waiting by it.
            request.extend(Instant::now() + deadlines.total);
        }
    }
    Ok(())
}
