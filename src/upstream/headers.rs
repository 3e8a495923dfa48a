//! What the headers of an answer say, as far as it can be used.

use std::ops::Range;

use http::header;
use reqwest::Response;

use crate::oci::Page;

use super::error::Error;

pub(super) fn content_type(response: &Response) -> Option<String> {
    let value = response.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_owned())
}

pub(super) fn content_length(response: &Response) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// How the body is encoded, if it is.
pub(super) fn encoding(response: &Response) -> Option<&str> {
    let encoding = response.headers().get(header::CONTENT_ENCODING)?.to_str().unwrap_or("?").trim();
    Some(encoding).filter(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity"))
}

/// `bytes 5-9/100` as 5..10 of 100.
pub(super) fn content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    let legal = first <= last && size.is_none_or(|size| last < size);
    legal.then_some((first..last.checked_add(1)?, size))
}

pub(super) fn link(response: &Response) -> Option<&str> {
    response.headers().get(header::LINK)?.to_str().ok()
}

/// The query of a `Link: <…>; rel="next"`. Only that is used of it: host and path are ours to choose.
pub(super) fn next_query(link: &str) -> Option<&str> {
    let (url, parameters) = link.strip_prefix('<')?.split_once('>')?;
    let (_, query) = url.split_once('?')?;
    parameters.contains("next").then_some(query)
}

pub(super) fn next_page(link: &str) -> Result<Option<Page>, Error> {
    let Some(query) = next_query(link) else { return Ok(None) };
    let mut page = Page::default();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            // Some registries say 0 for what was not asked.
            "n" => page.n = value.parse().ok().filter(|n| *n > 0),
            "last" => page.last = Some(value.into_owned()),
            "next_page" => page.next_page = Some(value.into_owned()),
            // What it means is the registry's affair.
            _ => {
                let page =
                    Page::by_query(query).ok_or_else(|| Error::unavailable("it names no usable place for the next page"))?;
                return Ok(Some(page));
            }
        }
    }
    // Without a place it would be the first page again.
    Ok((page.last.is_some() || page.next_page.is_some()).then_some(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_exactly() {
        assert_eq!(content_range("bytes 5-9/100"), Some((5..10, Some(100))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0..1, None)));
        for text in ["bytes 9-5/100", "bytes 5-100/100", "bytes */100", "items 1-2/3", "bytes 1-2", ""] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    #[test]
    fn of_a_link_only_the_place_in_the_list_is_taken() {
        let page = next_page(r#"<https://evil.example/v2/x/tags/list?n=50&last=b&next_page=gAAA%3D>; rel="next""#);
        let read = Page { n: Some(50), last: Some("b".into()), next_page: Some("gAAA=".into()), next: None };
        assert_eq!(page, Ok(Some(read)));
        assert_eq!(next_page(r#"</v2/x?n=50&marker=a%2Fb>; rel="next""#), Ok(Page::by_query("n=50&marker=a%2Fb")));
        assert!(next_page(&format!(r#"</v2/x?marker={}>; rel="next""#, "a".repeat(5000))).is_err());
        assert_eq!(next_page(r#"</v2/x?n=1>; rel="prev""#), Ok(None));
        assert_eq!(next_page(r#"</v2/x?n=1>; rel="next""#), Ok(None));
        assert_eq!(next_page("nonsense"), Ok(None));
    }
}
