//! Object stores: S3 and what is compatible with it, Google Cloud Storage, Azure.

use super::{
    answer::{Answer, Entry, Wanted, is_usable},
    client::{Connector, failure_of},
    failure::Failure,
    identity::Facts,
    url::Service,
    web::unquoted,
};
use futures_util::{StreamExt, TryStreamExt};
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    multipart::MultipartStore,
    path::Path,
    signer::Signer,
};
use reqwest::{Method, header::IF_MATCH};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// A bucket or a container.
pub struct Cloud {
    service: Service,
    connector: Connector,
    store: Mutex<Built>,
    scope: String,
}

/// One client, by its interfaces.
#[derive(Clone)]
struct Built {
    objects: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    signer: Arc<dyn Signer>,
}

impl Built {
    fn new<S: ObjectStore + MultipartStore + Signer>(store: S) -> Self {
        let store = Arc::new(store);
        Self { objects: Arc::clone(&store) as _, parts: Arc::clone(&store) as _, signer: store }
    }
}

impl Cloud {
    /// The bucket of `service`, with the credentials of the environment.
    ///
    /// # Errors
    /// What `object_store` says about the environment.
    pub fn new(service: &Service, connector: Connector) -> Result<Self, Failure> {
        let (store, scope) = build(service, &connector)?;
        Ok(Self { service: service.clone(), connector, store: Mutex::new(store), scope })
    }

    /// What tells this bucket apart from another of the same name: the endpoint, and for whom.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// Read the environment and the files that it names again, since credentials may have expired.
    pub fn renew(&self) {
        if let Ok((store, _)) = build(&self.service, &self.connector) {
            *self.store.lock().unwrap_or_else(PoisonError::into_inner) = store;
        }
    }

    fn built(&self) -> Built {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client, with the credentials that were read last.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.built().objects
    }

    /// The same client, for uploads in parts.
    pub fn parts(&self) -> Arc<dyn MultipartStore> {
        self.built().parts
    }

    /// Whether an upload in parts can be completed on the condition that there is no such object.
    pub fn completes_conditionally(&self) -> bool {
        matches!(self.service, Service::S3 { .. })
    }

    /// Whether the last bytes of an object can be asked for without its size.
    pub fn has_suffixes(&self) -> bool {
        !matches!(self.service, Service::Azure { .. })
    }

    /// Remove an object if it still has this entity tag. `object_store` has no conditions for that,
    /// so the request is a signed URL.
    ///
    /// # Errors
    /// Those of the request; [`Failure::Replaced`] if it is another object by now.
    pub async fn remove(&self, key: &Path, etag: &str) -> Result<(), Failure> {
        let (signer, soon) = (self.built().signer, Duration::from_secs(60));
        let url = signer.signed_url(Method::DELETE, key, soon).await.map_err(|e| failure_of(&e))?;
        let request = self.connector.0.delete(url).header(IF_MATCH, format!("\"{etag}\""));
        let status = request.timeout(soon).send().await.map_err(|e| Failure::from(&e))?.status();
        match status.is_success() {
            true => Ok(()),
            false => Err(Failure::of_status(status.as_u16(), None)),
        }
    }

