//! Every request path becomes exactly one [`Route`]; nobody reads the raw path afterwards.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

use super::{Digest, ErrorCode, InvalidDigest, InvalidName, Reference};

/// What is asked. Total: a path that names nothing is [`Route::NotFound`], one that names something in a broken way is
/// [`Route::Invalid`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: is this a registry?
    Ping,
    /// `/token`, where a client that has to log in does so.
    Token,
    Manifest(Target, Reference),
    Blob(Target, Digest),
    Tags(Target, Page),
    Referrers(Target, Digest, Option<String>),
    /// `/v2/_catalog` and uploads: things of a registry that a mirror does not have.
    Unsupported,
    Invalid(ErrorCode, String),
    NotFound,
}

/// As many segments as a path usually has, without memory being taken for them.
type Segments<T> = SmallVec<[T; 8]>;

/// The repository as the client wrote it, before it is known which upstream it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The path before `/v2`: `docker.io` in `/docker.io/v2/library/alpine/…` (containerd without `override_path`).
    pub prefix: Option<String>,
    /// The path after `/v2`, which may begin with the name of an upstream.
    pub path: String,
    /// The `ns` query parameter (containerd, `BuildKit`, regclient); empty counts as absent.
    pub ns: Option<String>,
}

/// Which part of a tag list is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    pub n: Option<u64>,
    pub last: Option<String>,
    /// quay.io's opaque place in the list; handed back as it came.
    pub next_page: Option<String>,
    /// A place that a registry names by keys of its own: its whole query, which then stands for all of the above.
    pub next: Option<String>,
}

/// How long such a query may be, or another value in one; those that are known take a tenth of it.
const LONGEST_NEXT: usize = 2048;
/// How long a path may be: that of the longest names that there are is no longer.
const LONGEST_PATH: usize = 2048;
/// How long a name may be.
const LONGEST_NAME: usize = 255;

// === impl Page ===

impl Page {
    /// The page that a registry names by a query of its own. `None` if that is too long, or could not stand in a URL, or would name another
    /// registry to one that asks several.
    #[must_use]
    pub fn by_query(query: &str) -> Option<Self> {
        let legal = query.len() <= LONGEST_NEXT && query.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        let legal = legal && form_urlencoded::parse(query.as_bytes()).all(|(key, _)| key != "ns");
        legal.then(|| Self { next: Some(query.to_owned()), ..Self::default() })
    }

    /// As a registry is asked for it, after the question mark.
    #[must_use]
    pub fn query(&self) -> String {
        self.next.clone().unwrap_or_else(|| self.link())
    }

    /// As a client asks for it, after the question mark.
    #[must_use]
    pub fn link(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        self.n.iter().for_each(|n| _ = query.append_pair("n", &n.to_string()));
        self.last.iter().for_each(|last| _ = query.append_pair("last", last));
        self.next_page.iter().for_each(|next| _ = query.append_pair("next_page", next));
        self.next.iter().for_each(|next| _ = query.append_pair("next", next));
        query.finish()
    }
}

// === impl Route ===

impl Route {
    /// Parses path and query. Names are anchored at the right end, as `a/blobs/b` is a legal repository.
    #[must_use]
    pub fn parse(path: &str, query: Option<&str>) -> Self {
        // What is asked for there changes nothing: a token is for a client, not for a scope.
        if path == "/token" {
            return Self::Token;
        }
        let segments = match segments(path) {
            Ok(segments) => segments,
            Err(message) => return Self::Invalid(ErrorCode::NameInvalid, message.into()),
        };
        let query = match Query::parse(query.unwrap_or_default()) {
            Ok(query) => query,
            Err((code, message)) => return Self::Invalid(code, message),
        };
        let words: Segments<&str> = segments.iter().map(Cow::as_ref).collect();
        // `/v2` comes first; else everything before it is a prefix.
        let Some(v2) = words.iter().position(|word| *word == "v2") else { return Self::NotFound };
        let target = |name: &[&str]| Target {
            prefix: (v2 > 0).then(|| words[..v2].join("/")),
            path: name.join("/"),
            ns: query.ns.clone(),
        };
        match &words[v2 + 1..] {
            [] | [""] => Self::Ping,
            ["_catalog"] => Self::Unsupported,
            [name @ .., "blobs", "uploads", _] | [name @ .., "blobs", "uploads"] if !name.is_empty() => Self::Unsupported,
            [name @ .., "manifests", reference] if !name.is_empty() => match reference.parse() {
                Ok(reference) => Self::Manifest(target(name), reference),
                Err(error) => Self::Invalid(code_of(&error), error.to_string()),
            },
            [name @ .., "blobs", digest] if !name.is_empty() => match digest.parse() {
                Ok(digest) => Self::Blob(target(name), digest),
                Err(error) => Self::Invalid(ErrorCode::DigestInvalid, InvalidDigest::to_string(&error)),
            },
            [name @ .., "referrers", digest] if !name.is_empty() => match digest.parse() {
                Ok(digest) => Self::Referrers(target(name), digest, query.artifact_type),
                Err(error) => Self::Invalid(ErrorCode::DigestInvalid, InvalidDigest::to_string(&error)),
            },
            [name @ .., "tags", "list"] if !name.is_empty() => match query.page() {
                Ok(page) => Self::Tags(target(name), page),
                Err(message) => Self::Invalid(ErrorCode::PaginationNumberInvalid, message.into()),
            },
            _ => Self::NotFound,
        }
    }
}

