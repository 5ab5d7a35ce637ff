//! One request on its way: attempts until all of its parts have arrived, each beginning where the
//! last one broke.

use super::{
    answer::{Answer, Wanted},
    blocks::{PartKey, Request},
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
        bytes: Bytes,
    ) -> impl Future<Output = ()> + Send;
    /// A request is about to be sent.
    fn asking(&self);
    /// An attempt has failed.
    fn failed(&self, request: &Request, failure: &Failure);
}

/// Where a request stands.
struct Position {
    /// The part that arrives.
    part: usize,
    /// Its bytes so far.
    bytes: Vec<u8>,
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
    let mut at = Position { part: 0, bytes: Vec::new() };
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
        request.parts.get(self.part).map_or(u64::MAX, |part| part.start + self.bytes.len() as u64)
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
            if self.bytes.capacity() == 0 {
                self.bytes.reserve_exact(len);
            }
            let here = piece.split_to(piece.len().min(len - self.bytes.len()));
            self.bytes.extend_from_slice(&here);
            if self.bytes.len() == len {
                self.part += 1;
                let bytes = std::mem::take(&mut self.bytes).into();
                progress.arrived(request, *part, bytes).await;
            }
        }
        Ok(())
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
