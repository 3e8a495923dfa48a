//! What the headers of an answer tell of the thing that was asked for, and whether it is that which they speak of.

use reqwest::Response;

use crate::oci::Digest;

use super::cache_status::CacheStatus;
use super::headers::{content_length, content_type};

/// What the headers tell. None of it is more than a hint.
pub struct Found {
    pub digest: Option<Digest>,
    pub size: Option<u64>,
    pub content_type: Option<String>,
    pub cache_status: Option<CacheStatus>,
}

/// What was found of a blob, held against what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Of this blob: of its digest, or of its size.
    OfIt,
    /// Of some blob: there is nothing to tell it by.
    OfSome,
    /// Of one that is not as large, or of nothing that could be told.
    OfNone,
    /// Of another blob, or it is a page.
    OfAnother,
}

// === impl Found ===

impl Found {
    /// Of what it is said. `size`: that of the blob, where it is known.
    #[must_use]
    pub fn speaks(&self, digest: &Digest, size: Option<u64>) -> Speaks {
        let is_page = self.content_type.as_deref().is_some_and(|of| of.eq_ignore_ascii_case("text/html"));
        match (&self.digest, self.size, size) {
            (Some(told), ..) if told != digest => Speaks::OfAnother,
            (None, ..) if is_page => Speaks::OfAnother,
            (_, Some(told), Some(size)) if told != size => Speaks::OfNone,
            (Some(_), ..) | (None, Some(_), Some(_)) => Speaks::OfIt,
            (None, Some(_), None) => Speaks::OfSome,
            (None, None, _) => Speaks::OfNone,
        }
    }

    pub(super) fn of(response: &Response) -> Self {
        let digest = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        Self {
            digest: digest.and_then(|text| text.parse().ok()),
            size: content_length(response),
            content_type: content_type(response),
            cache_status: CacheStatus::of(response.headers()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_blob_is_told_from_what_is_said_of_something_else() {
        let (digest, other) = (Digest::sha256(b"it"), Digest::sha256(b"another"));
        let (page, blob) = (Some("text/html"), Some("application/octet-stream"));
        for (told, told_size, of, size, speaks) in [
            (Some(&digest), Some(5), blob, Some(5), Speaks::OfIt),
            (Some(&digest), None, None, Some(5), Speaks::OfIt),
            (Some(&digest), Some(5), blob, None, Speaks::OfIt),
            (Some(&digest), Some(6), blob, Some(5), Speaks::OfNone),
            (Some(&other), Some(5), blob, Some(5), Speaks::OfAnother),
            (None, Some(5), blob, Some(5), Speaks::OfIt),
            (None, Some(5), page, Some(5), Speaks::OfAnother),
            (None, Some(6), blob, Some(5), Speaks::OfNone),
            (None, Some(6), blob, None, Speaks::OfSome),
            (None, Some(6), page, None, Speaks::OfAnother),
            (None, None, blob, Some(5), Speaks::OfNone),
            (None, None, blob, None, Speaks::OfNone),
        ] {
            let found = Found { digest: told.cloned(), size: told_size, content_type: of.map(str::to_owned), cache_status: None };
            assert_eq!(found.speaks(&digest, size), speaks, "{told:?} {told_size:?} {of:?}, {size:?} is known");
        }
    }
}
