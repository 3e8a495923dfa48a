//! All that an image needs, and how much of it is here: one walk for all orders.
//!
//! An image is whole if all is here that it names. Of an index nobody needs all: it is whole if one of its manifests is, and those
//! that are not whole are absent.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::heavy;
use crate::oci::{self, Descriptor, Digest, MAX_MANIFEST, Manifest};
use crate::room::Askers;
use crate::store::Holds;

use super::Orders;

/// What an image is made of.
#[derive(Default)]
pub(super) struct Parts {
    /// What it needs and is here, with sizes in bytes. Empty if the image is not whole.
    pub(super) blobs: BTreeMap<Digest, u64>,
    /// What is here beside, of manifests that are not whole.
    pub(super) stray: BTreeMap<Digest, u64>,
    /// The manifests that are here, whole or not, its own first.
    pub(super) manifests: Vec<(Digest, Manifest)>,
    /// For what the manifests are that its index names and that are not whole.
    pub(super) absent: Vec<String>,
    /// What is lacking for the image to be whole.
    pub(super) missing: BTreeMap<Digest, Lack>,
}

/// Why something is not to be had from the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lack {
    Absent,
    /// It is here, and no manifest, or none of which all could ever be here.
    Broken(String),
}

enum Node {
    Lacks(Lack),
    Blob(u64),
    Manifest(u64, Manifest),
}

/// As what something is wanted; for a manifest, of this type.
enum Wanted {
    Blob,
    Manifest(Option<String>),
}

/// More than any image has.
const MOST_MANIFESTS: usize = 10_000;
/// As many as there may be in an archive.
const MOST_NAMES: usize = 200_000;

// === impl Orders ===

impl Orders {
    /// What an image is made of. `media_type`: of its own manifest, if that is known. What is looked at is held first.
    ///
    /// # Errors
    /// When it names more than any image does.
    pub(super) async fn parts(&self, image: &Digest, media_type: Option<String>, holds: Option<&Holds>) -> Result<Parts, String> {
        self.parts_among(image, media_type, holds, |_| true).await
    }

    /// The same where only what is `among` some counts as here.
    ///
    /// # Errors
    /// As for [`Orders::parts`].
    pub(super) async fn parts_among(
        &self,
        image: &Digest,
        media_type: Option<String>,
        holds: Option<&Holds>,
        among: impl Fn(&Digest) -> bool,
    ) -> Result<Parts, String> {
        let mut nodes = HashMap::<Digest, Node>::new();
        let (mut found, mut named) = (Vec::new(), 0);
        let mut wanted = vec![(image.clone(), Wanted::Manifest(media_type))];
        while let Some((digest, what)) = wanted.pop() {
            match (nodes.get(&digest), &what) {
                (None, _) | (Some(Node::Blob(_)), Wanted::Manifest(_)) => {}
                _ => continue,
            }
            holds.iter().for_each(|holds| holds.hold(&digest));
            let node = match (self.store.size(&digest).filter(|_| among(&digest)), what) {
                (None, _) => Node::Lacks(Lack::Absent),
                (Some(size), Wanted::Blob) => Node::Blob(size),
                (Some(size), Wanted::Manifest(media_type)) => match self.read_manifest(&digest, media_type.as_deref()).await {
                    Ok(Manifest { strange: Some(part), .. }) => {
                        Node::Lacks(Lack::Broken(format!("it needs {part:?}, and larder knows only sha256 and sha512")))
                    }
                    Ok(manifest) => Node::Manifest(size, manifest),
                    // An index may name what is no manifest.
                    Err(_) if digest != *image && media_type.is_none() => Node::Blob(size),
                    Err(why) => Node::Lacks(Lack::Broken(why)),
                },
            };
            if let Node::Manifest(_, manifest) = &node {
                found.push(digest.clone());
                named += manifest.children.len() + manifest.names.len();
                if found.len() > MOST_MANIFESTS || named > MOST_NAMES {
                    return Err(format!(
                        "it has more than {MOST_MANIFESTS} manifests, or they name more than {MOST_NAMES} blobs"
                    ));
                }
                let unseen = needs(manifest).filter(|(digest, _)| !matches!(nodes.get(digest), Some(Node::Manifest(..))));
                wanted.extend(unseen);
            }
            nodes.insert(digest, node);
        }
        Ok(gathered(image, nodes, found))
    }

    pub(super) async fn read_manifest(&self, digest: &Digest, media_type: Option<&str>) -> Result<Manifest, String> {
        let bytes = self.store.peek(digest, MAX_MANIFEST).await.map_err(|error| error.to_string())?;
        let bytes = bytes.ok_or("it is too large for a manifest, or has just left the cache")?;
        let (digest, media_type) = (digest.clone(), media_type.map(str::to_owned));
        let larder = Askers::default();
        let read = heavy::work(&larder, bytes.len(), move || {
            if !digest.matches(&bytes) {
                return Err("it is damaged; `larder verify --repair` fetches it anew".into());
            }
            Manifest::parse(media_type.as_deref(), &bytes).map_err(|bad| bad.to_string())
        });
        read.await.map_err(|error| error.to_string())?
    }
}

