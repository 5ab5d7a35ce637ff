//! Where a URL has objects put.

use super::{
    body::Body,
    client::{Connector, client},
    cloud::Cloud,
    fetch::Fetcher,
    options::RemoteOptions,
    put::{Put, Upload},
    url::{RemoteUrl, Service},
};
use crate::error::{Context, Error, Result};
use std::path::PathBuf;

/// The place in an object store that a URL names, to put objects there.
pub struct Target {
    fetcher: Fetcher,
    cloud: Cloud,
    url: RemoteUrl,
}

impl Target {
    /// The place of a URL. Nothing is sent to it yet.
    ///
    /// # Errors
    /// Invalid argument: the URL, or the configuration in the environment.
    pub fn new(url: &str, options: &RemoteOptions) -> Result<Self> {
        let url = RemoteUrl::parse(url)?;
        if matches!(url.service, Service::Web { .. } | Service::Hub { .. }) {
            let why = "only s3://, gs:// and az:// can be written to";
            return Err(Error::invalid(why)).about_path(url.to_string().as_ref());
        }
        let connector = Connector(client(options.deadlines)?);
        let cloud = Cloud::new(&url.service, connector);
        let cloud = cloud.about_path(url.to_string().as_ref())?;
        let fetcher = Fetcher::new(&RemoteOptions { disk: None, ..options.clone() })?;
        Ok(Self { fetcher, cloud, url })
    }

    /// Whether the URL names a directory: it is a bucket, or ends in a slash.
    pub fn is_directory(&self) -> bool {
        self.url.is_directory
    }

    /// The last component of the URL, if there is one.
    pub fn last(&self) -> Option<&str> {
        self.url.path.rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// What messages call an object below this place.
    pub fn name(&self, path: &str) -> PathBuf {
        self.url.name(path)
    }

    /// Put an object at `path` below this place. `progress` is told of bytes twice: when they were
    /// sent, and when they were read back.
    ///
    /// # Errors
    /// `EEXIST` if there is another object, unless `force` has it replaced; `EACCES`; `EIO` after
    /// the deadline; corruption, if other bytes are read back; those of the body.
    pub fn put(
        &self,
        path: &str,
        body: &dyn Body,
        force: bool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Put> {
        let key = self.url.key(path);
        let name = self.name(path);
        if key.is_empty() {
            return Err(Error::invalid("names a bucket, not an object")).about_path(&name);
        }
        let upload = Upload { cloud: &self.cloud, fetcher: &self.fetcher, body, force, progress };
        upload.run(&key).about_path(&name)
    }
}
