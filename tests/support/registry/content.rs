//! What the registry holds, by repository.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

#[derive(Default)]
pub(super) struct Content {
    repositories: HashMap<String, Repository>,
}

#[derive(Default)]
pub(super) struct Repository {
    pub(super) blobs: HashMap<String, Bytes>,
    pub(super) manifests: HashMap<String, Manifest>,
    /// In the order in which `tags/list` gives them.
    pub(super) tags: BTreeMap<String, String>,
    /// `None` where the API is not offered.
    pub(super) referrers: Option<HashMap<String, Bytes>>,
    /// The accounts that may read it; `None`: all.
    readers: Option<HashSet<String>>,
    /// The blobs that have been asked for by GET.
    pub(super) fetched: HashSet<String>,
}

#[derive(Clone)]
pub(super) struct Manifest {
    pub(super) digest: String,
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

// === impl Content ===

impl Content {
    pub(super) fn repository(&self, name: &str) -> Option<&Repository> {
        self.repositories.get(name)
    }

    pub(super) fn repository_mut(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(super) fn restrict(&mut self, repository: &str, readers: &[&str]) {
        let readers = readers.iter().map(|reader| (*reader).to_owned());
        self.repository_mut(repository).readers = Some(readers.collect());
    }

    pub(super) fn put_blob(&mut self, repository: &str, digest: &str, bytes: Bytes) {
        let blobs = &mut self.repository_mut(repository).blobs;
        blobs.insert(digest.to_owned(), bytes);
    }

    pub(super) fn put_manifest(&mut self, repository: &str, digest: &str, media_type: &str, bytes: Bytes) {
        let manifest = Manifest { digest: digest.to_owned(), media_type: media_type.to_owned(), bytes };
        self.repository_mut(repository).manifests.insert(digest.to_owned(), manifest);
    }

    pub(super) fn tag(&mut self, repository: &str, tag: &str, digest: &str) {
        self.repository_mut(repository).tags.insert(tag.to_owned(), digest.to_owned());
    }

    pub(super) fn untag(&mut self, repository: &str, tag: &str) {
        self.repository_mut(repository).tags.remove(tag);
    }

    pub(super) fn remove(&mut self, repository: &str, digest: &str) {
        let repository = self.repository_mut(repository);
        repository.blobs.remove(digest);
        repository.manifests.remove(digest);
    }

    pub(super) fn put_referrers(&mut self, repository: &str, subject: &str, index: Option<Bytes>) {
        let referrers = self.repository_mut(repository).referrers.get_or_insert_default();
        match index {
            Some(index) => referrers.insert(subject.to_owned(), index),
            None => referrers.remove(subject),
        };
    }
}

// === impl Repository ===

impl Repository {
    /// The manifest that a tag or a digest names.
    pub(super) fn manifest(&self, reference: &str) -> Option<&Manifest> {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        self.manifests.get(digest)
    }

    pub(super) fn lets(&self, account: &str) -> bool {
        self.readers.as_ref().is_none_or(|readers| readers.contains(account))
    }
}

// === impl Manifest ===

impl Manifest {
    pub(super) fn is_index(&self) -> bool {
        self.media_type.contains("index") || self.media_type.contains("manifest.list")
    }
}