fn needs(manifest: &Manifest) -> impl Iterator<Item = (Digest, Wanted)> {
    // What is not said to be a manifest may be one all the same, of the type that it says itself.
    let media_type = |child: &Descriptor| Some(child.media_type.clone()).filter(|of| oci::is_manifest_type(of));
    let children = manifest.children.iter();
    let children = children.filter_map(move |child| Some((child.digest.parse().ok()?, Wanted::Manifest(media_type(child)))));
    let blobs = manifest.names.iter().filter(|_| manifest.children.is_empty()).map(|name| (name.clone(), Wanted::Blob));
    children.chain(blobs)
}

fn gathered(image: &Digest, mut nodes: HashMap<Digest, Node>, found: Vec<Digest>) -> Parts {
    let whole = whole(image, &nodes);
    let is_whole = |child: &Descriptor| child.digest.parse::<Digest>().is_ok_and(|digest| whole.contains(&digest));
    let mut parts = Parts::default();
    let (mut looked_at, mut seen) = (vec![image], HashSet::from([image]));
    while let Some(digest) = looked_at.pop() {
        match &nodes[digest] {
            Node::Lacks(lack) => _ = parts.missing.insert(digest.clone(), lack.clone()),
            Node::Blob(size) => _ = parts.blobs.insert(digest.clone(), *size),
            Node::Manifest(size, manifest) => {
                parts.blobs.insert(digest.clone(), *size);
                let label =
                    |child: &Descriptor| child.platform.as_ref().map_or_else(|| child.digest.clone(), ToString::to_string);
                parts.absent.extend(manifest.children.iter().filter(|child| !is_whole(child)).map(label));
                // Of what is not whole, that counts of which a part is here.
                let mut needed: Vec<&Digest> =
                    needs(manifest).filter_map(|(digest, _)| Some(nodes.get_key_value(&digest)?.0)).collect();
                if !manifest.children.is_empty() {
                    let is_here = |digest: &&Digest| matches!(nodes[*digest], Node::Manifest(..));
                    if whole.contains(digest) {
                        needed.retain(|digest| whole.contains(*digest));
                    } else if needed.iter().any(is_here) {
                        needed.retain(is_here);
                    }
                }
                looked_at.extend(needed.into_iter().filter(|digest| seen.insert(digest)));
            }
        }
    }
    if !whole.contains(image) {
        parts.blobs.clear();
        if parts.missing.is_empty() {
            parts.missing.insert(image.clone(), Lack::Broken("it names nothing that could be here".into()));
        }
    }
    for (digest, node) in &nodes {
        match node {
            Node::Blob(size) | Node::Manifest(size, _) if !parts.blobs.contains_key(digest) => {
                parts.stray.insert(digest.clone(), *size);
            }
            _ => {}
        }
    }
    for digest in found {
        if let Some(Node::Manifest(_, manifest)) = nodes.remove(&digest) {
            parts.manifests.push((digest, manifest));
        }
    }
    parts
}

/// Which of all that was found is whole. No call of itself, as manifests may be nested deep.
fn whole(image: &Digest, nodes: &HashMap<Digest, Node>) -> HashSet<Digest> {
    let (mut whole, mut known) = (HashSet::new(), HashSet::new());
    let mut looked_at = vec![(image.clone(), false)];
    while let Some((digest, parts_known)) = looked_at.pop() {
        let is_whole = match nodes.get(&digest) {
            _ if known.contains(&digest) => continue,
            Some(Node::Manifest(_, manifest)) if !parts_known => {
                looked_at.push((digest, true));
                looked_at.extend(needs(manifest).map(|(digest, _)| (digest, false)));
                continue;
            }
            Some(Node::Manifest(_, manifest)) if manifest.children.is_empty() => {
                manifest.names.iter().all(|name| whole.contains(name))
            }
            Some(Node::Manifest(_, manifest)) => needs(manifest).any(|(digest, _)| whole.contains(&digest)),
            Some(Node::Blob(_)) => true,
            Some(Node::Lacks(_)) | None => false,
        };
        if is_whole {
            whole.insert(digest.clone());
        }
        known.insert(digest);
    }
    whole
}

// === impl Parts ===

impl Parts {
    pub(super) fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }

    pub(super) fn is_index(&self) -> bool {
        self.manifests.first().is_some_and(|(_, manifest)| !manifest.children.is_empty())
    }

    /// All that its manifests name, here or not.
    pub(super) fn named(&self) -> impl Iterator<Item = Digest> {
        self.manifests.iter().flat_map(|(_, manifest)| manifest.names.iter().cloned())
    }

    /// All that is here, of use or not, with sizes in bytes.
    pub(super) fn here(&self) -> impl Iterator<Item = (&Digest, u64)> {
        self.blobs.iter().chain(&self.stray).map(|(digest, size)| (digest, *size))
    }
}
