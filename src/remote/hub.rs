//! Repositories of the Hugging Face hub, pinned to a commit when they are first asked for.

use super::{
    answer::{Entry, is_usable},
    failure::Failure,
    identity::Facts,
    web::{succeed, whole},
};
use reqwest::{Client, Response, header};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::OnceCell;
use url::Url;

/// The most pages of a listing.
const MOST_PAGES: usize = 10_000;

/// A repository.
pub struct Hub {
    client: Client,
    endpoint: Url,
    repository: String,
    revision: String,
    token: Mutex<Option<String>>,
    commit: OnceCell<String>,
    /// All files by their paths: a commit does not change.
    tree: OnceCell<Arc<BTreeMap<String, Facts>>>,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Node {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Hub {
    /// A repository at a revision, with the endpoint and the token of the environment.
    ///
    /// # Errors
    /// [`Failure::Fatal`] if the endpoint is no URL.
    pub fn new(client: Client, repository: &str, revision: &str) -> Result<Self, Failure> {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|url| !url.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = Url::parse(&format!("{}/", endpoint.trim_end_matches('/')))
            .ok()
            .filter(|url| url.has_host() && url.username().is_empty() && url.password().is_none())
            .ok_or_else(|| Failure::Fatal("HF_ENDPOINT is no URL, or holds credentials".into()))?;
        Ok(Self {
            client,
            endpoint,
            repository: repository.into(),
            revision: revision.into(),
            token: Mutex::new(token()),
            commit: OnceCell::new(),
            tree: OnceCell::new(),
        })
    }

    /// The endpoint, which tells mirrors apart.
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_str()
    }

    /// The token, for requests to the endpoint and no other host.
    pub fn token(&self) -> Option<String> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Read the token again: it may have been renewed.
    pub fn renew(&self) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token();
    }

    /// The commit of the revision when it was first asked for.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn commit(&self) -> Result<&str, Failure> {
        let ask = || async {
            let mut url = self.url(&["api", "models"]);
            extend(&mut url, self.repository.split('/').chain(["revision", &self.revision]));
            let response = self.get(&url).await?;
            let revision: Revision = parse(response).await?;
            let is_hash = |sha: &str| sha.len() >= 7 && sha.bytes().all(|b| b.is_ascii_hexdigit());
            is_hash(&revision.sha).then_some(revision.sha).ok_or_else(odd)
        };
        self.commit.get_or_try_init(ask).await.map(String::as_str)
    }

    /// The URL of a file. It redirects to where the bytes are.
    ///
    /// # Errors
    /// As [`Hub::commit`].
    pub async fn file(&self, path: &str) -> Result<Url, Failure> {
        let commit = self.commit().await?;
        let mut url = self.url(&[]);
        extend(&mut url, self.repository.split('/').chain(["resolve", commit]));
        extend(&mut url, path.split('/'));
        Ok(url)
    }

    /// What is known of a file.
    ///
    /// # Errors
    /// As [`Hub::commit`]; [`Failure::Missing`].
    pub async fn stat(&self, path: &str) -> Result<Facts, Failure> {
        self.tree().await?.get(path).cloned().ok_or(Failure::Missing)
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// As [`Hub::commit`]; [`Failure::Missing`].
    pub async fn list(&self, dir: &str) -> Result<Vec<Entry>, Failure> {
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let tree = self.tree().await?;
        let mut entries: Vec<Entry> = Vec::new();
        let below = tree.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        for (path, facts) in below {
            let rest = &path[prefix.len()..];
            let (name, file) = match rest.split_once('/') {
                Some((name, _)) => (name, None),
                None => (rest, Some(facts.clone())),
            };
            // The paths of a directory need not follow each other: `a-b` is before `a/b`.
            if is_usable(name) && !entries.iter().rev().any(|e| e.file.is_none() && e.name == name)
            {
                entries.push(Entry { name: name.to_owned(), file });
            }
        }
        if entries.is_empty() && !dir.is_empty() { Err(Failure::Missing) } else { Ok(entries) }
    }

    async fn tree(&self) -> Result<&Arc<BTreeMap<String, Facts>>, Failure> {
        self.tree.get_or_try_init(|| self.read_tree()).await
    }

    async fn read_tree(&self) -> Result<Arc<BTreeMap<String, Facts>>, Failure> {
        let commit = self.commit().await?;
        let mut url = self.url(&["api", "models"]);
        extend(&mut url, self.repository.split('/').chain(["tree", commit]));
        url.set_query(Some("recursive=true"));
        let mut files = BTreeMap::new();
        for _ in 0..MOST_PAGES {
            let response = self.get(&url).await?;
            let next = next_page(&response, &url);
            let nodes: Vec<Node> = parse(response).await?;
            files.extend(nodes.into_iter().filter_map(Node::file));
            match next {
                // The token must not go elsewhere.
                Some(next) if next.origin() == self.endpoint.origin() => url = next,
                Some(_) => return Err(odd()),
                None => return Ok(Arc::new(files)),
            }
        }
        Err(odd())
    }

    fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        extend(&mut url, parts.iter().copied());
        url
    }

    async fn get(&self, url: &Url) -> Result<Response, Failure> {
        let mut request = self.client.get(url.clone());
        if let Some(token) = self.token() {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|e| Failure::from(&e))?;
        // The hub hides what one may not see.
        succeed(&response)?;
        Ok(response)
    }
}

impl Node {
    fn file(self) -> Option<(String, Facts)> {
        let (tag, size) = match self.lfs {
            Some(lfs) => (lfs.oid, lfs.size),
            None => (self.oid, self.size),
        };
        let etag = Some(tag).filter(|tag| !tag.is_empty());
        let facts = Facts { etag, size, ..Facts::default() };
        (self.kind == "file").then_some((self.path, facts))
    }
}

async fn parse<T: serde::de::DeserializeOwned>(response: Response) -> Result<T, Failure> {
    serde_json::from_slice(&whole(response).await?).map_err(|_| odd())
}

fn odd() -> Failure {
    Failure::Fatal("the hub's answer is not understood".into())
}

/// Append path segments, escaped where they need to be.
fn extend<'p>(url: &mut Url, parts: impl IntoIterator<Item = &'p str>) {
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(parts);
    }
}

/// The next page: `Link: <url>; rel="next"`.
fn next_page(response: &Response, url: &Url) -> Option<Url> {
    let links = response.headers().get(header::LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    url.join(next.split_once('<')?.1.split_once('>')?.0).ok()
}

/// The token of the environment, or that which a login has stored.
fn token() -> Option<String> {
    let given = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file()?).ok());
    given.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where a login stores its token.
fn token_file() -> Option<PathBuf> {
    let home = || {
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")));
        cache.map(|cache| cache.join("huggingface"))
    };
    variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| {
        variable("HF_HOME").map(PathBuf::from).or_else(home).map(|home| home.join("token"))
    })
}

/// Where the token comes from, if there is one.
pub fn token_origin() -> Option<String> {
    token()?;
    let file = || token_file().map(|file| format!("the file {}", file.display()));
    variable("HF_TOKEN").map(|_| "HF_TOKEN".into()).or_else(file)
}
