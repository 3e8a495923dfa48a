//! The real larder on a port of the kernel's choice, with a cache directory and a clock of its own.

use std::{
    collections::HashSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use larder::{
    app::{App, Drained, Listening, Running},
    clock::{Clock, Timestamp},
    config::Config,
    metrics::Format,
    mirror::Warmed,
    oci::{Digest, ImageName, Repository},
    orders::Orders,
    store::{Proof, Scrubbed, Store, TagRecord, Trouble, faults::Faults},
    upstream::Names,
};
use tempfile::TempDir;
use toml::{Table, Value};

use super::secrets::{self, Ports};
use super::{Answer, Client, PATIENCE, PutImage, Registry, Streaming};

/// A larder that serves. [`stop`](Self::stop) ends it as SIGTERM would.
pub struct TestMirror {
    app: App,
    client: Client,
    stopped: StoppedMirror,
    _searched: Ports,
}

/// A larder that does not run: before its first start, or between two. Its directory may be looked at
/// and damaged, its options changed. The directory goes when this goes.
pub struct StoppedMirror {
    _searched: Searched,
    dir: TempDir,
    config: Table,
    clock: Clock,
    faults: Faults,
    names: Names,
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Searches what larder has written for secrets, before it goes.
struct Searched(PathBuf);

// === impl TestMirror ===

impl TestMirror {
    /// One that takes this registry for Docker Hub.
    pub async fn of(upstream: &Registry) -> Self {
        Self::builder().upstream("docker.io", upstream).start().await
    }

    /// One without upstreams and with an empty cache, to be told more.
    pub fn builder() -> StoppedMirror {
        StoppedMirror::new()
    }

    pub fn address(&self) -> SocketAddr {
        self.app.address().expect("it listens on TCP")
    }

    /// Where it listens, first without doors.
    pub fn listening(&self) -> &[Listening] {
        self.app.listening()
    }

    /// Where it listens for its operator, if it does.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.app.admin_address()
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin_address().expect("it listens for its operator"))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// By TLS, at the first listener that speaks it.
    pub fn tls_url(&self, path: &str) -> String {
        let tls = self.listening().iter().find(|listening| listening.tls).expect("it speaks TLS");
        format!("{tls}{path}")
    }

    /// Where that is.
    pub fn tls_address(&self) -> SocketAddr {
        let tls = self.listening().iter().find(|listening| listening.tls).expect("it speaks TLS");
        tls.address().expect("over TCP")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.client.get(self.url(path)).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.client.get_with(self.url(path), headers).await
    }

    pub async fn head(&self, path: &str) -> Answer {
        self.client.head(self.url(path)).await
    }

    pub async fn stream(&self, path: &str) -> Streaming {
        self.client.stream(self.url(path)).await
    }

    /// What a changed configuration is given to.
    pub fn running(&self) -> Arc<Running> {
        self.app.running()
    }

    /// Its configuration, with these lines besides.
    pub fn config_with(&self, lines: &str) -> Config {
        let mut config = self.stopped.config.clone();
        merge(&mut config, lines.parse::<Table>().expect("lines of TOML"));
        Config::from_toml(&config.to_string()).expect("a configuration")
    }

    /// The clock by which this larder judges what is fresh; `clock().advance(…)` lets time pass.
    pub fn clock(&self) -> &Clock {
        &self.stopped.clock
    }

    pub fn cache_dir(&self) -> PathBuf {
        self.stopped.cache_dir()
    }

    /// What goes wrong with its disk, until it is stopped.
    pub fn faults(&self) -> &Faults {
        &self.stopped.faults
    }

    /// Where names lead it, and which it has dialled.
    pub fn names(&self) -> &Names {
        &self.stopped.names
    }

    /// Whether a blob has been committed to the cache.
    pub fn holds(&self, digest: &str) -> bool {
        self.app.store().size(&digest.parse().expect("a digest")).is_some()
    }

    /// Waits until a blob is committed, which happens after its last byte has gone out.
    pub async fn kept(&self, digest: &str) {
        let committed = async {
            while !self.holds(digest) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, committed).await.expect("the blob is kept");
    }

    /// What is wrong with its disk, as far as it knows.
    pub fn trouble(&self) -> Option<Trouble> {
        self.app.store().trouble()
    }

    /// The look at a disk that has failed, due every few seconds.
    pub async fn probe(&self) {
        self.app.store().probe().await;
    }

    /// The directory that holds the cache directory: that in which commands on this cache run.
    pub fn dir(&self) -> &Path {
        self.stopped.dir()
    }

    /// Pulls an image by tag as a client does, and waits until all of it is kept.
    pub async fn pull(&self, image: &PutImage, tag: &str) {
        self.get(&image.tag_path(tag)).await.expect(200);
        self.kept(&image.digest).await;
        for blob in image.blobs() {
            self.get(&image.blob_path(blob)).await.expect(200);
            self.kept(&blob.digest).await;
        }
    }

    /// How many bytes of the disk the cache counts as its own.
    pub fn used(&self) -> u64 {
        self.app.store().usage().expect("it has been counted").0
    }

    /// The value of a metric, with its labels as they are written; 0 if it has none yet.
    pub fn metric(&self, name: &str) -> u64 {
        let page = self.app.mirror().measured().page(Format::Text);
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_default()
    }

    /// Waits until a metric has come to this value.
    pub async fn metric_is(&self, name: &str, value: u64) {
        let comes = self.metric_once(name, |now| now == value);
        assert!(tokio::time::timeout(PATIENCE, comes).await.is_ok(), "{name} is {}, never {value}", self.metric(name));
    }

    /// What a metric has come to once it is so.
    pub async fn metric_once(&self, name: &str, is_so: impl Fn(u64) -> bool) -> u64 {
        loop {
            let now = self.metric(name);
            if is_so(now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// When the upstream was last asked for a tag of Docker Hub.
    pub fn checked(&self, repository: &str, tag: &str) -> Timestamp {
        let repository = Repository { upstream: "docker.io".into(), name: repository.parse().expect("a name") };
        self.app.store().tag(&repository, &tag.parse().expect("a tag")).expect("it is known").checked
    }

    /// Waits until the answer to a question that nobody waits for has come in.
    pub async fn checked_after(&self, repository: &str, tag: &str, before: Timestamp) {
        let asked = async {
            while self.checked(repository, tag) <= before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, asked).await.is_ok(), "{repository}:{tag} is not asked for");
    }

    /// Brings an image in as `docker pull` would, for these platforms.
    pub async fn warm(&self, image: &str, platforms: &[&str]) -> Warmed {
        let image: ImageName = image.parse().expect("an image");
        let platforms: Vec<String> = platforms.iter().map(ToString::to_string).collect();
        let origin = self.app.mirror().registries().resolve(&image).expect("a configured upstream");
        self.app.mirror().warm(&origin, &image.reference, &platforms.try_into().expect("platforms")).await
    }

    /// The round over `mirror.keep` that is due every few hours.
    pub async fn keep_once(&self) -> bool {
        self.app.mirror().keep_once().await
    }

    /// The round of upkeep that is due once a minute.
    pub async fn upkeep(&self) {
        self.app.store().upkeep().await;
    }

    /// What is written down once a minute for the operator's page.
    pub async fn keep_history(&self) {
        self.app.dashboard().keep().await;
    }

    /// Puts so many images into its cache, one for each tag of `repository`, which are `distinct` different ones; each has a layer of its
    /// number in bytes.
    pub async fn fill_with(&self, repository: &str, images: usize, distinct: usize) {
        let (store, now) = (self.app.store(), self.clock().now());
        let repository = Repository { upstream: "docker.io".into(), name: repository.parse().expect("a name") };
        let mut digests = Vec::new();
        for n in 1..=distinct {
            let layer = vec![7; n];
            let layer_digest = Digest::sha256(&layer);
            store.put(&layer_digest, layer.into(), &[]).await;
            let manifest = format!(
                r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","layers":[{{"digest":"{layer_digest}","size":{n}}}]}}"#
            );
            let (digest, manifest_size) = (Digest::sha256(manifest.as_bytes()), manifest.len() as u64);
            store.put(&digest, manifest.into(), &[layer_digest]).await;
            let proof = Proof { size: manifest_size, media_type: Some(MANIFEST_TYPE.into()), proven: now };
            store.set_proof(&repository, &digest, proof);
            digests.push(digest);
        }
        for n in 0..images {
            let tag = format!("v{n:05}").parse().expect("a tag");
            let record = TagRecord { digest: digests[n % distinct].clone(), checked: now };
            store.set_tag(&repository, &tag, &record);
        }
    }

    /// The cache, past all that stands before it.
    pub fn store(&self) -> &Store {
        self.app.store()
    }

    /// The names of all images, looked up anew.
    pub fn images(&self) -> Vec<String> {
        let orders = Orders::new(self.app.mirror().clone(), self.app.store().clone());
        orders.images().iter().map(larder::orders::Image::name).collect()
    }

    /// The round of verification that goes on in idle time.
    pub async fn scrub(&self) -> Scrubbed {
        self.app.store().scrub_once().await
    }

    /// Drains and ends it; the cache stays for another start.
    pub async fn stop(self) -> StoppedMirror {
        self.drain().await.0
    }

    /// Ends it as [`stop`](Self::stop) does, and tells what had to be cut off.
    pub async fn drain(self) -> (StoppedMirror, Drained) {
        secrets::search("the metrics", self.app.mirror().metrics().page(Format::Text).as_bytes());
        let drained = self.app.stop().await;
        (StoppedMirror { faults: Faults::planned(), ..self.stopped }, drained)
    }
}

// === impl StoppedMirror ===

impl StoppedMirror {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        secrets::search_log();
        let searched = Searched(dir.path().join("cache"));
        let (clock, faults, names) = (Clock::system(), Faults::planned(), Names::default());
        let stopped = Self { _searched: searched, dir, config: Table::new(), clock, faults, names };
        let cache_dir = Value::from(stopped.cache_dir().to_str().expect("a path of text"));
        stopped
            .set("server.listen = \"127.0.0.1:0\"")
            .set("admin.listen = \"127.0.0.1:0\"")
            .set(&format!("cache.dir = {cache_dir}"))
            .set("cache.max_size = \"1GiB\"")
            // How full this machine's disk is decides nothing.
            .set("cache.min_free = \"0%\"")
            .set("mirror.default_upstream = \"docker.io\"")
            .set("mirror.tag_ttl = \"1m\"")
            // What clients ask for is what is fetched, and in one piece.
            .set("mirror.prefetch = 0")
            .set("mirror.blob_connections = 1")
    }

    /// Takes this registry for the upstream of that name.
    pub fn upstream(self, name: &str, registry: &Registry) -> Self {
        self.set(&format!("upstream.{name:?}.url = {:?}", registry.url()))
    }

    /// Gives credentials to the upstream of that name, the password in a file.
    pub fn login(self, name: &str, user: &str, password: &str) -> Self {
        secrets::assert_marked(password);
        let file = self.dir.path().join(format!("password-{name}"));
        fs::write(&file, password).expect("a file in the temporary directory");
        let file = Value::from(file.to_str().expect("a path of text"));
        self.set(&format!("upstream.{name:?}.username = {user:?}")).set(&format!("upstream.{name:?}.password_file = {file}"))
    }

    /// Lets clients bring their own credentials for the upstream of that name, at this host.
    pub fn gate(self, name: &str, registry: &Registry, host: &str) -> Self {
        let token_host = registry.token_url().replace("http://", "");
        self.upstream(name, registry)
            .set(&format!("upstream.{name:?}.auth = \"passthrough\""))
            .set(&format!("upstream.{name:?}.public_url = \"https://{host}\""))
            .set(&format!("upstream.{name:?}.token_hosts = [{token_host:?}]"))
    }

    /// Lets it listen by TLS as well, with the certificate and key in these files, and with these other options.
    pub fn tls(self, (certificate, key): &(PathBuf, PathBuf), options: &str) -> Self {
        let (certificate, key) = (certificate.display(), key.display());
        self.listener(&format!("cert_file = '{certificate}', key_file = '{key}', {options}"))
    }

    /// Lets it listen at a port of the kernel's choice as well, with these options.
    pub fn listener(mut self, options: &str) -> Self {
        let options =
            if options.contains("listen = ") { options.to_owned() } else { format!("listen = '127.0.0.1:0', {options}") };
        let options = format!("listener = {{ {} }}", options.trim_end_matches(", ")).parse::<Table>().expect("options");
        let server = self.config.entry("server").or_insert_with(|| Table::new().into());
        let listeners = server.as_table_mut().expect("a section").entry("listener").or_insert_with(|| Vec::<Value>::new().into());
        listeners.as_array_mut().expect("a list").push(options["listener"].clone());
        self
    }

    /// Sets options as lines of the configuration file with dotted keys: `mirror.tag_ttl = "10s"`. The
    /// last word counts.
    pub fn set(mut self, lines: &str) -> Self {
        let options = lines.parse::<Table>().expect("lines of TOML");
        merge(&mut self.config, options);
        self
    }

    /// Lets the next start find what it finds after a process that was killed.
    pub fn into_killed(self) -> Self {
        fs::remove_file(self.cache_dir().join("clean")).expect("it was stopped cleanly");
        self
    }

    /// Moves this larder's time to another clock.
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    pub fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// The directory that holds the cache directory, for what a test wants to keep beside it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where names lead it, in place of where the system says.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What goes wrong with its disk from its start on.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    pub async fn start(self) -> TestMirror {
        let mirror = match self.try_start().await {
            Ok(mirror) => mirror,
            Err((error, _)) => panic!("larder does not start: {error}"),
        };
        while mirror.app.store().usage().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        mirror
    }

    /// Starts, maybe before the cache is counted, or tells why not, the causes too, as the command line would, and gives itself back.
    pub async fn try_start(self) -> Result<TestMirror, (String, Self)> {
        let config = match Config::from_toml(&self.config.to_string()) {
            Ok(mut config) => {
                config.cache.faults = self.faults.clone();
                config.upstream.values_mut().for_each(|options| options.names = self.names.clone());
                config
            }
            Err(error) => return Err((told(&error), self)),
        };
        match App::start(config, self.clock.clone()).await {
            Ok(app) => {
                let clients = app.listening().iter().filter_map(Listening::address);
                let searched = Ports::of(clients.chain(app.admin_address()));
                Ok(TestMirror { app, client: Client::h1(), stopped: self, _searched: searched })
            }
            Err(error) => Err((told(&error), self)),
        }
    }
}

// === impl Searched ===

impl Drop for Searched {
    fn drop(&mut self) {
        secrets::search_files(&self.0, &HashSet::new());
        secrets::tell();
    }
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(known)), Value::Table(more)) => merge(known, more),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn told(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message += &format!(": {error}");
        cause = error.source();
    }
    message
}
