//! Which repository a client means.
//!
//! It may name the registry in `ns`, as a prefix before or after `/v2`, by the host it speaks to, or not at all. All ways
//! to the same repository lead to the same identity. Names that are not configured are refused; they are never dialled, unless
//! the operator lets clients name any public registry.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::current::Current;
use crate::oci::{ImageName, Repository, Target};
use crate::upstream::{Asking, Behalf, ClientCredential, DOCKER_HUB, PublicUrl, Upstream};

use super::public::{self, Make, Public};
use super::rights::View;
use super::{Access, Freshness, Gate, Refusal};

/// A repository and the registry to ask for it.
#[derive(Clone)]
pub struct Origin {
    pub repository: Repository,
    /// For whom the upstream is asked.
    pub behalf: Behalf,
    pub(super) registry: Arc<Registry>,
}

/// A configured upstream and what is said of it here.
pub struct Registry {
    pub upstream: Upstream,
    /// Where clients reach it, if they bring their own credentials.
    pub public_url: Option<PublicUrl>,
    pub access: Current<Access>,
    pub freshness: Current<Freshness>,
    /// A client named it, and no operator: it may be anyone's.
    pub anyones: bool,
}

/// The configured upstreams by all their names.
pub struct Registries {
    by_name: HashMap<String, Arc<Registry>>,
    by_host: HashMap<String, Arc<Registry>>,
    default: Arc<Registry>,
    /// Where clients may name what is not configured.
    public: Option<Public>,
}

// === impl Registries ===

impl Registries {
    #[must_use]
    pub fn new(default: Arc<Registry>) -> Self {
        Self { by_name: HashMap::new(), by_host: HashMap::new(), default, public: None }
    }

    /// Lets clients name a registry so, in `ns` or as a prefix.
    ///
    /// # Errors
    /// Another claims the name.
    pub fn add_name(&mut self, name: &str, registry: &Arc<Registry>) -> Result<(), String> {
        claim(&mut self.by_name, name, registry)
    }

    /// Lets clients mean a registry by speaking to larder under this host name.
    ///
    /// # Errors
    /// Another claims the host.
    pub fn add_host(&mut self, host: &str, registry: &Arc<Registry>) -> Result<(), String> {
        claim(&mut self.by_host, host, registry)
    }

    /// All that are configured, each perhaps more than once.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.by_name.values().map(|registry| &registry.upstream)
    }

    /// Lets clients name any public registry; an upstream is made for each.
    pub fn open_to_public(&mut self, make: Make) {
        self.public = Some(Public::new(make));
    }

    /// The one that is configured under this name.
    #[must_use]
    pub fn configured(&self, name: &str) -> Option<&Arc<Registry>> {
        let is_odd = name.bytes().any(|byte| byte.is_ascii_uppercase());
        if is_odd { self.by_name.get(&name.to_ascii_lowercase()) } else { self.by_name.get(name) }
    }

    fn named(&self, name: &str) -> Option<Arc<Registry>> {
        if let Some(registry) = self.configured(name) {
            return Some(Arc::clone(registry));
        }
        let public = self.public.as_ref()?;
        let identity = public::identity(name)?;
        self.configured(&identity).cloned().or_else(|| public.get(&identity))
    }

    /// True if `name` is a name of this registry. Makes none.
    fn is_named(&self, registry: &Arc<Registry>, name: &str) -> bool {
        let identity = public::identity(name).filter(|_| self.public.is_some());
        match self.configured(name).or_else(|| self.configured(identity.as_ref()?)) {
            Some(configured) => Arc::ptr_eq(configured, registry),
            None => identity.is_some_and(|identity| *identity == **registry.upstream.name()),
        }
    }

    /// By the host a client speaks to, with the port or without.
    fn hosted(&self, host: &str) -> Option<&Arc<Registry>> {
        // Every request asks, and hardly any larder has hosts.
        if self.by_host.is_empty() {
            return None;
        }
        let host = host.to_ascii_lowercase();
        self.by_host.get(&host).or_else(|| self.by_host.get(host.rsplit_once(':')?.0))
    }

    /// Finds out what an image's name means.
    ///
    /// # Errors
    /// As [`Registries::locate`].
    pub fn resolve(&self, image: &ImageName) -> Result<Origin, Refusal> {
        let target = Target { prefix: None, path: image.repository.to_string(), ns: image.registry.clone() };
        self.locate(&target, None)
    }

    /// The gate at `host`, if there is one.
    #[must_use]
    pub fn gate(&self, host: Option<&str>) -> Option<Gate> {
        Gate::of(self.hosted(host?)?)
    }

    /// Finds out what `target`, asked at `host`, means. `ns` decides before a prefix before `/v2`, this before the host,
    /// this before the first component of the path, and that before the default.
    ///
    /// # Errors
    /// An upstream that is not configured or has another way in, a name that is none, or a repository that may not be had.
    pub fn locate(&self, target: &Target, host: Option<&str>) -> Result<Origin, Refusal> {
        let unknown = |name: &str| Refusal::UnknownUpstream(name.into());
        let (first, rest) = target.path.split_once('/').unwrap_or(("", &target.path));
        let explicit = match (&target.ns, &target.prefix) {
            (Some(name), _) | (None, Some(name)) => Some(self.named(name).ok_or_else(|| unknown(name))?),
            (None, None) => host.and_then(|host| self.hosted(host)).cloned(),
        };
        let (registry, path) = match explicit {
            // BuildKit names the registry twice; once is enough.
            Some(explicit) if self.is_named(&explicit, first) => (explicit, rest),
            Some(explicit) => (explicit, target.path.as_str()),
            None => match self.named(first) {
                Some(by_path) => (by_path, rest),
                // No repository name begins with a port or the like: it was meant as a registry.
                None if first.contains(':') => return Err(unknown(first)),
                None => (Arc::clone(&self.default), target.path.as_str()),
            },
        };
        if let Some(public_url) = &registry.public_url
            && !host.and_then(|host| self.hosted(host)).is_some_and(|hosted| Arc::ptr_eq(hosted, &registry))
        {
            let (name, at) = (registry.upstream.name(), public_url.as_str());
            return Err(Refusal::Elsewhere(format!("{name} is to be had at {at}, with credentials of your own")));
        }
        let mut name: crate::oci::RepositoryName = path.parse().map_err(Refusal::InvalidName)?;
        if name.is_single_component() && **registry.upstream.name() == *DOCKER_HUB {
            name = format!("library/{name}").parse().map_err(Refusal::InvalidName)?;
        }
        let repository = Repository { upstream: Arc::clone(registry.upstream.name()), name };
        registry.access.get().check(&repository)?;
        Ok(Origin { repository, behalf: Behalf::default(), registry })
    }
}

