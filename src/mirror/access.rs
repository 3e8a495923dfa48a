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
    /// # Errors
    /// A sentence that names the rule.
    pub(super) fn check(&self, repository: &Repository) -> Result<(), Refusal> {
        let Repository { upstream, name } = repository;
        let named = |pattern: &&Pattern| pattern.matches(name.as_str());
        if let Some(pattern) = self.deny.iter().find(named) {
            return Err(Refusal::NotAllowed(format!(r#"{repository} is denied by upstream."{upstream}".deny "{pattern}""#)));
        }
        if !self.allow.is_empty() && !self.allow.iter().any(|pattern| named(&pattern)) {
            return Err(Refusal::NotAllowed(format!(r#"{repository} is in none of upstream."{upstream}".allow"#)));
        }
        Ok(())
    }
}
