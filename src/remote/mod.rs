//! Objects on other machines: in S3, Google Cloud Storage and Azure, on web servers, on hubs.
//!
//! `url` names them. `store` is one interface to `cloud` (the object stores), `web` and `hub`, and
//! compares each `answer` with the `identity` of the object. `fetch` is the heart: it fetches
//! `parts` of objects in the order of its `queue`, as many at once as `parallel` finds useful, each
//! by a `request` that is repeated according to `retry`. `blocks` holds the parts that are here or
//! on their way, and `demand` is a read that waits for some. What has arrived is kept in the `disk`
//! cache, which `evict` keeps within its bound. An [`Object`] is what others see of all that, and a
//! [`Place`] is where they find it.
//!
//! The other way, a [`Target`] is where objects go: `put` uploads the bytes of a [`Body`] and reads
//! them back, and `unfinished` knows the uploads that are to be aborted when the process ends.
//!
//! A [`Probe`] finds out what works, for `bsz doctor`; `origin` says where credentials come from.
//!
//! Deadlines are all in this room, and no thread of its callers waits for the network unless it
//! asks to.

mod answer;
mod blocks;
mod body;
mod client;
mod cloud;
mod counters;
mod demand;
mod disk;
mod evict;
mod failure;
mod fetch;
mod hub;
mod identity;
mod object;
mod options;
mod origin;
mod parallel;
mod parts;
mod place;
mod probe;
mod put;
mod queue;
mod request;
mod retry;
mod store;
mod target;
mod threads;
mod unfinished;
mod url;
mod web;
mod writer;

pub use answer::Entry;
pub use body::{Body, FileBody};
pub use counters::RemoteStats;
pub use demand::{Done, Stored};
pub use identity::{Facts, Identity};
pub use object::Object;
pub use options::{Deadlines, DiskCacheOptions, RemoteOptions};
pub use origin::Origin;
pub use parts::Pattern;
pub use place::{Found, Place};
pub use probe::{Probe, Sample, Seen};
pub use put::Put;
pub use target::Target;
pub use unfinished::abandon;
pub use url::{is_remote, join, shown};
