//! `[server]`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::forwarded::Network;
use super::place::{self, Place};
use super::rules::{Rule, Who};

/// Where larder listens and how it treats connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The address for clients: HTTP/1.1 and cleartext HTTP/2, for whoever reaches it. Empty: none.
    #[serde(with = "place::or_none")]
    pub listen: Option<Place>,
    /// More of them, each with doors of its own.
    pub listener: Vec<ListenerOptions>,
    /// How many connections are held at once. For one more an idle one is closed; where none is idle, it is answered 503.
    pub max_connections: usize,
    /// How much of answers may be in memory on its way to clients, with what a connection asks beside something else; no client has more
    /// of it than it leaves to others. Beyond it blobs, and manifests and lists that are not small, are answered 503, and all that is asked
    /// beside something else.
    pub max_buffers: ByteSize,
    /// How many files may be open for what is asked beside something else on its connection; no client has more of them than it leaves to
    /// others. No option in the file: it follows from how many a process may open.
    #[serde(skip)]
    pub max_files: u64,
    /// For how long a client may take nothing of its answer.
    #[serde(with = "humantime_serde")]
    pub write_idle: Duration,
    /// How much a client takes per second at least, averaged over `write_idle`; 0: any amount will do.
    pub min_rate: ByteSize,
    /// How many connections one client may have, by the address that it comes from; 0: any number. Many may come from one address.
    pub client_connections: usize,
    /// How many requests a second, averaged over ten seconds; 0: any number.
    pub client_requests: u32,
    /// How many bytes of blobs a second, all its answers together; 0: any number.
    pub client_rate: ByteSize,
    /// How long answers under way may take to end when larder is stopped.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

/// `[[server.listener]]`: one listener, and what is asked of those who come by it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerOptions {
    /// Where it listens.
    pub listen: Place,
    /// The certificate (PEM) that larder shows, with those that it is signed by. Empty: no TLS.
    #[serde(default)]
    pub cert_file: PathBuf,
    /// Its key (PEM). Both are read again when they change.
    #[serde(default)]
    pub key_file: PathBuf,
    /// Certificates (PEM) of those who sign clients' certificates. Empty: clients are not asked for any.
    #[serde(default)]
    pub client_ca_file: PathBuf,
    /// Whether clients must show a certificate. Not given: where there is a `client_ca_file`, they must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<ClientCert>,
    /// Users and their passwords, as `htpasswd -B` writes them. Empty: nobody is asked for a password.
    #[serde(default)]
    pub users_file: PathBuf,
    /// Groups of users: lines `group: user user`.
    #[serde(default)]
    pub groups_file: PathBuf,
    /// Proxies that are believed when they say for whom they speak: networks, or `unix`. Empty: none.
    #[serde(default)]
    pub proxies: Vec<Network>,
    /// They say so by the PROXY protocol. Not by `X-Forwarded-For` then: what speaks below HTTP lets its clients write that.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Who may have which repositories; none: whoever is let in, all.
    #[serde(default)]
    pub rule: Vec<Rule>,
}

/// Whether clients must show a certificate, where they are asked for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCert {
    /// Without one, nobody is heard. Where there are users as well, they say besides who they are.
    Required,
    /// Who shows one need not say who it is; who shows none is asked for a password, where there are users.
    Optional,
}

/// With less, clients would take pauses between pieces for the end.
const LEAST_RATE: u64 = 64 << 10;

impl Options {
    /// # Errors
    /// Says in one line what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=1_000_000).contains(&self.max_connections) {
            return Err(format!("server.max_connections is {}; it must be from 1 to 1000000", self.max_connections));
        }
        if self.write_idle.is_zero() {
            return Err("server.write_idle is 0; every client takes some time".into());
        }
        if (1..LEAST_RATE).contains(&self.client_rate.as_u64()) {
            return Err(format!("server.client_rate is {}; it must be 0B or at least 64KiB", self.client_rate));
        }
        if self.listen.is_none() && self.listener.is_empty() {
            return Err("server.listen is empty and there is no server.listener: nobody could ask for anything".into());
        }
        self.listener.iter().try_for_each(ListenerOptions::check)?;
        let mut places: Vec<Place> = self.listeners().into_iter().map(|listener| listener.listen).collect();
        while let Some(place) = places.pop() {
            if !place.is_of_the_kernels_choice() && places.contains(&place) {
                return Err(format!("server.listener: two are at {place}; who comes there cannot meet both"));
            }
        }
        Ok(())
    }

    /// Takes from `new` what can change while larder serves.
    pub fn take_up(&mut self, new: &Self) {
        (self.client_connections, self.client_requests) = (new.client_connections, new.client_requests);
        self.client_rate = new.client_rate;
        self.listener.iter_mut().zip(&new.listener).for_each(|(listener, new)| listener.take_up(new));
    }

    /// Whether every listener lets its clients log in to an upstream with `auth = "passthrough"`, or has none of it.
    ///
    /// # Errors
    /// Says in one line which does not, and what to do.
    pub fn check_passthrough(&self, upstream: &str) -> Result<(), String> {
        self.listener.iter().try_for_each(|listener| listener.check_passthrough(upstream))
    }

    /// What an operator may not have meant, in a sentence each that says what to do. larder does it all the same.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let open = self.listen.iter().filter(|place| !place.is_local() && self.listener.iter().any(ListenerOptions::has_doors));
        let open = open.map(|place| {
            format!(
                "server.listen is {place}: whoever reaches it is asked nothing there, and the users, certificates and rules of \
                 server.listener do not hold; put it on loopback, or leave it empty"
            )
        });
        open.chain(self.listener.iter().flat_map(ListenerOptions::doubts)).collect()
    }

    /// All listeners, first the one without doors.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerOptions> {
        self.listen.clone().map(ListenerOptions::open).into_iter().chain(self.listener.iter().cloned()).collect()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: Some(Place::Tcp(SocketAddr::from(([127, 0, 0, 1], 5000)))),
            listener: Vec::new(),
            max_connections: 10_000,
            max_buffers: ByteSize::mib(256),
            max_files: u64::MAX,
            write_idle: Duration::from_mins(1),
            min_rate: ByteSize::kib(1),
            client_connections: 0,
            client_requests: 0,
            client_rate: ByteSize::b(0),
            shutdown_grace: Duration::from_mins(1),
        }
    }
}

