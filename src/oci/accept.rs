//! What a client is ready to take.

use http::{HeaderMap, header};

/// The media types of the `Accept` headers of a request. Weights are left out: clients send none that matter.
#[derive(Debug, Clone, Copy)]
pub struct Accept<'a>(Option<&'a HeaderMap>);

impl<'a> Accept<'a> {
    #[must_use]
    pub fn of(headers: &'a HeaderMap) -> Self {
        Self(Some(headers))
    }

    /// As if nothing was said.
    #[must_use]
    pub fn anything() -> Self {
        Self(None)
    }

    /// True if `media_type` is among them, or nothing was said, or anything will do.
    #[must_use]
    pub fn takes(self, media_type: &str) -> bool {
        let Some(headers) = self.0 else { return true };
        let wanted = [media_type.as_bytes(), b"application/*", b"*/*"];
        let mut nothing_said = true;
        for value in headers.get_all(header::ACCEPT) {
            for name in value.as_bytes().split(|byte| *byte == b',').map(name) {
                if wanted.iter().any(|wanted| name.eq_ignore_ascii_case(wanted)) {
                    return true;
                }
                nothing_said &= name.is_empty();
            }
        }
        nothing_said
    }
}

/// A media type without its parameters.
fn name(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(values: &[&str], media_type: &str) -> bool {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| _ = headers.append(header::ACCEPT, value.parse().unwrap()));
        Accept::of(&headers).takes(media_type)
    }

    #[test]
    fn several_lines_count_as_one() {
        let docker = |media_type| takes(&["application/a+json", "application/B+json;q=0.5, text/x"], media_type);
        assert!(docker("application/b+json") && docker("text/x") && !docker("application/c+json"));
    }

    #[test]
    fn silence_and_wildcards_take_everything() {
        for values in [&[][..], &["*/*"], &["a/b, */*"], &["application/*"], &[" , ;q=1"]] {
            assert!(takes(values, "application/vnd.oci.image.index.v1+json"), "{values:?}");
        }
        assert!(Accept::anything().takes("text/x"));
    }
}