    /// What is known of an object.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn stat(&self, key: &str) -> Result<Facts, Failure> {
        let meta = self.store().head(&path(key)?).await.map_err(|e| failure_of(&e))?;
        Ok(facts(meta))
    }

    /// Ask for bytes of an object, of which `expected` is known.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn get(
        &self,
        key: &str,
        wanted: &Wanted,
        expected: Option<&Facts>,
    ) -> Result<Answer, Failure> {
        let strong = expected.filter(|facts| facts.is_strong());
        let options = GetOptions {
            range: Some(match wanted {
                Wanted::Range(range) => GetRange::Bounded(range.clone()),
                Wanted::Suffix(len) => GetRange::Suffix(*len),
            }),
            if_match: strong.and_then(|f| f.etag.as_ref()).map(|tag| format!("\"{tag}\"")),
            ..GetOptions::default()
        };
        let got = self.store().get_opts(&path(key)?, options).await.map_err(|e| failure_of(&e))?;
        let (range, facts) = (got.range.clone(), facts(got.meta.clone()));
        let body = got.into_stream().map_err(|e| failure_of(&e)).boxed();
        Ok(Answer { facts, range, body })
    }

    /// The entries of a directory: the objects and the common prefixes below `prefix`.
    ///
    /// # Errors
    /// Those of the requests; [`Failure::Missing`] if there are none.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>, Failure> {
        let at = path(prefix)?;
        let under = (!prefix.is_empty()).then_some(&at);
        let listed = self.store().list_with_delimiter(under).await.map_err(|e| failure_of(&e))?;
        let directories = listed.common_prefixes.iter().filter_map(Path::filename);
        let mut entries: Vec<Entry> =
            directories.map(|name| Entry { name: name.to_owned(), file: None }).collect();
        let names: std::collections::HashSet<String> =
            entries.iter().map(|entry| entry.name.clone()).collect();
        for meta in listed.objects {
            // A directory hides the object of the same name.
            if let Some(name) = meta.location.filename().map(str::to_owned)
                && !names.contains(&name)
            {
                entries.push(Entry { name, file: Some(facts(meta)) });
            }
        }
        entries.retain(|entry| is_usable(&entry.name));
        if entries.is_empty() && !prefix.is_empty() { Err(Failure::Missing) } else { Ok(entries) }
    }
}

/// The path of a key.
///
/// # Errors
/// [`Failure::Fatal`] if no object can be called that.
pub fn path(key: &str) -> Result<Path, Failure> {
    Path::parse(key).map_err(|e| Failure::Fatal(e.to_string()))
}

fn facts(meta: ObjectMeta) -> Facts {
    let etag = meta.e_tag.map(|tag| unquoted(&tag));
    let modified = Some(meta.last_modified.into());
    Facts { etag, version: meta.version, modified, size: meta.size }
}

/// Only the fetcher repeats requests: it alone has the deadline.
fn once() -> RetryConfig {
    let backoff = BackoffConfig::default();
    RetryConfig { backoff, max_retries: 0, retry_timeout: Duration::ZERO }
}

fn build(service: &Service, connector: &Connector) -> Result<(Built, String), Failure> {
    let failed = |e: object_store::Error| failure_of(&e);
    let text = |parts: [Option<String>; 2]| format!("{parts:?}");
    Ok(match service {
        Service::S3 { bucket } => {
            let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
            let scope = text([
                builder.get_config_value(&AmazonS3ConfigKey::Endpoint),
                builder.get_config_value(&AmazonS3ConfigKey::AccessKeyId),
            ]);
            // Stored beside what is uploaded, unless the environment wants another one.
            let builder = match builder.get_config_value(&AmazonS3ConfigKey::Checksum) {
                Some(_) => builder,
                None => builder.with_checksum_algorithm(Checksum::SHA256),
            };
            let builder = builder.with_http_connector(connector.clone()).with_retry(once());
            (Built::new(builder.build().map_err(failed)?), scope)
        }
        Service::Gcs { bucket } => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
            let scope = text([
                builder.get_config_value(&GoogleConfigKey::ServiceAccount),
                builder.get_config_value(&GoogleConfigKey::ApplicationCredentials),
            ]);
            let builder = builder.with_http_connector(connector.clone()).with_retry(once());
            (Built::new(builder.build().map_err(failed)?), scope)
        }
        Service::Azure { container } => {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(container);
            let scope = text([
                builder.get_config_value(&AzureConfigKey::AccountName),
                builder.get_config_value(&AzureConfigKey::ClientId),
            ]);
            let builder = builder.with_http_connector(connector.clone()).with_retry(once());
            (Built::new(builder.build().map_err(failed)?), scope)
        }
        Service::Web { .. } | Service::Hub { .. } => {
            return Err(Failure::Fatal("not an object store".into()));
        }
    })
}
