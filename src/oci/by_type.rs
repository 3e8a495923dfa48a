//! Referrers by their type: a list of them is parsed once, however often something is picked out of it.

use std::ops::Range;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::BadManifest;

/// An index of referrers that was parsed. What it has of a type is looked up in it and copied.
#[derive(Debug)]
pub struct ReferrersByType {
    /// All of it, without white space and with the keys in order. What larder itself has put together of pages is written like this
    /// already: then these are the bytes that were read.
    text: Bytes,
    /// Where in it the descriptors are, with what is between them.
    listed: Range<usize>,
    /// The descriptors that say their type, in the order of those; of one type as they are listed.
    typed: Vec<Typed>,
    /// It takes so much of the memory beside the bytes that were read.
    weight: usize,
}

/// Where in the text a descriptor is, and in that its type. Small, as a list may have a hundred thousand.
#[derive(Debug)]
struct Typed {
    descriptor: Range<u32>,
    artifact_type: Range<u32>,
}

// === impl ReferrersByType ===

impl ReferrersByType {
    /// Parses an index of referrers.
    ///
    /// # Errors
    /// When `index` is no index.
    pub fn read(index: &Bytes) -> Result<Self, BadManifest> {
        let document: Value = serde_json::from_slice(index).map_err(|error| BadManifest::not_json(&error))?;
        let (mut text, mut listed, mut typed) = (Vec::with_capacity(index.len()), None, Vec::new());
        write_object(&mut text, document.as_object().ok_or(BadManifest::NoType)?, |text, key, value| match value {
            Value::Array(manifests) if key == "manifests" => {
                text.push(b'[');
                let start = text.len();
                for descriptor in manifests {
                    if text.len() > start {
                        text.push(b',');
                    }
                    typed.extend(write_descriptor(text, descriptor)?);
                }
                listed = Some(start..text.len());
                text.push(b']');
                Ok(())
            }
            other => write(text, other),
        })?;
        drop(document);
        let listed = listed.ok_or(BadManifest::NoType)?;
        typed.sort_by(|a, b| part(&text, &a.artifact_type).cmp(part(&text, &b.artifact_type)));
        typed.shrink_to_fit();
        text.shrink_to_fit();
        let weight = typed.len() * size_of::<Typed>();
        if text == *index {
            return Ok(Self { text: index.clone(), listed, typed, weight });
        }
        Ok(Self { weight: weight + text.len(), text: text.into(), listed, typed })
    }

    /// The index with only the descriptors of `artifact_type`; everything else of it as it was.
    #[must_use]
    pub fn filter(&self, artifact_type: &str) -> Vec<u8> {
        let mut filtered = Vec::with_capacity(self.filtered_length(artifact_type));
        filtered.extend_from_slice(&self.text[..self.listed.start]);
        for (n, typed) in self.of(artifact_type).iter().enumerate() {
            if n > 0 {
                filtered.push(b',');
            }
            filtered.extend_from_slice(part(&self.text, &typed.descriptor));
        }
        filtered.extend_from_slice(&self.text[self.listed.end..]);
        filtered
    }

    /// How many bytes [`filter`](Self::filter) copies.
    #[must_use]
    pub fn filtered_length(&self, artifact_type: &str) -> usize {
        let picked = self.of(artifact_type);
        let commas = picked.len().saturating_sub(1);
        self.text.len() - self.listed.len() + picked.iter().map(|typed| typed.descriptor.len()).sum::<usize>() + commas
    }

    /// About what it takes of the memory beside the bytes that were read.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
    }

    fn of(&self, artifact_type: &str) -> &[Typed] {
        let wanted = Value::from(artifact_type).to_string();
        let is = |typed: &Typed| part(&self.text, &typed.artifact_type).cmp(wanted.as_bytes());
        let from = &self.typed[self.typed.partition_point(|typed| is(typed).is_lt())..];
        &from[..from.partition_point(|typed| is(typed).is_eq())]
    }
}

