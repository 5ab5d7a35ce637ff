//! The options of `bsz mount` for sources at URLs.

use super::mount_options::is_url;
use super::remote::{RemoteArgs, URL_HEADING};
use crate::error::{Error, Result};
use crate::mount::{RemoteMount, RemoteView};
use crate::remote::RemoteOptions;
use clap::Args;
use std::path::Path;
use std::time::Duration;

/// How a source at a URL is read and shown.
#[derive(Args)]
pub(super) struct UrlArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    /// Use the listing of a directory for S seconds, or `forever`. SIGHUP ends that
    #[arg(
        long,
        value_name = "S|forever",
        default_value = "10",
        value_parser = metadata_ttl,
        help_heading = URL_HEADING
    )]
    pub(super) metadata_ttl: MetadataTtl,
    /// Refuse objects without a strong ETag, whose replacement only their size and time could tell
    #[arg(long, help_heading = URL_HEADING)]
    pub(super) require_etag: bool,
}

/// For how long; `None` is for ever.
#[derive(Clone, Copy)]
pub(super) struct MetadataTtl(pub(super) Option<Duration>);

fn metadata_ttl(text: &str) -> Result<MetadataTtl, &'static str> {
    if text == "forever" {
        return Ok(MetadataTtl(None));
    }
    let seconds = text.parse().map_err(|_| "must be a number of seconds, or forever")?;
    Ok(MetadataTtl(Some(Duration::from_secs(seconds))))
}

impl UrlArgs {
    /// The source, if it is a URL, and what is left of `memory` for decoded data: a quarter is for
    /// what was fetched and is not decoded yet.
    ///
    /// # Errors
    /// Invalid argument, if it is to be changed; those of the disk cache's directory.
    pub(super) fn mount(
        &self,
        source: &Path,
        writes: bool,
        memory: u64,
    ) -> Result<(Option<RemoteMount>, u64)> {
        if !is_url(source.as_os_str()) {
            return Ok((None, memory));
        }
        if writes {
            let why = "a URL needs a MOUNTPOINT, and cannot be changed through a mount";
            return Err(Error::invalid(why).about("URL"));
        }
        let (fetched, options) = (memory / 4, self.remote.options()?);
        // Bytes on their way take no memory but for the part that arrives.
        let in_flight = options.in_flight.min(fetched.max(64 << 20));
        let view = RemoteView { listed_for: self.metadata_ttl.0, requires_etag: self.require_etag };
        let options = RemoteOptions { memory: fetched, in_flight, ..options };
        let url = source.to_string_lossy().into_owned();
        Ok((Some(RemoteMount { url, options, view }), memory - fetched))
    }

    /// How much longer than others a daemon may take to become ready.
    pub(super) fn ready_within(&self, source: &Path) -> Duration {
        if is_url(source.as_os_str()) { 3 * self.remote.timeout() } else { Duration::ZERO }
    }
}
