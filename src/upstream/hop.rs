//! The way of a request through several larders, so that none asks itself (RFC 9110, section 7.6.3).

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};

/// One running larder as it names itself in `Via`. Clones are the same; another start is another.
#[derive(Clone)]
pub struct Hop(Arc<str>);

/// A request is not to be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this request has been here before: the url of an upstream leads back to larder; it must be the registry's own")]
pub struct Astray;

/// How many proxies before us are told of, and what may be said of each, in bytes. Whoever makes up more of them does not make an upstream
/// refuse what others ask for as well.
const MOST_HOPS: usize = 8;
const LONGEST: usize = 128;

// === impl Hop ===

impl Hop {
    /// One that nobody else is.
    #[must_use]
    pub fn unique() -> Self {
        // The keys of a hash map are the randomness that the standard library has.
        Self(format!("1.1 larder-{:016x}", RandomState::new().hash_one(())).into())
    }

    /// The last proxies before us by what `Via` says of them, the nearest last.
    ///
    /// # Errors
    /// See [`Astray`].
    pub fn received(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, Astray> {
        let values: Vec<&[u8]> = headers.get_all(header::VIA).iter().map(HeaderValue::as_bytes).collect();
        if values.is_empty() {
            return Ok(None);
        }
        let via = values.join(&b", "[..]);
        if via.windows(self.0.len()).any(|part| part == self.0.as_bytes()) {
            return Err(Astray);
        }
        let via = String::from_utf8_lossy(&via);
        let mut proxies: Vec<String> = via.rsplit(',').filter_map(proxy).take(MOST_HOPS).collect();
        proxies.reverse();
        Ok(HeaderValue::try_from(proxies.join(", ")).ok().filter(|via| !via.is_empty()))
    }

    /// What to say in `Via` of a request that has come by way of `received`.
    pub(super) fn onward(&self, received: Option<&HeaderValue>) -> HeaderValue {
        let before = received.map_or(&b""[..], HeaderValue::as_bytes);
        let separator = if before.is_empty() { &b""[..] } else { b", " };
        let via = [before, separator, self.0.as_bytes()].concat();
        HeaderValue::from_bytes(&via).expect("two values make a value")
    }
}

/// A protocol's version and a proxy's name. The rest is not passed on: it is whatever the client likes, and an answer to that
/// would be one to everyone who asks for the same. Comments may be left out (RFC 9110, section 7.6.3).
fn proxy(text: &str) -> Option<String> {
    let mut words = text.split_ascii_whitespace();
    let (protocol, name) = (words.next()?, words.next()?);
    let version = protocol.rsplit('/').next()?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b));
    (plain(version) && plain(name) && version.len() + name.len() <= LONGEST).then(|| format!("{version} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| _ = headers.append(header::VIA, HeaderValue::from_bytes(value.as_bytes()).unwrap()));
        headers
    }

    #[test]
    fn a_request_that_comes_round_is_known_again_by_each_who_sent_it_on() {
        let (a, b) = (Hop::unique(), Hop::unique());
        assert_eq!(a.received(&headers(&[])), Ok(None));
        let one = a.onward(None);
        assert_eq!(a.received(&headers(&[one.to_str().unwrap()])), Err(Astray));
        let received = b.received(&headers(&["1.0 fred", one.to_str().unwrap()])).unwrap();
        let two = b.onward(received.as_ref());
        assert_eq!(two, format!("1.0 fred, {}, {}", a.0, b.0));
        assert_eq!(a.received(&headers(&[two.to_str().unwrap()])), Err(Astray));
        assert_eq!(b.received(&headers(&[two.to_str().unwrap()])), Err(Astray));
    }

    #[test]
    fn of_each_proxy_no_more_is_passed_on_than_its_name() {
        let hop = Hop::unique();
        for (value, passed_on) in [
            ("1.0 fred, HTTP/1.1 cache.example:3128 (Squid, of old)", Some("1.0 fred, 1.1 cache.example:3128")),
            ("1.1 [::1]:80,2 b", Some("1.1 [::1]:80, 2 b")),
            ("1.1 a, <script>alert(1)</script>, 1.1 ../../etc/passwd, 1.1 ' OR 1=1, 1.1 b", Some("1.1 a, 1.1 b")),
            ("1.1 \u{ff}, (1.1 x)", None),
            (" , ", None),
        ] {
            let received = hop.received(&headers(&[value])).unwrap();
            assert_eq!(received.as_ref().map(|value| value.to_str().unwrap()), passed_on, "{value}");
        }
    }

    #[test]
    fn of_a_long_way_the_end_is_told() {
        let hop = Hop::unique();
        let told = |values: &[&str]| hop.received(&headers(values)).unwrap().map(|via| via.to_str().unwrap().to_owned());
        let last = ["1.1 x"; 8].join(", ");
        for far in
            [&["1.1 far", &last][..], &[&"1.1 far, ".repeat(1_000), &last], &[&last, &format!("1.1 {}", "x".repeat(LONGEST))]]
        {
            assert_eq!(told(far).as_deref(), Some(last.as_str()));
        }
        let own = hop.onward(None);
        assert_eq!(hop.received(&headers(&[own.to_str().unwrap(), &last, &last])), Err(Astray), "and all is read");
    }
}