fn part<'a>(text: &'a [u8], place: &Range<u32>) -> &'a [u8] {
    &text[place.start as usize..place.end as usize]
}

/// Writes an object as `serde_json` does, and its values by `write`, which is told their keys.
fn write_object(
    text: &mut Vec<u8>,
    object: &Map<String, Value>,
    mut write: impl FnMut(&mut Vec<u8>, &str, &Value) -> Result<(), BadManifest>,
) -> Result<(), BadManifest> {
    text.push(b'{');
    for (n, (key, value)) in object.iter().enumerate() {
        if n > 0 {
            text.push(b',');
        }
        serde_json::to_writer(&mut *text, key).map_err(|error| BadManifest::not_json(&error))?;
        text.push(b':');
        write(text, key, value)?;
    }
    text.push(b'}');
    Ok(())
}

/// Says where it is if it has a type.
fn write_descriptor(text: &mut Vec<u8>, descriptor: &Value) -> Result<Option<Typed>, BadManifest> {
    let Value::Object(fields) = descriptor else { return write(text, descriptor).map(|()| None) };
    let (start, mut artifact_type) = (end(text)?, None);
    write_object(text, fields, |text, key, value| {
        let start = end(text)?;
        write(text, value)?;
        if key == "artifactType" && value.is_string() {
            artifact_type = Some(start..end(text)?);
        }
        Ok(())
    })?;
    let descriptor = start..end(text)?;
    Ok(artifact_type.map(|artifact_type| Typed { descriptor, artifact_type }))
}

fn write(text: &mut Vec<u8>, value: &Value) -> Result<(), BadManifest> {
    serde_json::to_writer(text, value).map_err(|error| BadManifest::not_json(&error))
}

