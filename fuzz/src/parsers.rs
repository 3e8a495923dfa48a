//! Text that becomes something: paths, ranges, challenges, names, digests, configurations.

use http::{HeaderMap, HeaderValue, header};
use larder::config::Config;
use larder::oci::{Digest, ImageName, Page, Pattern, Platform, Reference, RepositoryName, Route, Tag, TagTtl, Target, namespace};

use crate::challenge::Challenge;
use crate::range::Ranges;

/// A path and, after a question mark, a query.
pub(crate) fn route(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    let _ = query.and_then(namespace);
    match Route::parse(path, query) {
        Route::Manifest(target, reference) => {
            named(&target);
            again(&reference.to_string(), &reference);
        }
        Route::Blob(target, digest) | Route::Referrers(target, digest, _) => {
            named(&target);
            again(&digest.to_string(), &digest);
        }
        Route::Tags(target, page) => {
            named(&target);
            // What is asked upstream is a query and nothing more, and a page leads back to itself.
            let asked = page.query();
            assert!(asked.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{asked:?}");
            let Route::Tags(_, back) = Route::parse("/v2/a/tags/list", Some(&page.link())) else { panic!("{page:?}") };
            assert_eq!(back, page);
        }
        Route::Invalid(_, message) => assert!(!message.is_empty()),
        Route::Ping | Route::Token | Route::Unsupported | Route::NotFound => {}
    }
    if let Some(page) = Page::by_query(text) {
        assert_eq!(page.query(), text);
    }
}

/// Nothing in it leads out of a path.
fn named(target: &Target) {
    let parts = target.prefix.iter().chain([&target.path]);
    for part in parts.flat_map(|part| part.split('/')) {
        assert!(!part.is_empty() && part != "." && part != "..", "{target:?}");
    }
}

/// Reading what was written gives the same.
fn again<T: std::str::FromStr + PartialEq + std::fmt::Debug>(written: &str, value: &T) {
    assert!(written.parse::<T>().is_ok_and(|read| read == *value), "{written:?} {value:?}");
}

/// A size of eight bytes, and a header.
pub(crate) fn range(bytes: &[u8]) {
    let Some((size, header)) = bytes.split_at_checked(8) else { return };
    let Ok(header) = str::from_utf8(header) else { return };
    let size = u64::from_le_bytes(size.try_into().expect("eight bytes")) >> 2;
    let legal = |range: &std::ops::Range<u64>| range.start < range.end && range.end <= size;
    match Ranges::parse(header, size) {
        Ranges::One(range) => assert!(legal(&range), "{range:?} of {size}"),
        Ranges::Many(ranges) => {
            assert!((2..=1024).contains(&ranges.len()) && ranges.iter().all(legal), "{ranges:?} of {size}");
            assert!(ranges.iter().map(|range| u128::from(range.end - range.start)).sum::<u128>() <= size.into());
        }
        Ranges::Whole | Ranges::Unsatisfiable | Ranges::TooMany => {}
    }
}

/// The values of `WWW-Authenticate`, a line each.
pub(crate) fn challenge(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for value in bytes.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok()) {
        headers.append(header::WWW_AUTHENTICATE, value);
    }
    let Some(Challenge::Bearer(key)) = Challenge::parse(&headers) else { return };
    assert!(key.weight() <= bytes.len(), "nothing is made up");
    for part in [Some(&key.realm), key.service.as_ref(), key.scope.as_ref()].into_iter().flatten() {
        assert!(!part.is_empty() && part.trim() == part && !part.contains(['\r', '\n', '\0']), "{part:?}");
        assert!(String::from_utf8_lossy(bytes).contains(&**part), "{part:?}");
    }
}

/// Names of all kinds.
pub(crate) fn reference(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        let (algorithm, hex) = text.split_once(':').expect("an algorithm");
        assert!(matches!((algorithm, hex.len()), ("sha256", 64) | ("sha512", 128)), "{text:?}");
        assert!(hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{text:?}");
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(name) = text.parse::<RepositoryName>() {
        assert!(name.to_string() == text && text.len() <= 255);
        let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        let component = |part: &str| !part.is_empty() && part.bytes().all(legal) && !part.starts_with(['.', '_', '-']);
        assert!(text.split('/').all(component), "{text:?}");
    }
    if let Ok(tag) = text.parse::<Tag>() {
        assert!(tag.to_string() == text && text.len() <= 128 && !text.starts_with(['.', '-']));
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')), "{text:?}");
    }
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string(), text);
    }
    if let Ok(image) = text.parse::<ImageName>() {
        again(&image.to_string(), &image);
    }
    if let Ok(pattern) = text.parse::<Pattern>() {
        again(&pattern.to_string(), &pattern);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        again(&platform.to_string(), &platform);
    }
    if let Ok(ttl) = text.parse::<TagTtl>() {
        again(&ttl.to_string(), &ttl);
    }
}

/// A file, and after a NUL settings, a line each, of which those that begin with `LARDER_` stand in the environment.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (file, settings) = text.split_once('\0').unwrap_or((text, ""));
    match Config::from_toml(file) {
        Ok(config) => {
            let written = toml::to_string(&config).expect("a configuration is plain data");
            assert!(Config::from_toml(&written).is_ok(), "what was read can be written and read again: {written}");
        }
        Err(error) => one_line(&error),
    }
    let (environment, flags): (Vec<&str>, Vec<&str>) = settings.lines().partition(|line| line.starts_with("LARDER_"));
    let environment = environment.iter().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into()));
    let flags: Vec<String> = flags.into_iter().map(Into::into).collect();
    if let Err(error) = Config::load(None, environment, &flags) {
        one_line(&error);
    }
}

fn one_line(error: &impl ToString) {
    let said = error.to_string();
    assert!(!said.is_empty() && !said.contains(['\n', '\r']), "{said:?}");
}
