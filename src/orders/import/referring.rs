//! What refers to an image of a layout and has no name there: signatures, SBOMs, attestations. It comes in by the names under which
//! clients look for it, into each repository that its image has come into.

use std::collections::HashSet;

use crate::oci::{Digest, INDEX_TYPE, MAX_MANIFEST, Referrer, Tag, list_referrers};
use crate::store::Holds;

use super::super::{Orders, Report, Reports};
use super::named::Named;
use super::{MOST_NAMELESS, Read};

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
    /// Takes out of the images of a layout what only refers to others.
    pub(super) async fn set_referring_apart(&self, images: &mut Vec<Named>, read: &mut Read) {
        let signed = |image: &&Named| image.kind.as_deref().is_some_and(|kind| COSIGN_IMAGES.contains(&kind));
        let signed: HashSet<Digest> = images.iter().filter(signed).map(|image| image.digest.clone()).collect();
        let signed = signed.iter().next().filter(|_| signed.len() == 1);
        // One without a name is looked at once, however often it is listed.
        let mut seen = HashSet::new();
        images.retain(|image| !image.name.is_empty() || seen.insert(image.digest.clone()));
        for image in std::mem::take(images) {
            match self.subject_of(&image, signed).await {
                Some((subject, by)) if read.files.contains_key(&subject) => {
                    let Named { digest, media_type, .. } = image;
                    read.referring.entry(subject).or_default().push(Referring { digest, media_type, by });
                }
                _ => images.push(image),
            }
        }
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
        let (mut seen, mut listed) = (HashSet::new(), 0);
        while let Some((repository, subject)) = read.arrived.pop() {
            let Some(referring) = read.referring.get(&subject).cloned() else { continue };
            if !seen.insert((repository.clone(), subject.clone())) {
                continue;
            }
            listed += referring.len();
            if listed > MOST_NAMELESS {
                let why = format!("more than {MOST_NAMELESS} manifests refer to what it has");
                return reports.tell(Report::Failed { what: "the archive".into(), why }).await;
            }
            let tag = format!("{repository}:{}", Tag::of_referrers(&subject));
            let named = |name, digest, media_type| Named { name, digest, media_type, kind: None, is_untagged: false };
            let mut images = Vec::new();
            for Referring { digest, media_type, by } in &referring {
                if let By::Tag(ending) = by {
                    images.push(named(format!("{tag}{ending}"), digest.clone(), media_type.clone()));
                }
            }
            if referring.iter().any(|referring| matches!(referring.by, By::Subject)) {
                match self.put_list(&tag, &referring, read, holds, reports).await {
                    Ok(list) => images.push(named(tag, list, Some(INDEX_TYPE.to_owned()))),
                    Err(why) => reports.tell(Report::Failed { what: tag, why }).await,
                }
            }
            for image in images {
                let imported = self.admit(&image, read, pin, holds).await;
                reports.outcome(&image.name, imported.map(Report::Imported)).await;
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

    /// Keeps the list that leads to what refers to an image, beside what is in it already. `name`: the list's own.
    async fn put_list(
        &self,
        name: &str,
        referring: &[Referring],
        read: &mut Read,
        holds: &Holds,
        reports: &Reports,
    ) -> Result<Digest, String> {
        let (repository, reference) = self.named(name)?;
        let mut known = Vec::new();
        if let Some(digest) = self.digest_of(&repository, &reference) {
            let bytes = self.store.peek(&digest, MAX_MANIFEST).await.map_err(|error| error.to_string())?;
            known = bytes.filter(|bytes| digest.matches(bytes)).unwrap_or_default();
        }
        let (mut referrers, mut length) = (Vec::new(), known.len());
        for Referring { digest, media_type, .. } in referring.iter().filter(|referring| matches!(referring.by, By::Subject)) {
            if let Some(referrer) = self.referrer(digest, media_type.as_deref()).await {
                length += referrer.descriptor.to_string().len();
                referrers.push(referrer);
            }
            if length > MAX_MANIFEST {
                return Err(format!("more refers to it than {MAX_MANIFEST} bytes can list"));
            }
        }
        let list = tokio::task::spawn_blocking(move || list_referrers(&known, referrers));
        self.put_made(list.await.map_err(|error| error.to_string())?, read, holds, reports).await
    }
}