fn end(text: &[u8]) -> Result<u32, BadManifest> {
    u32::try_from(text.len()).map_err(|_| BadManifest::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;
    use proptest::test_runner::{Config, RngSeed, TestRunner};
    use serde_json::json;

    /// What is to come of it, by parsing all of it and writing what is left.
    fn parsed_anew(index: &str, artifact_type: &str) -> Result<String, BadManifest> {
        let mut document: Value = serde_json::from_str(index).map_err(|error| BadManifest::not_json(&error))?;
        let manifests = document.get_mut("manifests").and_then(Value::as_array_mut).ok_or(BadManifest::NoType)?;
        manifests.retain(|descriptor| descriptor["artifactType"] == json!(artifact_type));
        Ok(document.to_string())
    }

    fn picked(index: &str, artifact_type: &str) -> Result<String, BadManifest> {
        let by_type = ReferrersByType::read(&Bytes::copy_from_slice(index.as_bytes()))?;
        let filtered = by_type.filter(artifact_type);
        assert_eq!(filtered.len(), by_type.filtered_length(artifact_type));
        Ok(String::from_utf8(filtered).unwrap())
    }

    const TYPES: [&str; 8] = ["x/y", "x/yz", "", "é", "a\"b\\\n\u{1}", "7", "null", "]},{"];

    #[track_caller]
    fn all_types_are_picked(index: &str) {
        for artifact_type in TYPES {
            assert_eq!(picked(index, artifact_type), parsed_anew(index, artifact_type), "{artifact_type:?} of {index}");
        }
    }

    #[test]
    fn only_what_is_of_the_type_is_left() {
        let index =
            r#"{"schemaVersion":2, "manifests":[{"digest":"b"}, {"digest":"a","artifactType":"x/y","annotations":{"k":"v"}}]}"#;
        let left = r#"{"manifests":[{"annotations":{"k":"v"},"artifactType":"x/y","digest":"a"}],"schemaVersion":2}"#;
        assert_eq!(picked(index, "x/y").unwrap(), left);
        assert_eq!(picked(index, "x").unwrap(), r#"{"manifests":[],"schemaVersion":2}"#);
    }

    #[test]
    fn what_is_no_index_is_refused() {
        for index in ["", "{", "[]", "null", "7", "{}", r#"{"manifests":{}}"#, r#"{"manifests":null}"#, r#"{"manifests":[]}}"#] {
            assert!(picked(index, "x/y").is_err(), "{index}");
            all_types_are_picked(index);
        }
        let deep = |levels| format!(r#"{{"manifests":[{}{}]}}"#, "[".repeat(levels), "]".repeat(levels));
        assert!(picked(&deep(125), "x/y").is_ok() && picked(&deep(126), "x/y").is_err());
        [deep(125), deep(126)].iter().for_each(|index| all_types_are_picked(index));
    }

    /// Indexes as no registry writes them: with keys twice and escaped, types that are none, numbers in all ways, other things for
    /// descriptors, and white space anywhere.
    fn index() -> impl Strategy<Value = String> {
        let read = r#""x/y" "x\/y" "x\u002fy" "x/yz" "" "é" "\u00e9" "a\"b\\\n\u0001" "]},{" 7 null ["x/y"] {"artifactType":"x/y"} 1.50 1E5
            -0 123456789012345678901234567890"#;
        let refused = r#""\ud800" 1e999 nul"#;
        let one_of = |values: &'static str| select(values.split_whitespace().collect::<Vec<_>>());
        let value = move || prop_oneof![60 => one_of(read), 1 => one_of(refused)];
        let key = one_of(r#""artifactType" "artifact\u0054ype" "digest" "a" "z\n" "manifests""#);
        let space = || select(vec!["", "", "", " ", "\n\t"]);
        let field = (key, value(), space()).prop_map(|(key, value, space)| format!("{space}{key}{space}:{space}{value}{space}"));
        let object = proptest::collection::vec(field, 0..5).prop_map(|fields| format!("{{{}}}", fields.join(",")));
        let descriptor = prop_oneof![8 => object.clone(), 1 => value().prop_map(String::from)];
        let list = (proptest::collection::vec(descriptor, 0..8), space());
        let list = list.prop_map(|(list, space)| format!("[{space}{}]", list.join(&format!("{space},"))));
        let lists = prop_oneof![20 => list, 1 => object.clone()].prop_map(|list| format!(r#""manifests":{list}"#));
        let other = (
            select(vec!["annotations", "zone", "manifest", "artifactType"]),
            prop_oneof![object, value().prop_map(String::from)],
        );
        let other = other.prop_map(|(key, value)| format!(r#""{key}" : {value}"#));
        let fields = proptest::collection::vec(prop_oneof![lists.clone(), other], 0..4);
        (lists, fields, space(), any::<bool>()).prop_map(|(list, mut fields, space, first)| {
            fields.insert(if first { 0 } else { fields.len() }, list);
            format!("{space}{{{space}{}}}{space}", fields.join(","))
        })
    }

    #[test]
    fn what_is_left_is_what_parsing_it_anew_would_leave() {
        let config = Config { cases: 2000, rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..Config::default() };
        let tried = TestRunner::new(config).run(&index(), |index| {
            all_types_are_picked(&index);
            Ok(())
        });
        if let Err(failure) = tried {
            panic!("{failure}");
        }
    }

    #[test]
    fn a_long_list_takes_little_more_than_its_bytes() {
        let of = |n: usize| json!({ "digest": format!("sha256:{n:064}"), "artifactType": format!("x/{n}"), "size": n });
        let index = json!({ "schemaVersion": 2, "manifests": (0..30_000).map(of).collect::<Vec<_>>() });
        let weight = |index: Vec<u8>| ReferrersByType::read(&index.into()).unwrap().weight();
        let as_pages_are_put_together = index.to_string().into_bytes();
        let length = as_pages_are_put_together.len();
        assert_eq!(weight(as_pages_are_put_together), 16 * 30_000);
        assert_eq!(weight(serde_json::to_vec_pretty(&index).unwrap()), 16 * 30_000 + length);
        assert!(16 * 30_000 < length / 7, "{length}");
    }
}
