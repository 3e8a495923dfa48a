//! The keys of a manifest, which not all clients read alike: Go's take `Layers` for `layers` and the last of two, others are strict
//! and take the first or none. To them one digest would be two images, as with CVE-2021-41190.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Fails at the first key of a manifest that matters and is there twice, or in another spelling.
pub(super) fn check(manifest: &[u8]) -> serde_json::Result<()> {
    Part::Document.deserialize(&mut serde_json::Deserializer::from_slice(manifest))
}

/// What is looked at. What lies in other keys, annotations among them, means what its maker likes.
#[derive(Clone, Copy)]
enum Part {
    Document,
    /// One or a list of them.
    Descriptor,
    Platform,
    FsLayer,
    Other,
}

// === impl Part ===

impl Part {
    /// Its keys that matter, and what lies in them.
    fn keys(self) -> &'static [(&'static str, Self)] {
        match self {
            Self::Document => &[
                ("schemaVersion", Self::Other),
                ("mediaType", Self::Other),
                ("artifactType", Self::Other),
                ("manifests", Self::Descriptor),
                ("config", Self::Descriptor),
                ("layers", Self::Descriptor),
                ("blobs", Self::Descriptor),
                ("subject", Self::Descriptor),
                ("fsLayers", Self::FsLayer),
            ],
            Self::Descriptor => &[
                ("mediaType", Self::Other),
                ("digest", Self::Other),
                ("size", Self::Other),
                ("urls", Self::Other),
                ("data", Self::Other),
                ("artifactType", Self::Other),
                ("platform", Self::Platform),
            ],
            Self::Platform => &[("architecture", Self::Other), ("os", Self::Other), ("variant", Self::Other)],
            Self::FsLayer => &[("blobSum", Self::Other)],
            Self::Other => &[],
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        match self {
            Self::Other => json.deserialize_ignored_any(IgnoredAny).map(|IgnoredAny| ()),
            part => json.deserialize_any(part),
        }
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a part of a manifest")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let mut seen = 0_u32;
        while let Some(key) = map.next_key::<String>()? {
            let known = self.keys().iter().enumerate().find(|(_, (name, _))| reads_as(&key, name));
            let Some((n, (name, part))) = known else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if key != *name {
                return Err(M::Error::custom(format!("its key {key:?} is {name:?} to some clients and not to others")));
            }
            if seen & 1 << n != 0 {
                return Err(M::Error::custom(format!("it has the key {name:?} twice")));
            }
            seen |= 1 << n;
            map.next_value_seed(*part)?;
        }
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<(), S::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

/// Whether Go takes one for the other: it looks at neither the case nor that of the two letters beyond ASCII that have one in it.
fn reads_as(key: &str, name: &str) -> bool {
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(folded).eq(name.chars().map(folded))
}