fn claim(claimed: &mut HashMap<String, Arc<Registry>>, name: &str, registry: &Arc<Registry>) -> Result<(), String> {
    let (one, other) = match claimed.insert(name.to_ascii_lowercase(), Arc::clone(registry)) {
        Some(before) if !Arc::ptr_eq(&before, registry) => (before, registry),
        _ => return Ok(()),
    };
    let (one, other) = (one.upstream.name(), other.upstream.name());
    Err(format!("upstream.\"{one}\" and upstream.\"{other}\" both claim the name {name}; take it from one of them"))
}

// === impl Origin ===

impl Origin {
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.registry.upstream
    }

    /// The repository at its upstream.
    pub(super) fn ask(&self) -> Asking<'_> {
        self.upstream().ask(&self.repository.name, &self.behalf)
    }

    /// The gate that this request must have come through, if there is one.
    #[must_use]
    pub fn gate(&self) -> Option<Gate> {
        Gate::of(&self.registry)
    }

    /// What the upstream says is so for this.
    pub(super) fn view(&self) -> View {
        View { repository: self.repository.clone(), client: self.behalf.client.as_ref().map(ClientCredential::key) }
    }

    /// Whether what the upstream says here is so for everyone; to one client it may say of another's things that they are not
    /// there.
    pub(super) fn speaks_for_all(&self) -> bool {
        self.registry.public_url.is_none()
    }

    /// Whether the upstream need only say that a repository holds something. A registry that anyone may have named could be
    /// anyone's, and would say so of whatever others have brought here: it has to show the bytes.
    pub(super) fn is_taken_at_its_word(&self) -> bool {
        !self.registry.anyones
    }

    pub(super) fn is_offline(&self) -> bool {
        self.upstream().is_offline()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::{mirror, upstream};

    fn registry(name: &str) -> Registry {
        let upstream = Upstream::offline(name, Clock::system());
        let freshness = Freshness::of(&mirror::Options::default(), &upstream::Options::default());
        let (access, freshness) = (Current::default(), Current::new(freshness));
        Registry { upstream, public_url: None, access, freshness, anyones: false }
    }

    fn registries() -> Registries {
        let registry = |name| Arc::new(registry(name));
        let (hub, quay, corp) = (registry("docker.io"), registry("quay.io"), registry("registry.corp:5000"));
        let mut registries = Registries::new(Arc::clone(&hub));
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            registries.add_name(name, &hub).unwrap();
        }
        registries.add_name("quay.io", &quay).unwrap();
        registries.add_name("registry.corp:5000", &corp).unwrap();
        registries.add_host("quay-mirror:5000", &quay).unwrap();
        registries
    }

    fn locate(prefix: Option<&str>, path: &str, ns: Option<&str>, host: &str) -> Result<String, Refusal> {
        located(&registries(), prefix, path, ns, host)
    }

    fn located(
        registries: &Registries,
        prefix: Option<&str>,
        path: &str,
        ns: Option<&str>,
        host: &str,
    ) -> Result<String, Refusal> {
        let target = Target { prefix: prefix.map(Into::into), path: path.into(), ns: ns.map(Into::into) };
        registries.locate(&target, Some(host)).map(|origin| origin.repository.to_string())
    }

    #[test]
    fn all_ways_to_an_image_lead_to_one_identity() {
        let alpine = Ok("docker.io/library/alpine".to_string());
        assert_eq!(locate(None, "alpine", None, "mirror"), alpine);
        assert_eq!(locate(None, "library/alpine", None, "mirror"), alpine);
        assert_eq!(locate(None, "docker.io/alpine", None, "mirror"), alpine);
        assert_eq!(locate(None, "alpine", Some("docker.io"), "quay-mirror:5000"), alpine);
        assert_eq!(locate(None, "library/alpine", Some("registry-1.docker.io"), "mirror"), alpine);
        assert_eq!(locate(None, "docker.io/library/alpine", Some("docker.io"), "mirror"), alpine);
        assert_eq!(locate(Some("docker.io"), "library/alpine", None, "mirror"), alpine);
        assert_eq!(locate(Some("docker.io"), "library/alpine", Some("docker.io"), "mirror"), alpine);
    }

    #[test]
    fn other_registries_are_found_by_each_of_their_names() {
        assert_eq!(locate(None, "o/x", Some("quay.io"), "mirror"), Ok("quay.io/o/x".into()));
        assert_eq!(locate(None, "o/x", None, "quay-mirror:5000"), Ok("quay.io/o/x".into()));
        assert_eq!(locate(None, "registry.corp:5000/x", None, "mirror"), Ok("registry.corp:5000/x".into()));
        assert_eq!(locate(None, "x", Some("Registry.Corp:5000"), "mirror"), Ok("registry.corp:5000/x".into()));
        assert_eq!(locate(None, "quay.io/x", Some("docker.io"), "mirror"), Ok("docker.io/quay.io/x".into()), "ns decides");
    }

    #[test]
    fn an_image_is_looked_for_where_its_name_says() {
        let resolve = |text: &str| registries().resolve(&text.parse().unwrap()).map(|origin| origin.repository.to_string());
        assert_eq!(resolve("alpine:3"), Ok("docker.io/library/alpine".into()));
        assert_eq!(resolve("index.docker.io/alpine"), Ok("docker.io/library/alpine".into()));
        assert_eq!(resolve("registry.corp:5000/x"), Ok("registry.corp:5000/x".into()));
        assert_eq!(resolve("evil.example/x"), Err(Refusal::UnknownUpstream("evil.example".into())));
    }

    #[test]
    fn what_is_not_configured_is_refused() {
        assert_eq!(locate(None, "x", Some("evil.example"), "m"), Err(Refusal::UnknownUpstream("evil.example".into())));
        assert_eq!(locate(Some("evil.example"), "x", None, "m"), Err(Refusal::UnknownUpstream("evil.example".into())));
        assert_eq!(locate(None, "evil.example:5000/x", None, "m"), Err(Refusal::UnknownUpstream("evil.example:5000".into())));
        assert!(matches!(locate(None, "Upper/x", None, "m"), Err(Refusal::InvalidName(_))));
    }

    #[test]
    fn any_public_registry_may_be_named_where_the_operator_says_so() {
        let mut open = registries();
        open.open_to_public(Box::new(|name| Some(registry(name))));
        let locate = |prefix, path, ns, host| located(&open, prefix, path, ns, host);
        let there = || Ok("new.example/o/x".to_string());
        assert_eq!(locate(None, "o/x", Some("new.example"), "m"), there());
        assert_eq!(locate(None, "o/x", Some("New.Example:443"), "quay-mirror:5000"), there());
        assert_eq!(locate(Some("new.example"), "o/x", None, "m"), there());
        assert_eq!(locate(None, "new.example/o/x", None, "m"), there());
        assert_eq!(locate(None, "new.example:443/o/x", Some("new.example"), "m"), there());
        assert_eq!(locate(None, "x", Some("new.example"), "m"), Ok("new.example/x".into()), "library/ is Docker Hub's");
        assert_eq!(locate(None, "new.example:5000/o/x", None, "m"), Ok("new.example:5000/o/x".into()), "another registry");
        let quay = Ok("quay.io/new.example/x".to_string());
        assert_eq!(locate(None, "new.example/x", Some("quay.io"), "m"), quay, "ns decides");

        let alpine = || Ok("docker.io/library/alpine".to_string());
        assert_eq!(locate(None, "alpine", Some("Index.docker.io:443"), "m"), alpine(), "what is configured goes before");
        assert_eq!(locate(None, "docker.io:443/alpine", Some("index.docker.io"), "m"), alpine());
        assert_eq!(locate(None, "o/x", Some("registry.corp:5000"), "m"), Ok("registry.corp:5000/o/x".into()));

        for name in ["localhost:5000", "registry", "169.254.169.254", "10.0.0.1:443", "[::1]:5000", "a_b.example"] {
            assert_eq!(locate(None, "x", Some(name), "m"), Err(Refusal::UnknownUpstream(name.into())));
            assert_eq!(locate(Some(name), "x", None, "m"), Err(Refusal::UnknownUpstream(name.into())));
        }
        assert_eq!(locate(None, "org/x", None, "new.example"), Ok("docker.io/org/x".into()), "a Host is larder's own name");
    }
}
