//! Which repositories of an upstream may be had.

use crate::oci::{Pattern, Repository};

use super::Refusal;

/// What an operator says of the repositories of one upstream, by their names there.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// What may be had. Empty: everything.
    pub allow: Vec<Pattern>,
    /// What may not, also of what is allowed.
    pub deny: Vec<Pattern>,
}

// === impl Access ===

impl Access {
    /// The pattern that keeps this name from being had.
    fn denied_by(&self, name: &str) -> Option<&Pattern> {
        self.deny.iter().find(|pattern| pattern.matches(name))
    }

    /// Whether it may be had, unless it is denied.
    fn allows(&self, name: &str) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|pattern| pattern.matches(name))
    }

    /// # Errors
    /// A sentence that names the rule.
    pub(super) fn check(&self, repository: &Repository) -> Result<(), Refusal> {
        let Repository { upstream, name } = repository;
        if let Some(pattern) = self.denied_by(name.as_str()) {
            return Err(Refusal::NotAllowed(format!(r#"{repository} is denied by upstream."{upstream}".deny "{pattern}""#)));
        }
        if !self.allows(name.as_str()) {
            return Err(Refusal::NotAllowed(format!(r#"{repository} is in none of upstream."{upstream}".allow"#)));
        }
        Ok(())
    }
}
