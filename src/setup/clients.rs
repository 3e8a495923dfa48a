//! What each client reads: which files, what of larder's has to stand there, and what else is to be known.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::{Edit, Offer, merge, yaml};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Client {
    Docker,
    Containerd,
    K3s,
    Podman,
    Crio,
    Buildkit,
    Kaniko,
}

/// What leads a client to larder.
pub struct Plan<'a> {
    pub edits: Vec<Edit<'a>>,
    /// What is to be given to it otherwise, word for word.
    pub words: Vec<String>,
    /// What has it take that up.
    pub then: Option<&'static str>,
    pub notes: Vec<String>,
}

/// Where clients go, and where they keep what they know.
pub struct Way<'a> {
    pub offer: &'a Offer,
    /// The certificates to verify larder by, where the system does not have them: file and text.
    pub ca: Option<(String, String)>,
    /// The file system: `/`, or one that is mounted elsewhere.
    pub root: &'a Path,
    /// It is at hand, so that what stands there already counts.
    pub here: bool,
}

const DOCKER_HUB: &str = "docker.io";
const DROP_IN: &str = "etc/containers/registries.conf.d/larder.conf";
const OWN: &str = "# Written by `larder setup`, which writes it anew.";

// === impl Client ===

impl Client {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Docker, Self::Containerd, Self::K3s, Self::Podman, Self::Crio, Self::Buildkit, Self::Kaniko];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::K3s => "k3s",
            Self::Podman => "podman",
            Self::Crio => "crio",
            Self::Buildkit => "buildkit",
            Self::Kaniko => "kaniko",
        }
    }

    /// Where it is noted what was done.
    #[must_use]
    pub fn note(self, root: &Path) -> PathBuf {
        let dir = match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::K3s => "rancher/k3s",
            Self::Podman | Self::Crio => "containers",
            Self::Buildkit | Self::Kaniko => "buildkit",
        };
        root.join("etc").join(dir).join("larder-setup.json")
    }

    /// # Errors
    /// One line that says what is in the way.
    pub fn plan<'a>(self, way: &'a Way<'a>) -> Result<Plan<'a>, String> {
        let mut plan = match self {
            Self::Docker => way.docker(),
            Self::Containerd => way.containerd(),
            Self::K3s => Ok(way.k3s()),
            Self::Podman => way.podman(None),
            Self::Crio => way.podman(Some("systemctl reload crio")),
            Self::Buildkit => Ok(way.buildkit()),
            Self::Kaniko => Ok(way.kaniko()),
        }?;
        plan.notes.extend(self.credentials(way.offer));
        for (name, url) in &way.offer.apart {
            plan.notes.push(format!("{name} is had at {url}, where clients log in, and not by this"));
        }
        if way.offer.tls && way.ca.is_none() {
            plan.notes
                .push("where the system does not know who signed larder's certificate, give its authority as --ca FILE".into());
        }
        Ok(plan)
    }

    /// How it says who it is, where it is asked.
    fn credentials(self, offer: &Offer) -> Option<String> {
        let (at, url) = (&offer.authority, offer.url());
        let how = match (self, offer.asks_for_users, offer.asks_for_certificates) {
            (_, false, false) => return None,
            (Self::Docker, true, _) => {
                "Docker before 29 would show larder its password of Docker Hub, and no other; let it come by a listener that asks nothing".into()
            }
            (Self::Docker, ..) => format!("put its certificate into /etc/docker/certs.d/{at}/ as client.cert and client.key"),
            (Self::Containerd, true, _) => {
                format!("below each [host.\"{url}\"]: [host.\"{url}\".header], authorization = \"Basic …\" (printf NAME:PASSWORD | base64)")
            }
            (Self::Containerd, ..) => format!("below each [host.\"{url}\"]: client = [[\"FILE.crt\", \"FILE.key\"]]"),
            (Self::K3s, true, _) => format!("below configs, \"{at}\": auth: {{username: NAME, password: PASSWORD}}"),
            (Self::K3s, ..) => format!("below configs, \"{at}\": tls: {{cert_file: FILE, key_file: FILE}}"),
            (Self::Podman, true, _) => format!("podman login {at}"),
            (Self::Crio, true, _) => format!("global_auth_file in crio.conf names a file with a login at {at}"),
            (Self::Podman | Self::Crio, ..) => format!("put its certificate into /etc/containers/certs.d/{at}/ as client.cert and client.key"),
            (Self::Buildkit, true, _) => format!("who builds logs in: docker login {at}"),
            (Self::Buildkit, ..) => format!("[[registry.\"{at}\".keypair]], cert = \"FILE\", key = \"FILE\""),
            (Self::Kaniko, true, _) => format!("/kaniko/.docker/config.json has a login at {at}"),
            (Self::Kaniko, ..) => format!("--registry-client-cert={at}=FILE.crt,FILE.key"),
        };
        Some(format!("larder asks there who comes: {how}"))
    }
}

