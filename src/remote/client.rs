//! The HTTP client of all sources: TLS, proxies from the environment, no redirect followed unseen.

use super::{failure::Failure, options::Deadlines};
use crate::error::{Error, Result};
use object_store::{
    ClientConfigKey, ClientOptions,
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse},
};
use reqwest::{Client, redirect::Policy};
use std::{fmt, sync::Arc, time::Duration};

/// A client for everything. Deadlines beyond the connection are those of the fetcher.
///
/// # Errors
/// Invalid argument, if the proxies of the environment are malformed.
pub fn client(deadlines: Deadlines) -> Result<Client> {
    // Another library may have installed one already; then that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("bszfs/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(deadlines.connect)
        .redirect(Policy::none())
        // One connection has one congestion window: requests in parallel need several.
        .http1_only()
        .pool_idle_timeout(Duration::from_secs(30))
        .build()
        .map_err(|e| Error::invalid(super::failure::innermost(&e)).about("HTTP client"))
}

tokio::task_local! {
    /// Whether the upload that the task completes may only create its object.
    /// `object_store` does not ask for that, so the request is changed on its way.
    pub static ONLY_CREATES: bool;
}

/// Have a request that completes an upload fail if the object exists. As in `object_store`'s own
/// conditional copies, the header is not signed.
fn add_condition(request: &mut HttpRequest) {
    let completes = request.uri().query().is_some_and(|query| query.contains("uploadId="));
    if completes && ONLY_CREATES.try_with(|only| *only).unwrap_or(false) {
        let any = reqwest::header::HeaderValue::from_static("*");
        request.headers_mut().insert(reqwest::header::IF_NONE_MATCH, any);
    }
}

/// Hands the one client to `object_store`.
#[derive(Clone, Debug)]
pub struct Connector(pub Client);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allowed = options.get_config_value(&ClientConfigKey::AllowHttp);
        let plain = allowed.is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Ok(HttpClient::new(Service { client: self.0.clone(), plain }))
    }
}

/// Reports what `object_store` hides: statuses that ask to come back later, and for how long.
#[derive(Debug)]
struct Service {
    client: Client,
    /// Whether requests, and so tokens, may be sent without TLS.
    plain: bool,
}

#[async_trait::async_trait]
impl object_store::client::HttpService for Service {
    async fn call(&self, mut request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        add_condition(&mut request);
        if !self.plain && request.uri().scheme_str() != Some("https") {
            let why = "http:// needs AWS_ALLOW_HTTP=true, or the same of the other stores";
            let refused = Later(Arc::new(Failure::Fatal(why.into())));
            return Err(HttpError::new(HttpErrorKind::Unknown, refused));
        }
        let response = self.client.call(request).await?;
        let status = response.status().as_u16();
        match Failure::of_status(status, retry_after(response.headers())) {
            later @ Failure::Transient { .. } => {
                Err(HttpError::new(HttpErrorKind::Unknown, Later(Arc::new(later))))
            }
            _ => Ok(response),
        }
    }
}

/// A failure on its way through `object_store`.
#[derive(Debug)]
struct Later(Arc<Failure>);

impl fmt::Display for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.why())
    }
}

impl std::error::Error for Later {}

/// What an error of `object_store` means.
pub fn failure_of(e: &object_store::Error) -> Failure {
    use object_store::Error as E;
    match e {
        E::NotFound { .. } => Failure::of_status(404, None),
        E::PermissionDenied { .. } => Failure::of_status(403, None),
        E::Unauthenticated { .. } => Failure::of_status(401, None),
        E::Precondition { .. } | E::NotModified { .. } => Failure::of_status(412, None),
        _ => in_chain(e),
    }
}

fn in_chain(e: &object_store::Error) -> Failure {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(this) = cause {
        if let Some(Later(failure)) = this.downcast_ref() {
            return (**failure).clone();
        }
        if let Some(e) = this.downcast_ref::<reqwest::Error>() {
            return e.into();
        }
        if this.is::<HttpError>() && this.source().is_none() {
            return Failure::transient("the connection broke");
        }
        cause = this.source();
    }
    let text = e.to_string();
    // S3 says by a status of 400 that a session has ended.
    if text.contains("ExpiredToken") || text.contains("TokenRefreshRequired") {
        return Failure::Denied("the credentials have expired".into());
    }
    let status = text.split_once("status code: ").and_then(|(_, rest)| rest.get(..3)?.parse().ok());
    match status {
        Some(status) => Failure::of_status(status, None),
        None => Failure::Fatal(super::failure::innermost(e)),
    }
}

/// The seconds of a `Retry-After`; dates are not worth their clocks.
pub fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
