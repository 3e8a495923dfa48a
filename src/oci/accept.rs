//! What a client is ready to take.

use http::{HeaderMap, header};

/// The media types of the `Accept` headers of a request. Weights are left out: clients send none that matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept(Vec<String>);

impl Accept {
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let types = values.flat_map(|value| value.split(','));
        let names = types.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        Self(names.filter(|name| !name.is_empty()).collect())
    }

    /// As if nothing was said.
    #[must_use]
    pub fn anything() -> Self {
        Self(Vec::new())
    }

    /// True if `media_type` is among them, or nothing was said, or anything will do.
    #[must_use]
    pub fn takes(&self, media_type: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|name| name == media_type || name == "*/*" || name == "application/*")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(values: &[&str]) -> Accept {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| _ = headers.append(header::ACCEPT, value.parse().unwrap()));
        Accept::of(&headers)
    }

    #[test]
    fn several_lines_count_as_one() {
        let docker = accept(&["application/a+json", "application/b+json;q=0.5, text/x"]);
        assert!(docker.takes("application/b+json") && docker.takes("text/x") && !docker.takes("application/c+json"));
    }

    #[test]
    fn silence_and_wildcards_take_everything() {
        for values in [&[][..], &["*/*"], &["a/b, */*"], &["application/*"]] {
            assert!(accept(values).takes("application/vnd.oci.image.index.v1+json"), "{values:?}");
        }
    }
}
