//! What `docker save` wrote before Docker 1.10: no manifest, no config, no digest; a directory for each layer, which says in `json`
//! what it is and on which other it lies, and the file `repositories`, which names the uppermost.
//!
//! Such an image gets the config that Docker makes of it as well: what its uppermost layer says, without what is about that one alone,
//! with the digests of all layers and what each says of its making.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::oci::Digest;

use super::super::archive::shown;
use super::Read;
use super::named::{LAYER_TYPE, Made, absent, descriptor, manifest, read};

/// `<id>/json`: of what stands there what says how the layer was made.
#[derive(Deserialize)]
struct Layer {
    parent: Option<String>,
    created: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    container_config: Option<Container>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(rename = "Cmd")]
    command: Option<Command>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Command {
    Words(Vec<String>),
    Line(String),
}

/// What is said of each layer.
type Described<'a> = HashMap<&'a str, Layer>;

/// More than Docker could ever lay one on another.
const MOST_LAYERS: usize = 200;
/// The most that may be made of one archive, in bytes: of a layer each image tells that lies on it.
const MOST_MADE: usize = 32 << 20;
/// What is said of a layer and not of an image.
const OF_LAYER: [&str; 6] = ["id", "parent", "parent_id", "layer_id", "Size", "throwaway"];

pub(super) fn images(repositories: Option<&[u8]>, archive: &Read) -> Result<Vec<Made>, String> {
    let described = archive.described.iter().map(|(id, text)| Ok((id.as_str(), read(&path_of(id), text)?)));
    let described = described.collect::<Result<Described, String>>()?;
    let mut names = BTreeMap::<String, Vec<String>>::new();
    if let Some(repositories) = repositories {
        let repositories: BTreeMap<String, BTreeMap<String, String>> = read("repositories", repositories)?;
        for (repository, tags) in repositories {
            for (tag, id) in tags {
                names.entry(id).or_default().push(format!("{repository}:{tag}"));
            }
        }
    }
    if names.is_empty() {
        // Images may be saved by their IDs. Those are meant on which no other lies.
        let parents: HashSet<&str> = described.values().filter_map(|layer| layer.parent.as_deref()).collect();
        let uppermost = described.keys().filter(|id| !parents.contains(*id));
        names.extend(uppermost.map(|id| ((*id).to_owned(), vec![String::new()])));
    }
    let (mut images, mut bytes) = (Vec::new(), 0);
    for (id, names) in names {
        let made = image(&id, names, &described, archive)?;
        bytes += made.manifest.len() + made.config.as_ref().map_or(0, String::len);
        if bytes > MOST_MADE {
            return Err("it has more images than any".into());
        }
        images.push(made);
    }
    Ok(images)
}

fn image(id: &str, names: Vec<String>, described: &Described, archive: &Read) -> Result<Made, String> {
    let (mut layers, mut history, mut next) = (Vec::new(), Vec::new(), Some(id));
    while let Some(id) = next {
        let path = format!("{id}/layer.tar");
        layers.push(archive.blob(&path).ok_or_else(|| absent(&path))?);
        let layer = described.get(id).ok_or_else(|| absent(&path_of(id)))?;
        history.push(layer.said());
        next = layer.parent.as_deref().filter(|parent| !parent.is_empty());
        if layers.len() > MOST_LAYERS {
            return Err(format!("{:?} lies on more than {MOST_LAYERS} layers", shown(id)));
        }
    }
    layers.reverse();
    history.reverse();
    let text = archive.described.get(id).ok_or_else(|| absent(&path_of(id)))?;
    let mut config: Map<String, Value> = read(&path_of(id), text)?;
    OF_LAYER.iter().for_each(|key| _ = config.remove(*key));
    let digests: Vec<String> = layers.iter().map(|(digest, _)| digest.to_string()).collect();
    config.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": digests }));
    config.insert("history".into(), history.into());
    // The oldest say neither, and there was nothing else.
    config.entry("os").or_insert_with(|| "linux".into());
    config.entry("architecture").or_insert_with(|| "amd64".into());
    let config = Value::Object(config).to_string();
    let layers: Vec<Value> = layers.iter().map(|(digest, size)| descriptor(LAYER_TYPE, digest, *size)).collect();
    let manifest = manifest(&Digest::sha256(config.as_bytes()), config.len() as u64, &layers)?;
    Ok(Made { config: Some(config), manifest, names, promised: None })
}

fn path_of(id: &str) -> String {
    format!("{id}/json")
}

// === impl Layer ===

impl Layer {
    /// As a line of the history of an image.
    fn said(&self) -> Value {
        let command = self.container_config.as_ref().and_then(|container| container.command.as_ref());
        let command = command.map(|command| match command {
            Command::Words(words) => words.join(" "),
            Command::Line(line) => line.clone(),
        });
        let mut said = Map::new();
        for (key, text) in [("author", &self.author), ("comment", &self.comment), ("created_by", &command)] {
            if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
                said.insert(key.into(), text.as_str().into());
            }
        }
        said.extend(self.created.iter().map(|created| ("created".into(), created.as_str().into())));
        said.into()
    }
}
