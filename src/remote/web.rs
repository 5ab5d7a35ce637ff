//! Objects of web servers: ranges, and redirects that are followed by hand, so that no token goes
//! to another host and a signed URL is used until it expires.

use super::{
    answer::{Answer, Entry, Wanted, is_usable},
    client::retry_after,
    failure::Failure,
    identity::Facts,
};
use futures_util::{StreamExt, TryStreamExt};
use reqwest::{
    Client, Method, Response, StatusCode,
    header::{self, HeaderMap},
};
use serde::Deserialize;
use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};
use url::Url;

/// Redirects that are followed for one request.
const HOPS: usize = 5;

/// The longest listing, in bytes.
const LONGEST_LIST: usize = 64 << 20;

/// One object of a web server.
pub struct Link {
    client: Client,
    url: Url,
    /// Whether the server is asked to compare entity tags, too.
    compares: bool,
    /// Where the last redirect led, and what the server said about the object on the way.
    followed: Mutex<Option<Followed>>,
}

#[derive(Clone)]
struct Followed {
    url: Url,
    linked: Option<Linked>,
    /// The other server's own entity tag, which says nothing to others.
    own: Option<String>,
}

/// What a hub says about an object when it redirects to another host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Linked {
    etag: String,
    size: u64,
}

impl Link {
    /// The object at `url`. The entity tags that a hub tells are not those of its own answers, so
    /// it is not asked to compare them.
    pub fn new(client: Client, url: Url, is_hub: bool) -> Self {
        Self { client, url, compares: !is_hub, followed: Mutex::new(None) }
    }

    fn followed(&self) -> Option<Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn follow(&self, followed: Followed) {
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = Some(followed);
    }

    /// Forget a redirect, unless another request has renewed it meanwhile.
    fn unfollow(&self, known: &Followed) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.as_ref().is_some_and(|now| now.url == known.url) {
            *followed = None;
        }
    }

    /// The size and the entity tag of the object.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn stat(&self, token: Option<&str>) -> Result<Facts, Failure> {
        let (response, linked, _) =
            self.send(&Method::HEAD, self.url.clone(), HeaderMap::new(), token).await?;
        if let Some(Linked { etag, size }) = linked {
            let modified = modified(response.headers());
            return Ok(Facts { etag: Some(etag), version: None, modified, size });
        }
        succeed(&response)?;
        let size = number(response.headers(), header::CONTENT_LENGTH)
            .ok_or_else(|| Failure::Fatal("the server does not tell the size".into()))?;
        Ok(facts(response.headers(), size))
    }

    /// Ask for bytes of the object, of which `expected` is known.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn get(
        &self,
        wanted: &Wanted,
        expected: Option<&Facts>,
        token: Option<&str>,
    ) -> Result<Answer, Failure> {
        if let Some(known) = self.followed() {
            match self.get_followed(wanted, &known).await.and_then(|a| is_of(a, expected)) {
                Err(transient @ Failure::Transient { .. }) => return Err(transient),
                // It has expired, or is not valid any more for another reason.
                Err(_) => self.unfollow(&known),
                answer => return answer,
            }
        }
        let mut headers = range_header(wanted);
        let strong = expected.filter(|facts| self.compares && facts.is_strong());
        if let Some(tag) = strong.and_then(|facts| facts.etag.as_ref())
            && let Ok(value) = format!("\"{tag}\"").parse()
        {
            headers.insert(header::IF_MATCH, value);
        }
        let (response, linked, url) =
            self.send(&Method::GET, self.url.clone(), headers, token).await?;
        let mut answer = answer(response, wanted)?;
        if let Some(url) = url {
            let own = answer.facts.etag.clone();
            apply(&linked, &mut answer)?;
            answer = is_of(answer, expected)?;
            self.follow(Followed { url, linked, own });
        }
        Ok(answer)
    }

    async fn get_followed(&self, wanted: &Wanted, known: &Followed) -> Result<Answer, Failure> {
        let request = self.client.get(known.url.clone()).headers(range_header(wanted));
        let response = request.send().await.map_err(|e| Failure::from(&e))?;
        let mut answer = answer(response, wanted)?;
        if answer.facts.etag != known.own {
            return Err(Failure::Fatal("the server changed its ETag".into()));
        }
        apply(&known.linked, &mut answer)?;
        Ok(answer)
    }

    /// Send a request and follow redirects. Returns also what a hub said about the object, and
    /// where a redirect led.
    async fn send(
        &self,
        method: &Method,
        mut url: Url,
        mut headers: HeaderMap,
        mut token: Option<&str>,
    ) -> Result<(Response, Option<Linked>, Option<Url>), Failure> {
        let mut known = None;
        for hop in 0..=HOPS {
            let mut request = self.client.request(method.clone(), url.clone());
            request = request.headers(headers.clone());
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(|e| Failure::from(&e))?;
            known = linked(response.headers()).or(known);
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let redirected = response.status().is_redirection();
            let (true, Some(to)) = (redirected, to) else {
                return Ok((response, known, (hop > 0).then_some(url)));
            };
            if *method == Method::HEAD && known.is_some() {
                return Ok((response, known, None));
            }
            let bad = || Failure::Fatal("the server redirects to what is no URL".into());
            let next = url.join(to).map_err(|_| bad())?;
            if !matches!(next.scheme(), "http" | "https")
                || url.scheme() == "https" && next.scheme() == "http"
            {
                return Err(Failure::Fatal("the server redirects away from https".into()));
            }
            if next.origin() != url.origin() {
                token = None;
                headers.remove(header::IF_MATCH);
            }
            url = next;
        }
        Err(Failure::Fatal(format!("the server redirects more than {HOPS} times")))
    }

    /// The entries of the directory at this URL, by nginx's `autoindex_format json`.
    ///
    /// # Errors
    /// Those of the request; [`Failure::Fatal`] if the answer is no such listing.
    pub async fn list(&self) -> Result<Vec<Entry>, Failure> {
        let (response, ..) =
            self.send(&Method::GET, self.url.clone(), HeaderMap::new(), None).await?;
        succeed(&response)?;
        let why = "the server lists no directories (nginx: autoindex_format json)";
        let no_list = |_| Failure::Unsupported(why);
        let listed: Vec<Listed> =
            serde_json::from_slice(&whole(response).await?).map_err(no_list)?;
        Ok(listed.into_iter().filter_map(Listed::entry).collect())
    }
}

