//! What larder asks of a registry, in the terms of the distribution specification.

use std::io::Read as _;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;

use crate::heavy;
use crate::oci::{
    ACCEPT, Digest, INDEX_TYPE, MAX_MANIFEST, Manifest, Page, Reference, RepositoryName, is_manifest_type, merge_indexes,
};

use super::body::Body;
use super::budget::Purpose;
use super::cache_status::CacheStatus;
use super::error::Error;
use super::found::Found;
use super::headers::{content_length, content_range, content_type, encoding, link, next_page, next_query};
use super::in_turn::Answered;
use super::send::{Question, Shortcut};
use super::{Behalf, Upstream};

/// A repository of an upstream, asked on behalf of someone.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    upstream: &'a Upstream,
    repository: &'a RepositoryName,
    behalf: &'a Behalf,
}

/// A manifest's bytes as they came; nothing of them has been checked.
pub struct ManifestAnswer {
    pub bytes: Bytes,
    pub content_type: Option<String>,
    pub cache_status: Option<CacheStatus>,
}

/// The beginning of a blob's bytes.
pub struct BlobAnswer {
    /// Where in the blob the body begins: where it was asked to, or 0 if the upstream ignores ranges.
    pub offset: u64,
    /// What is said of the whole blob.
    pub found: Found,
    pub body: Body,
}

/// Which bytes of a blob to ask for: from `start` on, and to before `end` if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: Option<u64>,
}

pub struct TagsAnswer {
    pub tags: Vec<String>,
    /// Where the list goes on.
    pub next: Option<Page>,
    pub cache_status: Option<CacheStatus>,
}

/// An index of all referrers of a digest.
pub struct ReferrersAnswer {
    pub index: Bytes,
    /// Of the first page.
    pub cache_status: Option<CacheStatus>,
}

/// An exbibyte: sizes can be added up without a thought.
const LARGEST_BLOB: u64 = 1 << 60;
const LARGEST_TAG_PAGE: usize = 4 << 20;
/// Of referrers; a list that is longer does not end.
const MOST_PAGES: usize = 100;
/// All of them together.
const LARGEST_LIST: usize = 16 << 20;

// === impl Upstream ===

impl Upstream {
    /// Asks for things of `repository`, on behalf of someone.
    #[must_use]
    pub fn ask<'a>(&'a self, repository: &'a RepositoryName, behalf: &'a Behalf) -> Asking<'a> {
        Asking { upstream: self, repository, behalf }
    }
}

// === impl Asking ===

