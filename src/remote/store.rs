//! One interface to every kind of remote store. Each answer is compared with what is known of the
//! object: there are servers that ignore `If-Match`.

use super::{
    answer::{Answer, Entry, Wanted},
    client::{Connector, client},
    cloud::Cloud,
    failure::Failure,
    hub::Hub,
    identity::Facts,
    options::Deadlines,
    url::{RemoteUrl, Service},
    web::Link,
};
use crate::error::{Context, Result};
use lru::LruCache;
use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};
use url::Url;

/// How many objects of web servers are remembered with their redirects.
const LINKS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// A store.
pub struct Store {
    kind: Kind,
    client: reqwest::Client,
    links: Mutex<LruCache<String, Arc<Link>>>,
}

enum Kind {
    Cloud(Cloud),
    Web(Url),
    Hub(Hub),
}

impl Store {
    /// The store of a URL. Nothing is sent to it.
    ///
    /// # Errors
    /// What is wrong with the configuration in the environment.
    pub fn new(url: &RemoteUrl, deadlines: Deadlines) -> Result<Self> {
        let client = client(deadlines)?;
        let kind = match &url.service {
            Service::Web { url } => Ok(Kind::Web(url.clone())),
            Service::Hub { repository, revision } => {
                Hub::new(client.clone(), repository, revision).map(Kind::Hub)
            }
            service => Cloud::new(service, Connector(client.clone())).map(Kind::Cloud),
        };
        let kind = kind.about(url)?;
        Ok(Self { kind, client, links: Mutex::new(LruCache::new(LINKS)) })
    }

    /// What tells objects of the same URL apart that are seen at other endpoints or by others. For
    /// hashes only: it may be secret.
    pub fn scope(&self) -> String {
        match &self.kind {
            Kind::Cloud(cloud) => cloud.scope().to_owned(),
            Kind::Web(url) => url.query().unwrap_or_default().to_owned(),
            Kind::Hub(hub) => format!("{}\n{:?}", hub.endpoint(), hub.token()),
        }
    }

    /// Whether the last bytes of an object can be asked for without its size.
    pub fn has_suffixes(&self) -> bool {
        match &self.kind {
            Kind::Cloud(cloud) => cloud.has_suffixes(),
            Kind::Web(_) => true,
            Kind::Hub(_) => false,
        }
    }

    /// Read credentials again.
    pub fn renew(&self) {
        match &self.kind {
            Kind::Cloud(cloud) => cloud.renew(),
            Kind::Hub(hub) => hub.renew(),
            Kind::Web(_) => {}
        }
    }

    /// What is known of the object `key`.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn stat(&self, key: &str) -> Result<Facts, Failure> {
        match &self.kind {
            Kind::Cloud(cloud) => cloud.stat(key).await,
            Kind::Web(base) => self.link(key, || Ok(below(base, key, false)))?.stat(None).await,
            Kind::Hub(hub) => hub.stat(key).await,
        }
    }

    /// Ask for bytes of the object `key`.
    ///
    /// # Errors
    /// Those of the request; [`Failure::Replaced`] if the answer is not about the object that is
    /// expected; [`Failure::Fatal`] if it holds other bytes than were asked for.
    pub async fn get(
        &self,
        key: &str,
        wanted: &Wanted,
        expected: Option<&Facts>,
    ) -> Result<Answer, Failure> {
        let answer = match &self.kind {
            Kind::Cloud(cloud) => cloud.get(key, wanted, expected).await?,
            Kind::Web(base) => {
                let link = self.link(key, || Ok(below(base, key, false)))?;
                link.get(wanted, expected, None).await?
            }
            Kind::Hub(hub) => {
                let url = hub.file(key).await?;
                let link = self.link(key, || Ok(url))?;
                link.get(wanted, expected, hub.token().as_deref()).await?
            }
        };
        if let Some(expected) = expected {
            expected.check(&answer.facts)?;
        }
        answer.check(wanted)?;
        Ok(answer)
    }

    /// The entries of the directory `dir`.
    ///
    /// # Errors
    /// Those of the requests; [`Failure::Missing`]; [`Failure::Fatal`] if the server lists none.
    pub async fn list(&self, dir: &str) -> Result<Vec<Entry>, Failure> {
        match &self.kind {
            Kind::Cloud(cloud) => cloud.list(dir).await,
            Kind::Web(base) => {
                Link::new(self.client.clone(), below(base, dir, true), false).list().await
            }
            Kind::Hub(hub) => hub.list(dir).await,
        }
    }

    fn link(
        &self,
        key: &str,
        url: impl FnOnce() -> Result<Url, Failure>,
    ) -> Result<Arc<Link>, Failure> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(key) {
            return Ok(Arc::clone(link));
        }
        let is_hub = matches!(self.kind, Kind::Hub(_));
        let link = Arc::new(Link::new(self.client.clone(), url()?, is_hub));
        links.put(key.to_owned(), Arc::clone(&link));
        Ok(link)
    }
}

/// The URL of `path` below a base.
fn below(base: &Url, path: &str, is_directory: bool) -> Url {
    let mut url = base.clone();
    if path.is_empty() && !is_directory {
        return url;
    }
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path.split('/').filter(|part| !part.is_empty()));
        if is_directory {
            segments.push("");
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_below_a_web_directory_are_escaped() {
        let base = Url::parse("http://h/d/?q=1").expect("a URL");
        assert_eq!(below(&base, "", false).as_str(), "http://h/d/?q=1");
        assert_eq!(below(&base, "a b/c#?%", false).as_str(), "http://h/d/a%20b/c%23%3F%25?q=1");
        assert_eq!(below(&base, "e", true).as_str(), "http://h/d/e/?q=1");
        assert_eq!(below(&base, "", true).as_str(), "http://h/d/?q=1");
    }
}