fn code_of(error: &InvalidName) -> ErrorCode {
    match error {
        InvalidName::Repository => ErrorCode::NameInvalid,
        InvalidName::Tag => ErrorCode::TagInvalid,
        InvalidName::Digest(_) => ErrorCode::DigestInvalid,
    }
}

/// The segments of a path, percent-decoded one by one. Refused: whatever would mean another path once decoded.
fn segments(path: &str) -> Result<Segments<Cow<'_, str>>, &'static str> {
    if path.len() > LONGEST_PATH {
        return Err("the path is longer than any name");
    }
    let path = path.strip_prefix('/').unwrap_or(path);
    let is_odd = |byte: &u8| !byte.is_ascii_graphic() || *byte == b'%';
    // Most paths have no such byte: to look at all of them without stopping is less work.
    let is_plain = path.bytes().filter(is_odd).count() == 0;
    let (mut segments, mut rest) = (Segments::new(), Some(path));
    while let Some(path) = rest {
        let end = path.bytes().position(|byte| byte == b'/');
        let segment = end.map_or(path, |end| &path[..end]);
        rest = end.map(|end| &path[end + 1..]);
        if segment.is_empty() && rest.is_some() {
            return Err("the path has an empty component");
        }
        let segment = if is_plain { Cow::Borrowed(segment) } else { decoded(segment)? };
        if segment == "." || segment == ".." {
            return Err("the path has a component that is no name");
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn decoded(segment: &str) -> Result<Cow<'_, str>, &'static str> {
    let segment = percent_decode_str(segment).decode_utf8().map_err(|_| "the path is not UTF-8")?;
    if segment.contains(|c: char| c == '/' || c.is_control()) {
        return Err("the path has a component that is no name");
    }
    Ok(segment)
}

/// The `ns` of a query, also of one that makes no sense otherwise: it is told back in every answer.
#[must_use]
pub fn namespace(query: &str) -> Option<String> {
    let named = |value: &str| (1..=LONGEST_NAME).contains(&value.len());
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, value)| key == "ns" && named(value));
    values.next().map(|(_, value)| value.into_owned())
}

#[derive(Default)]
struct Query {
    ns: Option<String>,
    n: Option<String>,
    last: Option<String>,
    next_page: Option<String>,
    next: Option<String>,
    artifact_type: Option<String>,
}

impl Query {
    fn parse(text: &str) -> Result<Self, (ErrorCode, String)> {
        let mut query = Self::default();
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            if value.is_empty() {
                continue;
            }
            let slot = match &*key {
                "ns" => &mut query.ns,
                "n" => &mut query.n,
                "last" => &mut query.last,
                "next_page" => &mut query.next_page,
                "next" => &mut query.next,
                "artifactType" => &mut query.artifact_type,
                _ => continue,
            };
            if value.len() > if key == "ns" { LONGEST_NAME } else { LONGEST_NEXT } {
                return Err((ErrorCode::Unsupported, format!("{key} is longer than any there is")));
            }
            if slot.as_ref().is_some_and(|old| **old != *value) {
                return Err((ErrorCode::Unsupported, format!("{key} is given twice with different values")));
            }
            *slot = Some(value.into_owned());
        }
        Ok(query)
    }

    fn page(&self) -> Result<Page, &'static str> {
        let n = self.n.as_deref().map(str::parse).transpose().map_err(|_| "n is a whole number, 0 or more")?;
        let page = match &self.next {
            Some(next) => Page::by_query(next).ok_or("next is no place in this list")?,
            None => Page { last: self.last.clone(), next_page: self.next_page.clone(), ..Page::default() },
        };
        Ok(Page { n, ..page })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn route(uri: &str) -> Route {
        let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
        Route::parse(path, query)
    }

    fn target(path: &str) -> Target {
        Target { prefix: None, path: path.into(), ns: None }
    }

    #[test]
    fn each_end_of_a_path_names_its_thing() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        let latest = Reference::Tag("latest".parse().unwrap());
        assert_eq!(route("/v2/"), Route::Ping);
        assert_eq!(route("/v2"), Route::Ping);
        assert_eq!(route("/token?service=a&scope=repository:b:pull&scope=repository:c:pull&n=x&n=y"), Route::Token);
        assert_eq!(route("/v2/a/manifests/latest"), Route::Manifest(target("a"), latest.clone()));
        assert_eq!(route(&format!("/v2/a/b/blobs/sha256:{HEX}")), Route::Blob(target("a/b"), digest.clone()));
        assert_eq!(route(&format!("/v2/a/b/blobs/sha256%3A{HEX}")), Route::Blob(target("a/b"), digest.clone()));
        assert_eq!(
            route("/v2/a/tags/list?n=5&last=x"),
            Route::Tags(target("a"), Page { n: Some(5), last: Some("x".into()), ..Page::default() })
        );
        assert_eq!(
            route(&format!("/v2/a/referrers/sha256:{HEX}?artifactType=a%2Bb")),
            Route::Referrers(target("a"), digest, Some("a+b".into()))
        );
        assert_eq!(route("/v2/a/blobs/b/manifests/latest"), Route::Manifest(target("a/blobs/b"), latest.clone()));
        assert_eq!(route("/v2/manifests/manifests/manifests/latest"), Route::Manifest(target("manifests/manifests"), latest));
    }

    #[test]
    fn an_upstream_may_be_named_before_v2_and_by_ns() {
        let Route::Manifest(target, _) = route("/docker.io/v2/library/alpine/manifests/latest?ns=host%3A5000&ns=host:5000")
        else {
            panic!("no manifest")
        };
        assert_eq!(target.prefix.as_deref(), Some("docker.io"));
        assert_eq!(target.ns.as_deref(), Some("host:5000"));
        let Route::Manifest(target, _) = route("/v2/a/manifests/latest?ns=") else { panic!("no manifest") };
        assert_eq!(target.ns, None);
    }

    #[test]
    fn a_registrys_own_query_goes_through_a_client_unchanged() {
        for query in ["marker=a%2Fb&n=2", "abc", "next=next%3Dx", "a=1&b=+%C3%A4"] {
            let page = Page::by_query(query).unwrap();
            let Route::Tags(_, asked) = route(&format!("/v2/a/tags/list?{}", page.link())) else { panic!("no list") };
            assert_eq!((asked.query(), &asked), (query.to_owned(), &page));
        }
        assert_eq!(Page::by_query(&"x".repeat(LONGEST_NEXT + 1)), None);
        for elsewhere in ["ns=ghcr.io&last=q", "last=q&%6es=ghcr.io"] {
            assert_eq!(Page::by_query(elsewhere), None);
            let asked = format!(
                "/v2/a/tags/list?{}",
                form_urlencoded::Serializer::new(String::new()).append_pair("next", elsewhere).finish()
            );
            assert!(matches!(route(&asked), Route::Invalid(..)), "{asked}");
        }
    }

    #[test]
    fn what_a_mirror_has_not_is_unsupported() {
        for path in ["/v2/_catalog", "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads", "/v2/a/blobs/uploads/some-id"] {
            assert_eq!(route(path), Route::Unsupported, "{path}");
        }
    }

    #[test]
    fn broken_paths_are_refused_with_their_code() {
        for (path, code) in [
            ("/v2/a/blobs/sha256:abc", ErrorCode::DigestInvalid),
            ("/v2/a/manifests/sha256:abc", ErrorCode::DigestInvalid),
            ("/v2/a/manifests/.bad", ErrorCode::TagInvalid),
            ("/v2/a/../b/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a/%2e%2e/b/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a%2Fb/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a%00b/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a//b/manifests/latest", ErrorCode::NameInvalid),
            ("/v2/a/tags/list?n=-1", ErrorCode::PaginationNumberInvalid),
            ("/v2/a/tags/list?n=x", ErrorCode::PaginationNumberInvalid),
            ("/v2/a/tags/list?next=a%23b", ErrorCode::PaginationNumberInvalid),
            ("/v2/a/tags/list?next=a%0Ab", ErrorCode::PaginationNumberInvalid),
            ("/v2/a/manifests/latest?ns=b&ns=c", ErrorCode::Unsupported),
        ] {
            assert!(matches!(route(path), Route::Invalid(c, _) if c == code), "{path} {:?}", route(path));
        }
    }

    #[test]
    fn everything_else_is_not_found() {
        for path in ["/", "/v1/_ping", "/v2/a", "/v2/manifests/latest", "/favicon.ico", "/v2/blobs/sha256:abc"] {
            assert_eq!(route(path), Route::NotFound, "{path}");
        }
    }
}
