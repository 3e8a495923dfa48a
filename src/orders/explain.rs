//! `larder explain`: from where an image would be served now, why, and what it would cost.

use serde::{Deserialize, Serialize};

use crate::mirror::{Outlook, Question, ServedFrom};
use crate::oci::ImageName;
use crate::upstream::{BudgetReport, Upstream};

use super::parts::Parts;
use super::{Orders, Report, Reports};

/// How an image would be served now. Nobody was asked to find that out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainReport {
    /// Its whole name.
    pub image: String,
    /// What it is, as far as that is known.
    pub digest: Option<String>,
    /// `cache`, `cache once asked`, `upstream` or `nowhere`.
    pub from: String,
    pub why: String,
    /// How many of its manifests and blobs are here, their bytes, and how many are not.
    pub here: usize,
    pub bytes: u64,
    pub missing: usize,
    pub pinned: bool,
    /// What the upstream would be asked for: each a sentence. None: nothing.
    pub cost: Vec<String>,
    /// What there is to say of the upstream: each a sentence.
    pub upstream: Vec<String>,
}

// === impl Orders ===

impl Orders {
    pub(super) async fn explain(&self, images: &[String], reports: &Reports) {
        for image in images {
            reports.outcome(image, self.explain_one(image).await.map(Report::Explained)).await;
        }
    }

    async fn explain_one(&self, image: &str) -> Result<ExplainReport, String> {
        let name = image.parse::<ImageName>().map_err(|invalid| invalid.to_string())?;
        let origin = self.mirror.registries().resolve(&name).map_err(|refusal| format!("it is refused: {refusal}"))?;
        let Outlook { digest, from, why, question } = self.mirror.outlook(&origin, &name.reference);
        let parts = match &digest {
            Some(digest) => self.parts(digest, None, None).await?,
            None => Parts::default(),
        };
        let (here, missing) = (parts.here().count(), parts.missing.len());
        let mut cost: Vec<String> = question.into_iter().map(|question| question.told().to_owned()).collect();
        if here == 0 && question == Some(Question::Get) {
            cost.push("and then what it names, as far as that is not here".into());
        } else if missing > 0 && !origin.upstream().is_offline() {
            cost.push(format!("{missing} blobs or manifests that are not here"));
        }
        Ok(ExplainReport {
            image: origin.repository.image(&name.reference),
            digest: digest.as_ref().map(ToString::to_string),
            from: from.word().into(),
            why,
            here,
            bytes: parts.here().map(|(_, size)| size).sum(),
            missing,
            pinned: digest.as_ref().is_some_and(|digest| self.store.is_pinned(digest)),
            cost,
            upstream: said_of(origin.upstream()),
        })
    }
}

/// What there is to say of an upstream.
fn said_of(upstream: &Upstream) -> Vec<String> {
    let name = upstream.name();
    if upstream.is_offline() {
        return vec!["larder is offline and asks nobody".into()];
    }
    let mut said = Vec::new();
    let cool_down = upstream.cool_down();
    if !cool_down.is_zero() {
        said.push(format!("{name} is left alone for {} s, as it does not answer or wants to be", cool_down.as_secs().max(1)));
    }
    for BudgetReport { account, limit, remaining, window, .. } in upstream.budgets() {
        let hours = humantime::format_duration(window);
        said.push(format!("{account} has {remaining} of {limit} pulls in {hours} left at {name}"));
    }
    said
}

// === impl Question ===

impl Question {
    fn told(self) -> &'static str {
        match self {
            Self::Head => "one HEAD, which is free where pulls are counted",
            Self::Get => "one GET of a manifest, which counts as a pull",
        }
    }
}

// === impl ServedFrom ===

impl ServedFrom {
    fn word(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::CacheOnceAsked => "cache once asked",
            Self::Upstream => "upstream",
            Self::Nowhere => "nowhere",
        }
    }
}
