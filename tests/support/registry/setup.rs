//! What a test decides about a registry before it starts.

use std::time::Duration;

/// The registry as it is in health. What goes wrong is told to [`Registry::on`](super::Registry::on).
///
/// The default is the distribution spec and nothing else. How the registries of this world differ from it is a set of
/// small traits, each on its own; [`Like`](super::Like) names the sets that exist.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    pub auth: Auth,
    pub missing: Missing,
    /// How many manifests an account may GET. HEADs are free.
    pub budget: Option<u64>,
    pub manifests: Manifests,
    pub blobs: Blobs,
    pub lists: Lists,
    /// Sends whoever asks for manifests, tags or referrers to the backend, by a 307 that is made of the path alone.
    pub gateway: bool,
    /// A project that stands for Docker Hub: it answers for `project/name` with a 301 to `project/library/name`.
    pub hub_project: Option<&'static str>,
    /// Waited before the headers of every answer about a blob, at the front and at the storage.
    pub latency: Duration,
    /// Bytes per second and connection that the body of a blob gets.
    pub bandwidth: Option<u64>,
}

/// Whom the front lets in.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Everybody.
    #[default]
    None,
    Basic {
        user: &'static str,
        password: &'static str,
    },
    /// Those with a token for `repository:<name>:pull`, from the plainest of token services.
    Bearer {
        /// Who may have a token; with `None` the one who shows no credential.
        user: Option<(&'static str, &'static str)>,
        /// Said to the client, never enforced: a token ends with
        /// [`expire_tokens`](super::Registry::expire_tokens). Without it the answer holds the bare token.
        expires_in: Option<u64>,
    },
    /// Those with a token from this service.
    Tokens(TokenService),
}

/// Where tokens come from, who gets one, and how one learns of it.
#[derive(Clone, Debug)]
pub struct TokenService {
    pub host: TokenHost,
    pub path: &'static str,
    pub service: &'static str,
    /// Users and their passwords.
    pub logins: Vec<(&'static str, &'static str)>,
    /// Whether one who shows no credential may have a token.
    pub anonymous: bool,
    /// Whether a password is also taken as `refresh_token` in a POST; if not, a POST finds nothing.
    pub posts: bool,
    pub scope: Scope,
    pub advertised: Advertised,
    /// The members of the answer that hold the token.
    pub members: &'static [&'static str],
    pub life: Life,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenHost {
    /// The registry's own, on the same port.
    Own,
    /// Another, on a port of its own.
    Other,
}

/// What a challenge asks to ask for, and what a token opens.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// `repository:<name>:pull`, and that repository.
    Repository,
    /// The same, and all repositories whose names begin with the same component.
    Project,
    /// These words and everything.
    Fixed(&'static str),
}

/// Which 401s tell how to get a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Advertised {
    Everywhere,
    /// Only that of `/v2/`; the others have no `WWW-Authenticate`.
    AtBase,
    /// Only that of `/v2/`; the others ask for Basic, which opens nothing.
    AtBaseElseBasic,
}

/// How long a token says that it lives, in seconds. Never enforced.
#[derive(Clone, Copy, Debug)]
pub enum Life {
    Unsaid,
    /// In `expires_in`.
    ExpiresIn(u64),
    /// The token is a JWT with an `exp`.
    Jwt(u64),
}

/// What is said of a repository that is not there, or not for the one who asks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Missing {
    /// 404 `NAME_UNKNOWN` if it is not there.
    #[default]
    NotFound,
    /// The token opens nothing: 401 `insufficient_scope`.
    Unauthorized,
    /// There is no token: 403 `DENIED` from the token service.
    NoToken,
}

/// How manifests are answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manifests {
    /// 405 to a HEAD.
    pub no_head: bool,
    pub unaccepted_index: UnacceptedIndex,
    /// Compressed, whatever encoding was asked for.
    pub gzip: bool,
    /// Headers that are left out of a 200.
    pub lacks: &'static [&'static str],
}