/// An entry of nginx's listing.
#[derive(Deserialize)]
struct Listed {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    size: Option<u64>,
    #[serde(default)]
    mtime: String,
}

impl Listed {
    fn entry(self) -> Option<Entry> {
        let file = match (self.kind.as_str(), self.size) {
            ("file", Some(size)) => {
                let modified = httpdate::parse_http_date(&self.mtime).ok();
                Some(Facts { size, modified, ..Facts::default() })
            }
            ("directory", _) => None,
            _ => return None,
        };
        is_usable(&self.name).then_some(Entry { name: self.name, file })
    }
}

/// A whole answer that is not long.
///
/// # Errors
/// Those of the connection.
pub async fn whole(response: Response) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut body = response.bytes_stream();
    while let Some(part) = body.next().await {
        bytes.extend_from_slice(&part.map_err(|e| Failure::from(&e))?);
        if bytes.len() > LONGEST_LIST {
            return Err(Failure::Fatal("the server's listing is too long".into()));
        }
    }
    Ok(bytes)
}

/// Whether a request succeeded.
///
/// # Errors
/// What its status means.
pub fn succeed(response: &Response) -> Result<(), Failure> {
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(Failure::of_status(status.as_u16(), retry_after(response.headers()))),
    }
}

fn range_header(wanted: &Wanted) -> HeaderMap {
    let text = match wanted {
        Wanted::Range(range) => format!("bytes={}-{}", range.start, range.end.saturating_sub(1)),
        Wanted::Suffix(len) => format!("bytes=-{len}"),
    };
    let identity = header::HeaderValue::from_static("identity");
    let mut headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, identity)]);
    if let Ok(value) = text.parse() {
        headers.insert(header::RANGE, value);
    }
    headers
}

/// What a response to a request for `wanted` holds.
fn answer(response: Response, wanted: &Wanted) -> Result<Answer, Failure> {
    let headers = response.headers();
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(Failure::Fatal("the server answers with an encoding".into()));
    }
    let (range, size) = match (response.status(), wanted) {
        (StatusCode::PARTIAL_CONTENT, _) => content_range(headers).ok_or_else(|| {
            Failure::Fatal("the server does not tell which bytes it sends".into())
        })?,
        // All of a short object is its end, too.
        (StatusCode::OK, Wanted::Suffix(len)) => {
            let size = number(headers, header::CONTENT_LENGTH).filter(|size| size <= len);
            let size = size.ok_or_else(ignores_ranges)?;
            (0..size, size)
        }
        (StatusCode::OK, _) => return Err(ignores_ranges()),
        (StatusCode::RANGE_NOT_SATISFIABLE, Wanted::Range(_)) => {
            return Err(Failure::Replaced("it is shorter than when it was opened".into()));
        }
        (status, _) => {
            succeed(&response)?;
            return Err(Failure::Fatal(format!("the server answers {status} to a range")));
        }
    };
    if number(headers, header::CONTENT_LENGTH).is_some_and(|len| len > range.end - range.start) {
        return Err(Failure::Fatal("the server sends more than it was asked for".into()));
    }
    let facts = facts(headers, size);
    let body = response.bytes_stream().map_err(|e| Failure::from(&e)).boxed();
    Ok(Answer { facts, range, body })
}

fn ignores_ranges() -> Failure {
    Failure::Fatal("the server ignores ranges, and would send the whole object".into())
}

/// `bytes 0-9/100`.
fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size) = (first.parse().ok()?, last.parse::<u64>().ok()?, size.parse().ok()?);
    (first <= last && last < size).then(|| (first..last + 1, size))
}

fn facts(headers: &HeaderMap, size: u64) -> Facts {
    let etag = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(unquoted);
    Facts { etag, version: None, modified: modified(headers), size }
}

fn modified(headers: &HeaderMap) -> Option<std::time::SystemTime> {
    httpdate::parse_http_date(headers.get(header::LAST_MODIFIED)?.to_str().ok()?).ok()
}

fn linked(headers: &HeaderMap) -> Option<Linked> {
    let etag = unquoted(headers.get("x-linked-etag")?.to_str().ok()?);
    Some(Linked { etag, size: number(headers, "x-linked-size")? })
}

fn number(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// An answer, if it is about the object that is expected: what leads elsewhere is not followed
/// again.
fn is_of(answer: Answer, expected: Option<&Facts>) -> Result<Answer, Failure> {
    expected.map_or(Ok(()), |expected| expected.check(&answer.facts))?;
    Ok(answer)
}

/// Put what a hub said in the place of what the host says that it redirects to.
fn apply(linked: &Option<Linked>, answer: &mut Answer) -> Result<(), Failure> {
    if let Some(Linked { etag, size }) = linked {
        if *size != answer.facts.size {
            return Err(Failure::Fatal("the hub's redirect leads to another size".into()));
        }
        answer.facts.etag = Some(etag.clone());
        answer.facts.modified = None;
    }
    Ok(())
}

/// A strong entity tag without its quotes; a weak one as it is.
pub fn unquoted(tag: &str) -> String {
    let strong = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    strong.unwrap_or(tag).to_owned()
}
