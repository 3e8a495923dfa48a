//! What the registry holds, by repository.

use std::collections::{BTreeMap, HashMap};

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

    pub(super) fn put_blob(&mut self, repository: &str, digest: &str, bytes: Bytes) {
        let blobs = &mut self.at(repository).blobs;
        blobs.insert(digest.to_owned(), bytes);
    }

    pub(super) fn put_manifest(&mut self, repository: &str, digest: &str, media_type: &str, bytes: Bytes) {
        let manifest = Manifest { digest: digest.to_owned(), media_type: media_type.to_owned(), bytes };
        self.at(repository).manifests.insert(digest.to_owned(), manifest);
    }

    pub(super) fn tag(&mut self, repository: &str, tag: &str, digest: &str) {
        self.at(repository).tags.insert(tag.to_owned(), digest.to_owned());
    }

    pub(super) fn untag(&mut self, repository: &str, tag: &str) {
        self.at(repository).tags.remove(tag);
    }

    pub(super) fn remove(&mut self, repository: &str, digest: &str) {
        let repository = self.at(repository);
        repository.blobs.remove(digest);
        repository.manifests.remove(digest);
    }

    pub(super) fn put_referrers(&mut self, repository: &str, subject: &str, index: Option<Bytes>) {
        let referrers = self.at(repository).referrers.get_or_insert_default();
        match index {
            Some(index) => referrers.insert(subject.to_owned(), index),
            None => referrers.remove(subject),
        };
    }

    fn at(&mut self, repository: &str) -> &mut Repository {
        self.repositories.entry(repository.to_owned()).or_default()
    }
}

// === impl Repository ===

impl Repository {
    /// The manifest that a tag or a digest names.
    pub(super) fn manifest(&self, reference: &str) -> Option<&Manifest> {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        self.manifests.get(digest)
    }
}