/// What one gets who asks for an index and does not name its type in `Accept`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum UnacceptedIndex {
    #[default]
    Index,
    /// By tag its child for linux/amd64.
    Child,
    /// 404, whatever else is accepted.
    NotFound,
}

/// How blobs are answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Blobs {
    /// Where a GET is sent; `None`: it is answered on the spot.
    pub redirect: Option<Redirect>,
    pub head: HeadBlob,
    /// 400 to more than one range.
    pub one_range: bool,
    /// Headers that are left out of a 200 or 206.
    pub lacks: &'static [&'static str],
}

#[derive(Clone, Copy, Debug)]
pub struct Redirect {
    pub status: u16,
    pub to: Target,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// The storage, which refuses whoever shows it a credential.
    Storage,
    /// A long relative URL on the same host, which wants the token again.
    OwnHost,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum HeadBlob {
    /// As the spec says.
    #[default]
    Answered,
    /// As a GET, to a URL that is signed for GET: 403.
    Redirected,
    /// 401, whatever it shows.
    Unauthorized,
    /// 404 until the blob has been asked for by GET.
    AfterGet,
}

/// How tags and referrers are answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lists {
    pub page: Page,
    pub link: Link,
    /// 404 for referrers of everything.
    pub no_referrers: bool,
}

/// How many tags are given at once.
#[derive(Clone, Copy, Debug, Default)]
pub enum Page {
    #[default]
    AsAsked,
    /// At most so many.
    Clamped(usize),
    /// 400 to whoever asks for more.
    Refused(usize),
}

/// How the next page is named.
#[derive(Clone, Copy, Debug, Default)]
pub enum Link {
    /// `</v2/…?last=…&n=…>`
    #[default]
    Relative,
    /// `<http://…/v2/…?n=…&next_page=…>`, where the token alone says where to go on.
    Absolute,
}

// === impl Setup ===

impl Setup {
    /// One more user of the token service.
    pub fn login(mut self, user: &'static str, password: &'static str) -> Self {
        let Auth::Tokens(service) = &mut self.auth else {
            panic!("{:?} has no users", self.auth);
        };
        service.logins.push((user, password));
        self
    }

    /// What users show.
    pub(super) fn passwords(&self) -> Vec<&'static str> {
        match &self.auth {
            Auth::None => Vec::new(),
            Auth::Basic { password, .. } => vec![*password],
            Auth::Bearer { user, .. } => user.iter().map(|(_, password)| *password).collect(),
            Auth::Tokens(service) => service.logins.iter().map(|(_, password)| *password).collect(),
        }
    }
}

// === impl Auth ===

impl Auth {
    /// The token service, if tokens are what opens this registry.
    pub(super) fn token_service(&self) -> Option<TokenService> {
        match self {
            Self::None | Self::Basic { .. } => None,
            Self::Bearer { user, expires_in } => Some(TokenService {
                logins: user.iter().copied().collect(),
                anonymous: user.is_none(),
                members: if expires_in.is_some() { &["token", "access_token"] } else { &["token"] },
                life: expires_in.map_or(Life::Unsaid, Life::ExpiresIn),
                ..TokenService::default()
            }),
            Self::Tokens(service) => Some(service.clone()),
        }
    }
}

// === impl TokenService ===

impl Default for TokenService {
    fn default() -> Self {
        Self {
            host: TokenHost::Other,
            path: "/token",
            service: "registry.test",
            logins: Vec::new(),
            anonymous: true,
            posts: false,
            scope: Scope::Repository,
            advertised: Advertised::Everywhere,
            members: &["token", "access_token"],
            life: Life::ExpiresIn(300),
        }
    }
}

// === impl Blobs ===

impl Blobs {
    /// Sends GETs to the storage with a 307.
    pub const REDIRECTED: Self = Self {
        redirect: Some(Redirect { status: 307, to: Target::Storage }),
        head: HeadBlob::Answered,
        one_range: false,
        lacks: &[],
    };
}
