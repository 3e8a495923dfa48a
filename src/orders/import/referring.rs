//! What refers to an image of a layout and has no name there: signatures, SBOMs, attestations. It comes in by the names under which
//! clients look for it, into each repository that its image has come into. A list of referrers only ever gets longer here: what was
//! found by it before is found by it still.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::oci::{self, Digest, INDEX_TYPE, ImageName, MAX_MANIFEST, Reference, Referrer, Tag, list_referrers, listed};
use crate::store::{Holds, Kind};

use super::super::{Orders, Report, Reports};
use super::named::Named;
use super::{ImportReport, MOST_NAMELESS, Read, check_whole};

/// A manifest that refers to another of its layout.
#[derive(Clone)]
pub(super) struct Referring {
    digest: Digest,
    media_type: Option<String>,
    by: By,
}

/// How it is found.
#[derive(Clone, Copy)]
enum By {
    /// It says itself what it refers to, as what oras writes does: a list of referrers leads to it.
    Subject,
    /// Of what refers to the image, it alone is of this kind: it has the tag of the list with this behind it.
    Tag(&'static str),
}

/// What cosign calls the image of a layout, and what refers to that, with what its tags end in.
const COSIGN_IMAGES: [&str; 2] = ["dev.cosignproject.cosign/image", "dev.cosignproject.cosign/imageIndex"];
const COSIGN_REFERRING: [(&str, &str); 2] =
    [("dev.cosignproject.cosign/sigs", ".sig"), ("dev.cosignproject.cosign/atts", ".att")];

// === impl Orders ===

impl Orders {
    /// Takes out of the images of a layout what has no name and comes with another: because it refers to that, is a part of it, or is
    /// the same.
    pub(super) async fn sort_out(&self, images: &mut Vec<Named>, read: &mut Read) {
        if !images.iter().any(Named::is_nameless) {
            return;
        }
        let signed = |image: &&Named| image.kind.as_deref().is_some_and(|kind| COSIGN_IMAGES.contains(&kind));
        let signed: HashSet<Digest> = images.iter().filter(signed).map(|image| image.digest.clone()).collect();
        let signed = signed.iter().next().filter(|_| signed.len() == 1);
        let mut elsewhere = self.inside(images).await;
        elsewhere.extend(images.iter().filter(|image| !image.is_nameless()).map(|image| image.digest.clone()));
        // One without a name is looked at once, however often it is listed.
        let mut seen = HashSet::new();
        images.retain(|image| !image.is_nameless() || seen.insert(image.digest.clone()));
        for image in std::mem::take(images) {
            match self.subject_of(&image, signed).await {
                Some((subject, by)) if read.files.contains_key(&subject) => {
                    let Named { digest, media_type, .. } = image;
                    read.referring.entry(subject).or_default().push(Referring { digest, media_type, by });
                }
                _ if image.is_nameless() && elsewhere.contains(&image.digest) => {}
                _ => images.push(image),
            }
        }
    }

    /// All that the indexes among these hold.
    async fn inside(&self, images: &[Named]) -> HashSet<Digest> {
        let (mut inside, mut seen) = (HashSet::new(), HashSet::new());
        let mut looked_at: Vec<_> = images.iter().map(|image| (image.digest.clone(), image.media_type.clone())).collect();
        while let Some((digest, media_type)) = looked_at.pop() {
            if !seen.insert(digest.clone()) {
                continue;
            }
            // What is no manifest is told of where it is to come in.
            let Ok(manifest) = self.read_manifest(&digest, media_type.as_deref()).await else { continue };
            for child in manifest.children {
                if let Ok(digest) = child.digest.parse::<Digest>() {
                    inside.insert(digest.clone());
                    looked_at.push((digest, Some(child.media_type).filter(|of| oci::is_manifest_type(of))));
                }
            }
        }
        inside
    }

    /// To what an image refers, if it has no name.
    async fn subject_of(&self, image: &Named, signed: Option<&Digest>) -> Option<(Digest, By)> {
        if !image.name.is_empty() {
            return None;
        }
        let ending = COSIGN_REFERRING.iter().find(|(kind, _)| image.kind.as_deref() == Some(kind));
        match (ending, signed) {
            (Some((_, ending)), Some(signed)) => Some((signed.clone(), By::Tag(ending))),
            _ => Some((self.referrer(&image.digest, image.media_type.as_deref()).await?.subject, By::Subject)),
        }
    }

    async fn referrer(&self, digest: &Digest, media_type: Option<&str>) -> Option<Referrer> {
        let bytes = self.store.peek(digest, MAX_MANIFEST).await.ok()??;
        let (digest, media_type) = (digest.clone(), media_type.map(str::to_owned));
        let read = tokio::task::spawn_blocking(move || Referrer::read(&digest, media_type.as_deref(), &bytes));
        read.await.ok()?
    }