// === impl ListenerOptions ===

impl ListenerOptions {
    /// For whoever reaches it, in cleartext.
    fn open(listen: Place) -> Self {
        Self {
            listen,
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            client_ca_file: PathBuf::new(),
            client_cert: None,
            users_file: PathBuf::new(),
            groups_file: PathBuf::new(),
            proxies: Vec::new(),
            proxy_protocol: false,
            rule: Vec::new(),
        }
    }

    /// Whether its clients speak TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        given(&self.cert_file)
    }

    pub(super) fn asks_for_certificates(&self) -> bool {
        given(&self.client_ca_file)
    }

    /// Whether clients must show a certificate. `None`: they are not asked for one.
    pub(super) fn certificates(&self) -> Option<ClientCert> {
        self.asks_for_certificates().then(|| self.client_cert.unwrap_or(ClientCert::Required))
    }

    /// Whether not everyone gets everything here.
    fn has_doors(&self) -> bool {
        given(&self.users_file) || self.asks_for_certificates() || !self.rule.is_empty()
    }

    fn doubts(&self) -> Vec<String> {
        let Self { listen, .. } = self;
        let mut doubts = Vec::new();
        if given(&self.users_file) && !self.has_tls() && !listen.is_local() && self.proxies.is_empty() {
            doubts.push(format!(
                "server.listener at {listen}: passwords go there in cleartext; give cert_file and key_file, or name in proxies who speaks TLS before it"
            ));
        }
        let wide = self.proxies.iter().filter(|network| network.is_wide());
        doubts.extend(wide.map(|network| {
            format!("server.listener at {listen}: whoever is in {network} of proxies is believed to be anyone; name the addresses of proxies alone")
        }));
        doubts
    }

    fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("server.listener at {}: {what}", self.listen));
        if given(&self.cert_file) != given(&self.key_file) {
            return wrong("cert_file and key_file go together; one of them is missing");
        }
        if given(&self.client_ca_file) && !self.has_tls() {
            return wrong("client_ca_file is for TLS; give cert_file and key_file as well");
        }
        if self.client_cert.is_some() && !self.asks_for_certificates() {
            return wrong("client_cert is for certificates that client_ca_file has signed, which is missing");
        }
        if self.proxy_protocol && self.proxies.is_empty() {
            return wrong("proxy_protocol is true; say in proxies who is believed");
        }
        if given(&self.groups_file) && !given(&self.users_file) {
            return wrong("groups_file is for the users of users_file, which is missing");
        }
        if self.rule.iter().any(|rule| rule.allow.is_empty() && rule.deny.is_empty()) {
            return wrong("a rule has neither allow nor deny; allow = [\"**\"] allows everything");
        }
        if !self.rule.is_empty() && self.rule.iter().all(|rule| rule.allow.is_empty()) {
            return wrong("no rule allows anything; a rule with allow = [\"**\"] allows all that none denies");
        }
        let nobody = |who: &&Who| match who {
            Who::User(_) => !given(&self.users_file) && !self.asks_for_certificates(),
            Who::Group(_) => !given(&self.groups_file),
            Who::Cert(_) => !self.asks_for_certificates(),
        };
        if let Some(who) = self.rule.iter().flat_map(|rule| &rule.who).find(nobody) {
            return wrong(&format!(
                "a rule is for \"{who}\", whom nobody here can be: user needs users_file or client_ca_file, group groups_file, cert client_ca_file"
            ));
        }
        Ok(())
    }

    /// Rules are not taken up alone where they belong to other doors than there are.
    fn take_up(&mut self, new: &Self) {
        let taken = Self { rule: new.rule.clone(), ..self.clone() };
        if taken == *new {
            *self = taken;
        }
    }

    /// Clients say with the same header who they are to larder and to an upstream with `auth = "passthrough"`.
    fn check_passthrough(&self, upstream: &str) -> Result<(), String> {
        let by_password_alone = given(&self.users_file) && self.certificates() != Some(ClientCert::Optional);
        if by_password_alone && !self.rule.iter().any(|rule| rule.shuts_out(upstream)) {
            return Err(format!(
                "server.listener at {}: users_file asks for one password, and upstream.\"{upstream}\" with auth = \"passthrough\" for \
                 another; no client sends two: ask for a certificate (client_ca_file, client_cert = \"optional\"), or let a rule say \
                 deny = [\"{upstream}/**\"]",
                self.listen
            ));
        }
        Ok(())
    }
}

fn given(file: &Path) -> bool {
    !file.as_os_str().is_empty()
}