// === impl Way ===

impl<'a> Way<'a> {
    /// Docker asks `registry-mirrors` for Docker Hub alone. From 29 on, with containerd's image store, it reads hosts.toml for others,
    /// of which those before see nothing.
    fn docker(&'a self) -> Result<Plan<'a>, String> {
        let mut plan = Plan { edits: Vec::new(), words: Vec::new(), then: Some("systemctl reload docker"), notes: Vec::new() };
        let mirror = self.offer.url();
        match self.names().contains(&DOCKER_HUB) {
            true if self.offer.default == DOCKER_HUB => {
                plan.edit(self.root.join("etc/docker/daemon.json"), move |text| merge::daemon_json(text, &mirror));
            }
            // Its requests do not say whose images they are for, and which of the two it is, only it could say.
            true => plan.notes.push(format!(
                "from Docker 25 on, /etc/docker/daemon.json may say \"registry-mirrors\": [\"{mirror}/{DOCKER_HUB}\"]; before, Docker does not \
                 start with a path there: let it come to a larder whose mirror.default_upstream is {DOCKER_HUB}"
            )),
            false => {}
        }
        plan.edits.extend(self.hosts("etc/docker/certs.d", |name| name != DOCKER_HUB)?);
        plan.edits.extend(self.authority("etc/docker/certs.d"));
        plan.notes.push("Docker before 29, and 29 without containerd's image store, asks mirrors for Docker Hub alone".into());
        Ok(plan)
    }

    fn containerd(&'a self) -> Result<Plan<'a>, String> {
        let mut plan =
            Plan { edits: self.hosts("etc/containerd/certs.d", |_| true)?, words: Vec::new(), then: None, notes: Vec::new() };
        if !self.containerd_reads_hosts()? {
            plan.notes.push(
                "Kubernetes goes by these where /etc/containerd/config.toml says config_path = \"/etc/containerd/certs.d\", in containerd 2 \
                 below [plugins.\"io.containerd.cri.v1.images\".registry], in 1 below [plugins.\"io.containerd.grpc.v1.cri\".registry]; then: \
                 systemctl restart containerd"
                    .into(),
            );
        }
        plan.notes.push("nerdctl reads them of itself, ctr with --hosts-dir /etc/containerd/certs.d".into());
        Ok(plan)
    }

    fn k3s(&'a self) -> Plan<'a> {
        let mut plan =
            Plan { edits: Vec::new(), words: Vec::new(), then: Some("systemctl restart k3s (or k3s-agent)"), notes: Vec::new() };
        plan.edit(self.root.join("etc/rancher/k3s/registries.yaml"), |text| {
            yaml::registries(text, &self.names(), &self.offer.url(), &self.offer.authority, self.ca_file())
        });
        plan
    }

    /// One library reads these for all of them: podman, CRI-O, skopeo, buildah.
    fn podman(&'a self, then: Option<&'static str>) -> Result<Plan<'a>, String> {
        let mut plan = Plan { edits: Vec::new(), words: Vec::new(), then, notes: Vec::new() };
        let mut text = format!("{OWN}\n");
        let taken = self.configured_elsewhere()?;
        let authority = &self.offer.authority;
        for name in self.names() {
            // Of two for one registry, one alone would count.
            if let Some((_, file)) = taken.iter().find(|(taken, _)| taken == name) {
                plan.notes.push(format!(
                    "{name} is left as {} has it; larder would be, below its [[registry]]: [[registry.mirror]], location = \"{authority}/{name}\"",
                    file.display()
                ));
                continue;
            }
            text += &format!("\n[[registry]]\nprefix = \"{name}\"\nlocation = \"{name}\"\n");
            text += &format!("[[registry.mirror]]\nlocation = \"{authority}/{name}\"\n");
            text += if self.offer.tls { "" } else { "insecure = true\n" };
        }
        plan.edit(self.root.join(DROP_IN), move |now| match now {
            Some(now) if !now.starts_with(OWN) => Err("it is not of larder's making; give it another name".into()),
            _ => Ok(text.clone()),
        });
        plan.edits.extend(self.authority("etc/containers/certs.d"));
        Ok(plan)
    }

    fn buildkit(&'a self) -> Plan<'a> {
        let mut plan = Plan { edits: Vec::new(), words: Vec::new(), then: Some("systemctl restart buildkit"), notes: Vec::new() };
        plan.edit(self.root.join("etc/buildkit/buildkitd.toml"), |text| {
            merge::buildkitd_toml(text, &self.names(), &self.offer.authority, self.offer.tls, self.ca_file())
        });
        plan.notes.push(
            "a builder of docker buildx reads it when it is made: docker buildx create --config /etc/buildkit/buildkitd.toml"
                .into(),
        );
        plan
    }

    /// It reads no file, and its requests do not say whose images they are for.
    fn kaniko(&'a self) -> Plan<'a> {
        let Offer { authority, default, tls, .. } = self.offer;
        let names = self.names().into_iter();
        let mut words: Vec<String> = names
            .map(|name| match name {
                DOCKER_HUB if default == DOCKER_HUB => format!("--registry-mirror={authority}"),
                DOCKER_HUB => format!("--registry-mirror={authority}/{DOCKER_HUB}"),
                name => format!("--registry-map={name}={authority}/{name}"),
            })
            .collect();
        if !tls {
            words.push(format!("--insecure-registry={authority}"));
        }
        words.extend(self.ca_file().map(|file| format!("--registry-certificate={authority}={file}")));
        let notes = vec!["registries other than Docker Hub need kaniko 1.23".into()];
        Plan { edits: Vec::new(), words, then: None, notes }
    }

    fn names(&self) -> Vec<&str> {
        self.offer.registries.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn ca_file(&self) -> Option<&str> {
        self.ca.as_ref().map(|(file, _)| file.as_str())
    }

    /// A hosts.toml for each registry, below `dir`.
    fn hosts(&'a self, dir: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Edit<'a>>, String> {
        let wanted = self.offer.registries.iter().filter(|(name, _)| wanted(name));
        let edit = |(name, url): &'a (String, String)| {
            if name.contains('/') || name.starts_with('.') {
                return Err(format!("{name:?} is no name of a directory"));
            }
            let path = self.root.join(dir).join(name).join("hosts.toml");
            let merge = move |text: Option<&str>| merge::hosts_toml(text, url, &self.offer.url(), self.ca_file());
            Ok(Edit { path, merge: Box::new(merge) })
        };
        wanted.map(edit).collect()
    }

    /// The authority where a client looks for it by larder's name.
    fn authority(&'a self, dir: &str) -> Option<Edit<'a>> {
        let (_, text) = self.ca.as_ref()?;
        let path = self.root.join(dir).join(&self.offer.authority).join("ca.crt");
        Some(Edit { path, merge: Box::new(|_| Ok(text.clone())) })
    }

    /// Whether the kubelet's pulls are led by hosts.toml already.
    fn containerd_reads_hosts(&self) -> Result<bool, String> {
        if !self.here {
            return Ok(false);
        }
        let path = self.root.join("etc/containerd/config.toml");
        let Some(config) = table(&path)? else { return Ok(false) };
        let mut plugins = config.get("plugins").and_then(toml::Value::as_table).into_iter().flatten();
        Ok(plugins.any(|(_, plugin)| {
            let dirs = plugin.get("registry").and_then(|registry| registry.get("config_path")?.as_str());
            dirs.is_some_and(|dirs| dirs.split(':').any(|dir| dir.trim_end_matches('/') == "/etc/containerd/certs.d"))
        }))
    }

    /// The registries that other files than larder's are about.
    fn configured_elsewhere(&self) -> Result<Vec<(String, PathBuf)>, String> {
        if !self.here {
            return Ok(Vec::new());
        }
        let dir = self.root.join("etc/containers/registries.conf.d");
        let mut files = vec![self.root.join("etc/containers/registries.conf")];
        #[expect(clippy::disallowed_methods, reason = "it is a directory of the machine's, not of the cache")]
        let entries = std::fs::read_dir(&dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        files
            .extend(entries.filter(|path| path.extension().is_some_and(|end| end == "conf") && *path != self.root.join(DROP_IN)));
        let mut found = Vec::new();
        for file in files {
            let Some(config) = table(&file)? else { continue };
            if config.contains_key("registries") {
                return Err(format!("{}: it is in the form of version 1, beside which nothing else is read", file.display()));
            }
            for registry in config.get("registry").and_then(toml::Value::as_array).into_iter().flatten() {
                let name =
                    ["prefix", "location"].iter().find_map(|key| registry.get(key)?.as_str().filter(|name| !name.is_empty()));
                found.extend(name.map(|name| (name.to_owned(), file.clone())));
            }
        }
        Ok(found)
    }
}

/// `None` if there is no such file.
fn table(path: &Path) -> Result<Option<toml::Table>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let wrong = |error: toml::de::Error| format!("{}: it is no TOML: {}", path.display(), error.message().replace('\n', " "));
    text.parse().map(Some).map_err(wrong)
}

// === impl Plan ===

impl<'a> Plan<'a> {
    fn edit(&mut self, path: PathBuf, merge: impl Fn(Option<&str>) -> Result<String, String> + 'a) {
        self.edits.push(Edit { path, merge: Box::new(merge) });
    }
}