impl Asking<'_> {
    /// Asks for a manifest. It costs a pull where pulls are counted.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn manifest(&self, reference: &Reference) -> Result<ManifestAnswer, Error> {
        let path = format!("{}/manifests/{reference}", self.repository);
        // Its place is held until its bytes have been looked through: whatever is in memory here has one.
        let Answered { response, bytes, place: _place, .. } =
            self.read(Purpose::Pull, &path, manifest_headers(), MAX_MANIFEST).await?;
        let (content_type, cache_status) = (content_type(&response), CacheStatus::of(response.headers()));
        let bytes = match encoding(&response) {
            None => bytes,
            // Of how much, it does not say.
            Some("gzip" | "x-gzip") => heavy::work(&self.behalf.askers, MAX_MANIFEST, move || unzip(&bytes)).await??,
            Some(_) => return Err(encoded()),
        };
        Ok(ManifestAnswer { bytes, content_type, cache_status })
    }

    /// Asks whether there is a manifest, and which. Free where pulls are counted.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn head_manifest(&self, reference: &Reference) -> Result<Found, Error> {
        let path = format!("{}/manifests/{reference}", self.repository);
        match self.send(Purpose::Pull, Method::HEAD, &path, manifest_headers()).await {
            Ok(answered) => Ok(Found::of(&answered.response)),
            // Some registries know no HEAD here: nothing was found out.
            Err(Error::Unsupported(_)) => Ok(Found { digest: None, size: None, content_type: None, cache_status: None }),
            Err(error) => Err(error),
        }
    }

    /// Makes sure that a manifest may be had, and says which it is where that is told. Unlike
    /// [`head_manifest`](Self::head_manifest), it is only well if the registry has said yes: by a HEAD that speaks of a manifest, or
    /// else by the manifest itself, as any page may be answered in place of a no.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn prove_manifest(&self, reference: &Reference) -> Result<Option<Digest>, Error> {
        let Found { digest, content_type, .. } = self.head_manifest(reference).await?;
        let is_it = match (reference, &digest) {
            (Reference::Digest(asked), Some(told)) => asked == told,
            (Reference::Tag(_), Some(_)) => content_type.as_deref().is_some_and(is_manifest_type),
            (_, None) => false,
        };
        if is_it {
            return Ok(digest);
        }
        let ManifestAnswer { bytes, content_type, .. } = self.manifest(reference).await?;
        let (reference, length) = (reference.clone(), bytes.len());
        let is_it = move || match reference {
            Reference::Digest(digest) => digest.matches(&bytes),
            Reference::Tag(_) => Manifest::parse(content_type.as_deref(), &bytes).is_ok(),
        };
        if heavy::work(&self.behalf.askers, length, is_it).await? { Ok(None) } else { Err(Error::something_else()) }
    }

    /// Asks whether there is a blob: by HEAD, and as some registries refuse that or tell no size, by its first byte.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn head_blob(&self, digest: &Digest) -> Result<Found, Error> {
        let path = format!("{}/blobs/{digest}", self.repository);
        let refuses_head = &self.upstream.refuses_blob_head;
        let mut refused = refuses_head.load(Ordering::Relaxed);
        if !refused {
            match self.send(Purpose::Blob, Method::HEAD, &path, HeaderMap::new()).await {
                Ok(Answered { response, .. }) if response.status() == StatusCode::OK && content_length(&response).is_some() => {
                    return Ok(Found::of(&response));
                }
                Err(
                    error @ (Error::Offline
                    | Error::Loop
                    | Error::LeftAlone(_)
                    | Error::RateLimited { .. }
                    | Error::Unavailable { timed_out: true, .. }),
                ) => {
                    return Err(error);
                }
                Err(Error::Denied | Error::Unsupported(_)) => refused = true,
                _ => {}
            }
        }
        let found = self.first_byte(digest).await?;
        // Who gives the blob and refuses its HEAD does so with every blob.
        refuses_head.store(refused, Ordering::Relaxed);
        Ok(found)
    }

    /// Asks whether there is a blob by its first byte alone: that is refused as the whole of it would be, and no later.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn first_byte(&self, digest: &Digest) -> Result<Found, Error> {
        match self.part(digest, Some(Span { start: 0, end: Some(1) }), None).await {
            // Another part is no answer, and does not say that there is nothing.
            Err(Error::Unsupported(206)) => Err(Error::unavailable("it sends another part than was asked for")),
            first => {
                let BlobAnswer { found, mut body, .. } = first?;
                body.is_enough();
                Ok(found)
            }
        }
    }

    /// Asks for the bytes of a blob, all of them or a span.
    ///
    /// # Errors
    /// See [`Error`]. With 206 and 416 it says that it does not have that span.
    pub async fn blob(&self, digest: &Digest, span: Option<Span>) -> Result<BlobAnswer, Error> {
        if let Err(spent) = self.upstream.quota.admit(self.upstream.clock.now()) {
            // A no is told as ever: what is here already is asked for by its first byte, whatever is spent, and is not to be told by that.
            self.first_byte(digest).await?;
            return Err(spent);
        }
        self.part(digest, span, None).await
    }

    /// Likewise for one of many parts, by the way that those before it were sent.
    ///
    /// # Errors
    /// As [`blob`](Self::blob).
    pub async fn part_of_blob(&self, digest: &Digest, span: Span, shortcut: &Shortcut) -> Result<BlobAnswer, Error> {
        self.upstream.quota.admit(self.upstream.clock.now())?;
        self.part(digest, Some(span), Some(shortcut)).await
    }

    async fn part(&self, digest: &Digest, span: Option<Span>, shortcut: Option<&Shortcut>) -> Result<BlobAnswer, Error> {
        let path = format!("{}/blobs/{digest}", self.repository);
        let mut headers = HeaderMap::new();
        if let Some(Span { start, end }) = span {
            let range = match end {
                Some(end) => format!("bytes={start}-{}", end.saturating_sub(1)),
                None => format!("bytes={start}-"),
            };
            headers.insert(header::RANGE, HeaderValue::try_from(range).map_err(|error| Error::unavailable(error.to_string()))?);
        }
        let question = Question { blob: Some(digest), shortcut, ..self.question(Purpose::Blob, Method::GET, path, headers) };
        let Answered { response, endpoint, place, .. } = self.upstream.send(question).await?;
        // Bytes that were compressed on the way are not those that the digest is over.
        if encoding(&response).is_some() {
            return Err(encoded());
        }
        let (offset, size) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let Some((got, size)) = range.and_then(content_range) else {
                    return Err(Error::unavailable("it sends a part and does not say which"));
                };
                match span {
                    Some(span) if span.start == got.start => (got.start, size),
                    Some(_) => return Err(Error::Unsupported(206)),
                    None => return Err(Error::unavailable("it sends a part where all was asked for")),
                }
            }
            _ => (0, content_length(&response)),
        };
        if size.is_some_and(|size| size > LARGEST_BLOB) {
            return Err(Error::unavailable("it announces a size that no blob has"));
        }
        let found = Found { size, ..Found::of(&response) };
        Ok(BlobAnswer { offset, found, body: Body::new(self.upstream, response, endpoint, place) })
    }

    /// Asks for a page of the tags of a repository.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tags(&self, page: &Page) -> Result<TagsAnswer, Error> {
        #[derive(Deserialize)]
        struct List {
            name: Option<String>,
            tags: Option<Vec<String>>,
        }
        let query = page.query();
        let path = format!("{}/tags/list{}{query}", self.repository, if query.is_empty() { "" } else { "?" });
        let Answered { response, bytes, place: _place, .. } =
            self.read(Purpose::List, &path, HeaderMap::new(), LARGEST_TAG_PAGE).await?;
        let next = link(&response).map_or(Ok(None), next_page)?;
        let list = heavy::work(&self.behalf.askers, bytes.len(), move || serde_json::from_slice::<List>(&bytes)).await?;
        let list = list.map_err(|_| Error::unavailable("its list of tags is no JSON"))?;
        // An error may be sent as if it were none.
        if list.name.is_none() && list.tags.is_none() {
            return Err(Error::something_else());
        }
        Ok(TagsAnswer { tags: list.tags.unwrap_or_default(), next, cache_status: CacheStatus::of(response.headers()) })
    }

    /// Asks for the referrers of a digest, all pages of them. `None`: the registry does not have this API.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn referrers(&self, digest: &Digest) -> Result<Option<ReferrersAnswer>, Error> {
        let path = format!("{}/referrers/{digest}", self.repository);
        let (mut pages, mut size, mut cache_status) = (Vec::new(), 0, None);
        let mut next = Some(path.clone());
        // The room of a list is kept from page to page: what has come of it is in memory.
        let (mut kept, mut long) = (None, None);
        while let Some(page) = next {
            let question = self.whole(Purpose::List, &page, HeaderMap::new(), MAX_MANIFEST);
            let asked = match kept.take() {
                Some(place) => self.upstream.send_from(place, question).await,
                None => self.upstream.send(question).await,
            };
            let Answered { response, bytes, place, .. } = match asked {
                Ok(answered) => answered,
                Err(Error::NotFound | Error::Unsupported(_)) if pages.is_empty() => return Ok(None),
                Err(error) => return Err(error),
            };
            kept = place;
            if content_type(&response).is_none_or(|value| value != INDEX_TYPE) {
                return Ok(None);
            }
            next = link(&response).and_then(next_query).map(|query| format!("{path}?{query}"));
            if pages.is_empty() {
                cache_status = CacheStatus::of(response.headers());
            }
            size += bytes.len();
            pages.push(bytes);
            if pages.len() > MOST_PAGES || size > LARGEST_LIST {
                return Err(Error::unavailable("its list of referrers does not end"));
            }
            if next.is_some() && long.is_none() {
                long = self.upstream.places.long_lists.acquire().await.ok();
            }
        }
        let index = if let [page] = &pages[..] {
            page.clone()
        } else {
            let merged = heavy::work(&self.behalf.askers, size, move || merge_indexes(&pages)).await?;
            merged.map_err(|bad| Error::unavailable(bad.to_string()))?.into()
        };
        Ok(Some(ReferrersAnswer { index, cache_status }))
    }

    /// Whether there is an address to ask for a blob that has not lately given wrong bytes of it.
    #[must_use]
    pub fn has_another(&self, digest: &Digest) -> bool {
        self.upstream.has_another(self.behalf, digest)
    }

    /// Whether nobody is asked at this moment, as no address answers: a further try would be in vain.
    #[must_use]
    pub fn is_in_vain(&self) -> bool {
        self.upstream.is_left_alone(self.behalf)
    }

    async fn send(&self, purpose: Purpose, method: Method, path: &str, headers: HeaderMap) -> Result<Answered, Error> {
        self.upstream.send(self.question(purpose, method, path.to_owned(), headers)).await
    }

    /// A GET whose whole body is wanted.
    async fn read(&self, purpose: Purpose, path: &str, headers: HeaderMap, limit: usize) -> Result<Answered, Error> {
        self.upstream.send(self.whole(purpose, path, headers, limit)).await
    }

    fn whole(&self, purpose: Purpose, path: &str, headers: HeaderMap, limit: usize) -> Question<'_> {
        Question { whole: Some(limit), ..self.question(purpose, Method::GET, path.to_owned(), headers) }
    }

    fn question(&self, purpose: Purpose, method: Method, path: String, headers: HeaderMap) -> Question<'_> {
        let (repository, behalf, sent) = (self.repository, self.behalf, AtomicU32::new(0));
        Question { method, repository, behalf, path, headers, purpose, blob: None, whole: None, shortcut: None, sent }
    }
}

fn manifest_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
    headers
}

fn encoded() -> Error {
    Error::unavailable("it encodes what must not be changed")
}

/// A manifest that was compressed on the way, although we asked for it as it is. Its digest is checked by whoever asked.
fn unzip(bytes: &[u8]) -> Result<Bytes, Error> {
    let mut plain = Vec::new();
    let limit = MAX_MANIFEST as u64 + 1;
    let read = flate2::read::GzDecoder::new(bytes).take(limit).read_to_end(&mut plain);
    match read {
        Ok(size) if size <= MAX_MANIFEST => Ok(plain.into()),
        _ => Err(encoded()),
    }
}
