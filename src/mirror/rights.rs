//! Who may read a repository of an upstream that clients read with credentials of their own.
//!
//! Such a client gets nothing before the upstream has said yes to it, not even what lies in the cache. That it said yes is
//! believed for a minute; a no is told to the one who asked, and changes nothing for others.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::oci::{Digest, Page, Reference, Repository};
use crate::store::Kind;
use crate::upstream::{self, CredentialKey, Speaks};

use super::shared::Shared;
use super::{Mirror, Origin, Refusal, Thing};

/// A repository as its upstream lets one client see it; without a client, as it lets larder, for everyone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct View {
    pub(super) repository: Repository,
    pub(super) client: Option<CredentialKey>,
}

/// What a client wants of a repository: whether it may have that is what the upstream is asked.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Wanted {
    Manifest(Reference),
    Blob(Digest),
    Tags,
}

/// What a yes is good for: some registries let one read and not list, or the other way round.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Right {
    Pull,
    List,
}

/// What upstreams have said.
pub(super) struct Rights {
    /// Until when each yes is believed.
    granted: moka::sync::Cache<(View, Right), Timestamp>,
    asking: Shared<Wanted, ()>,
}

/// For how long a yes is believed.
const BELIEVED: Duration = Duration::from_mins(1);
/// How many are remembered.
const REMEMBERED: u64 = 100_000;

// === impl Rights ===

impl Default for Rights {
    fn default() -> Self {
        Self { granted: moka::sync::Cache::new(REMEMBERED), asking: Shared::default() }
    }
}

// === impl Mirror ===

impl Mirror {
    /// Makes sure that the client behind `origin` may read its repository. To be done before anything else is looked at: what
    /// is cached is nobody's to know without it. `name`: the repository as the client calls it.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// See [`Refusal`]; the upstream's no, or that it cannot be asked.
    pub async fn authorize(&self, origin: &Origin, wanted: &Wanted, name: &str) -> Result<(), Refusal> {
        let Some(gate) = origin.gate() else { return Ok(()) };
        let Some(client) = &origin.behalf.client else { return Err(gate.challenge(Some(name), None)) };
        let granted = self.0.rights.granted.get(&(origin.view(), wanted.right()));
        if granted.is_some_and(|until| self.0.clock.now() < until) {
            return Ok(());
        }
        match self.ask_for_right(origin, wanted).await {
            // Nobody is not someone who may not: with a login it may be another thing.
            Err(Refusal::Upstream(upstream::Error::Denied)) if client.is_nobody() => {
                Err(gate.challenge(Some(name), Some("insufficient_scope")))
            }
            outcome => outcome,
        }
    }

    /// Asks the upstream, once for all who want the same as the same.
    async fn ask_for_right(&self, origin: &Origin, wanted: &Wanted) -> Result<(), Refusal> {
        self.check_missing(origin, wanted.thing())?;
        let ask = |origin: Origin| {
            let (mirror, wanted) = (self.clone(), wanted.clone());
            async move {
                let now = mirror.0.clock.now();
                // A token tells what its client could do when it was made.
                origin.behalf.client.iter().for_each(|client| origin.upstream().forget_token(client, &origin.repository.name));
                match mirror.ask_for(&origin, &wanted).await {
                    Ok(()) => {
                        mirror.0.rights.granted.insert((origin.view(), wanted.right()), now + BELIEVED);
                        Ok(())
                    }
                    Err(error) => {
                        mirror.note_failure(&origin, wanted.thing(), &error);
                        Err(error.into())
                    }
                }
            }
        };
        self.0.rights.asking.ask(origin, wanted, ask).await
    }

    async fn ask_for(&self, origin: &Origin, wanted: &Wanted) -> Result<(), upstream::Error> {
        match wanted {
            Wanted::Manifest(reference) => {
                let found = origin.ask().prove_manifest(reference).await?;
                if let (Reference::Tag(tag), Some(digest)) = (reference, found) {
                    self.confirm_tag(origin, tag, &digest);
                }
            }
            Wanted::Blob(digest) => self.ask_for_blob(origin, digest).await?,
            Wanted::Tags => _ = origin.ask().tags(&Page { n: Some(1), ..Page::default() }).await?,
        }
        Ok(())
    }

    /// A yes opens the whole repository, so that it must be one: of this blob, by its digest or its size. Where neither is told,
    /// or nothing is known of it here, whoever says as much of what cannot be there has said nothing.
    async fn ask_for_blob(&self, origin: &Origin, digest: &Digest) -> Result<(), upstream::Error> {
        let found = origin.ask().head_blob(digest).await?;
        let known = self.0.store.size(digest).or_else(|| Some(self.old_proof(origin, digest, Kind::Blob)?.size));
        let speaks = found.speaks(digest, known);
        if speaks == Speaks::OfIt {
            return Ok(());
        }
        let absent = Digest::sha256(format!("nothing that larder knows of, beside {digest}").as_bytes());
        match origin.ask().first_byte(&absent).await {
            Err(upstream::Error::NotFound | upstream::Error::Denied | upstream::Error::Unsupported(_))
                if speaks == Speaks::OfSome =>
            {
                Ok(())
            }
            Err(
                error @ (upstream::Error::RateLimited { .. }
                | upstream::Error::LeftAlone(_)
                | upstream::Error::Busy
                | upstream::Error::Left),
            ) => Err(error),
            _ => Err(upstream::Error::something_else()),
        }
    }
}

// === impl Wanted ===

impl Wanted {
    fn right(&self) -> Right {
        match self {
            Self::Manifest(_) | Self::Blob(_) => Right::Pull,
            Self::Tags => Right::List,
        }
    }

    fn thing(&self) -> Thing {
        match self {
            Self::Manifest(Reference::Digest(digest)) => Thing::Manifest(digest.clone()),
            Self::Manifest(Reference::Tag(tag)) => Thing::Tag(tag.clone()),
            Self::Blob(digest) => Thing::Blob(digest.clone()),
            Self::Tags => Thing::List("tags".into()),
        }
    }
}