    /// Gives names to what refers to the images that have come in, and to what refers to that.
    pub(super) async fn admit_referring(&self, read: &mut Read, pin: bool, holds: &Holds, reports: &Reports) {
        let (mut seen, mut looked_at) = (HashSet::new(), 0);
        while let Some((repository, subject)) = read.arrived.pop() {
            let Some(referring) = read.referring.get(&subject).cloned() else { continue };
            if !seen.insert((repository.clone(), subject.clone())) {
                continue;
            }
            looked_at += referring.len();
            if looked_at > MOST_NAMELESS {
                let why = format!("more than {MOST_NAMELESS} manifests refer to what it has");
                return reports.tell(Report::Failed { what: "the archive".into(), why }).await;
            }
            let list = format!("{repository}:{}", Tag::of_referrers(&subject));
            let mut descriptors = Vec::new();
            for Referring { digest, media_type, by } in referring {
                match by {
                    By::Tag(ending) => {
                        let image = Named::new(format!("{list}{ending}"), digest, media_type);
                        self.take_in(&image, read, pin, holds, reports).await;
                    }
                    By::Subject => match self.described(&list, &digest, media_type, &read.files, holds).await {
                        Ok(descriptor) => descriptors.push(descriptor),
                        Err(why) => reports.tell(Report::Failed { what: digest.to_string(), why }).await,
                    },
                }
            }
            if !descriptors.is_empty() {
                let imported = self.add_to_list(&list, descriptors, read, pin, holds, reports).await;
                reports.outcome(&list, imported.map(Report::Imported)).await;
            }
        }
        let arrived: HashSet<&Digest> = seen.iter().map(|(_, subject)| subject).collect();
        for (subject, referring) in read.referring.iter().filter(|(subject, _)| !arrived.contains(subject)) {
            for Referring { digest, .. } in referring {
                let why = format!("it refers to {subject}, which has not come in");
                reports.tell(Report::Failed { what: digest.to_string(), why }).await;
            }
        }
    }

    /// What a list has of a referrer, if all of that is here.
    async fn described(
        &self,
        list: &str,
        digest: &Digest,
        media_type: Option<String>,
        brought: &HashMap<Digest, u64>,
        holds: &Holds,
    ) -> Result<Value, String> {
        let (repository, _) = self.named(list)?;
        let parts = self.parts_for(&repository, (digest, media_type.clone()), brought, holds).await?;
        check_whole(&parts, &repository)?;
        let referrer = self.referrer(digest, media_type.as_deref()).await.ok_or("it cannot be read")?;
        Ok(referrer.descriptor)
    }

    /// Takes an image in under its name, and tells of it. One that lists referrers is added to the list that is here.
    pub(super) async fn take_in(&self, image: &Named, read: &mut Read, pin: bool, holds: &Holds, reports: &Reports) {
        let imported = match self.lists_less(image, &read.files).await {
            Some(descriptors) => self.add_to_list(&image.name, descriptors, read, pin, holds, reports).await,
            None => self.admit(image, read, pin, holds).await,
        };
        reports.outcome(&image.shown(), imported.map(Report::Imported)).await;
    }

    /// What an image lists that is a list of referrers, where a list is here by its name that has others.
    async fn lists_less(&self, image: &Named, brought: &HashMap<Digest, u64>) -> Option<Vec<Value>> {
        let Reference::Tag(tag) = image.name.parse::<ImageName>().ok()?.reference else { return None };
        tag.ending_of_referrers().filter(|ending| ending.is_empty())?;
        let (repository, reference) = self.named(&image.name).ok()?;
        let before = self.digest_of(&repository, &reference).filter(|before| *before != image.digest)?;
        if !self.is_for(&repository, &image.digest, brought) {
            return None;
        }
        let (old, new) = (self.read_list(&before).await.ok()?, self.read_list(&image.digest).await.ok()?);
        let compared = tokio::task::spawn_blocking(move || {
            let new = listed(&new);
            let digests: HashSet<_> = new.iter().filter_map(|descriptor| descriptor["digest"].as_str()).collect();
            let has_all = listed(&old).iter().all(|old| old["digest"].as_str().is_none_or(|digest| digests.contains(digest)));
            (!has_all).then_some(new)
        });
        compared.await.ok()?
    }

    async fn read_list(&self, digest: &Digest) -> Result<Vec<u8>, String> {
        let bytes = self.store.peek(digest, MAX_MANIFEST).await.map_err(|error| error.to_string())?.unwrap_or_default();
        if digest.matches(&bytes) {
            Ok(bytes)
        } else {
            Err("the list that is here by this name is damaged; `larder rm` it".into())
        }
    }

    /// Adds referrers to the list of that name.
    async fn add_to_list(
        &self,
        name: &str,
        descriptors: Vec<Value>,
        read: &mut Read,
        pin: bool,
        holds: &Holds,
        reports: &Reports,
    ) -> Result<ImportReport, String> {
        let _alone = self.lists.lock().await;
        let (repository, reference) = self.named(name)?;
        let before = self.digest_of(&repository, &reference);
        let known = match &before {
            Some(digest) => self.read_list(digest).await?,
            None => Vec::new(),
        };
        let longer = tokio::task::spawn_blocking(move || list_referrers(&known, descriptors));
        let (longer, left_out) = longer.await.map_err(|error| error.to_string())?;
        for digest in left_out {
            let why = format!("the list of what refers to its image, {name}, has no room for more");
            reports.tell(Report::Failed { what: digest, why }).await;
        }
        let digest = match (longer, &before) {
            (Some(longer), _) => self.put_made(longer, read, holds, reports).await?,
            (None, Some(before)) => before.clone(),
            (None, None) => return Err("it lists nothing".into()),
        };
        let pins = self.store.pins().into_iter().filter(|pin| pin.repository == repository);
        let (named, others): (Vec<_>, Vec<_>) = pins.partition(|pin| pin.reference == reference);
        let image = Named::new(name.to_owned(), digest, Some(INDEX_TYPE.to_owned()));
        // Who has pinned the list means what it lists to stay.
        let imported = self.admit(&image, read, pin || !named.is_empty(), holds).await?;
        if let Some(before) = before.filter(|before| *before != image.digest)
            && others.iter().all(|pin| pin.digest != before)
        {
            // A list whose name another has now is no image by itself.
            self.store.remove_proof(&repository, &before, Kind::Manifest);
        }
        Ok(imported)
    }
}
