//! The configuration: one TOML file, over it the environment, over that `--set`.
//!
//! Each option is declared next to the code that reads it; here they come together. Plain data: nothing is built from it
//! before `app`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::upstream::{AuthMode, WELL_KNOWN};
use crate::{app, mirror, server, store, upstream};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: server::Options,
    pub admin: server::AdminOptions,
    pub cache: store::Options,
    pub mirror: mirror::Options,
    pub log: app::LogOptions,
    pub upstream: BTreeMap<String, upstream::Options>,
}

/// What is wrong with a configuration, in one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Environment variables of larder begin with this.
const PREFIX: &str = "LARDER_";

// === impl Config ===

impl Config {
    /// Reads a configuration from the text of a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::from_table(parse(text)?)
    }

    /// Reads `file`, if there is one, and puts over it what `environment` and then `settings` (`key=value`) say.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        settings: &[String],
    ) -> Result<Self, ConfigError> {
        let mut table = match file {
            None => Table::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| ConfigError(format!("{}: {error}", path.display())))?;
                parse(&text).map_err(|error| ConfigError(format!("{}: {error}", path.display())))?
            }
        };
        check_keys(&table)?;
        for (name, value) in environment {
            if let Some(key) = key_of_variable(&name, &table)? {
                put(&mut table, &key, &value)?;
            }
        }
        for setting in settings {
            let wrong = || {
                let shown = setting.escape_debug();
                ConfigError(format!("--set {shown}: write it as key=value, such as server.listen=0.0.0.0:5000"))
            };
            let (key, value) = setting.split_once('=').ok_or_else(wrong)?;
            put(&mut table, &dotted(key.trim()).ok_or_else(wrong)?, value.trim())?;
        }
        Self::from_table(table)
    }

    /// Takes from `new` what can change while larder serves.
    pub fn take_up(&mut self, new: &Self) {
        self.server.take_up(&new.server);
        self.mirror.take_up(&new.mirror);
        for (name, options) in &mut self.upstream {
            new.upstream.get(name).into_iter().for_each(|new| options.take_up(new));
        }
    }

    /// The options in which it is another than `other`, or the sections that only one of them has.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let [one, other] = [self, other].map(|config| Value::try_from(config).ok());
        let mut found = Vec::new();
        differ(String::new(), one.as_ref(), other.as_ref(), &mut found);
        found
    }

    fn from_table(table: Table) -> Result<Self, ConfigError> {
        check_keys(&table)?;
        let mut config: Self = serde_path_to_error::deserialize(table).map_err(|error| {
            ConfigError(format!(
                "{}: {}",
                error.path().to_string().escape_debug(),
                one_line(error.inner().message()).replace("expected parsable string", "expected a size such as 50GiB")
            ))
        })?;
        if config.mirror.well_known {
            for name in WELL_KNOWN {
                config.upstream.entry(name.into()).or_default();
            }
        }
        config.upstream =
            config.upstream.into_iter().map(|(name, options)| (name.clone(), options.with_presets(&name))).collect();
        config.cache.check().map_err(ConfigError)?;
        config.server.check().map_err(ConfigError)?;
        config.mirror.check().map_err(ConfigError)?;
        let mut passthrough = config.upstream.iter().filter(|(_, options)| options.auth == AuthMode::Passthrough);
        passthrough.try_for_each(|(name, _)| config.server.check_passthrough(name)).map_err(ConfigError)?;
        if let Some(name) = config.upstream.keys().find(|name| !name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')) {
            return Err(ConfigError(format!("upstream.{name:?}: an upstream is named as in an image's name, by its host")));
        }
        if !config.upstream.contains_key(&config.mirror.default_upstream) {
            let names: Vec<&String> = config.upstream.keys().collect();
            let name = &config.mirror.default_upstream;
            return Err(ConfigError(format!("mirror.default_upstream {name:?} is no upstream; there are {names:?}")));
        }
        Ok(config)
    }
}

fn differ(at: String, one: Option<&Value>, other: Option<&Value>, found: &mut Vec<String>) {
    match (one, other) {
        (Some(Value::Table(one)), Some(Value::Table(other))) => {
            for key in one.keys().chain(other.keys().filter(|key| !one.contains_key(*key))) {
                let shown = if key.contains('.') { format!("{key:?}") } else { key.clone() };
                let at = if at.is_empty() { shown } else { format!("{at}.{shown}") };
                differ(at, one.get(key), other.get(key), found);
            }
        }
        _ if one == other => {}
        _ => found.push(at),
    }
}

fn parse(text: &str) -> Result<Table, ConfigError> {
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        ConfigError(format!("line {line}: {}", one_line(error.message())))
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

// --- keys ---

/// All options with their defaults; an upstream's stand under the name `*`.
fn schema() -> Table {
    let options = Config { upstream: BTreeMap::from([("*".into(), upstream::Options::default())]), ..Config::default() };
    Table::try_from(options).expect("defaults are plain data")
}

/// The default of an option, which tells its type; `None` if there is no such option.
fn default_of(key: &[String]) -> Option<Value> {
    let mut key: Vec<&str> = key.iter().map(String::as_str).collect();
    if key.first() == Some(&"upstream") && key.len() > 1 {
        key[1] = "*";
    }
    let mut at = Value::Table(schema());
    for part in key {
        at = at.get(part)?.clone();
    }
    Some(at)
}

fn check_keys(table: &Table) -> Result<(), ConfigError> {
    fn walk(table: &Table, path: &mut Vec<String>) -> Result<(), ConfigError> {
        for (key, value) in table {
            path.push(key.clone());
            if !(path.len() == 2 && path[0] == "upstream") && default_of(path).is_none() {
                return Err(unknown(path));
            }
            if let Value::Table(table) = value {
                walk(table, path)?;
            }
            path.pop();
        }
        Ok(())
    }
    walk(table, &mut Vec::new())
}

fn unknown(key: &[String]) -> ConfigError {
    fn all(table: &Table, path: &[String], keys: &mut Vec<Vec<String>>) {
        for (key, value) in table {
            let path = [path, std::slice::from_ref(key)].concat();
            if let Value::Table(table) = value {
                all(table, &path, keys);
            }
            keys.push(path);
        }
    }
    let mut keys = Vec::new();
    all(&schema(), &[], &mut keys);
    if let (Some("upstream"), Some(name)) = (key.first().map(String::as_str), key.get(1)) {
        keys.iter_mut().filter(|key| key.get(1).is_some_and(|part| part == "*")).for_each(|key| key[1].clone_from(name));
    }
    let text = written(key);
    let nearest = keys.iter().map(|key| written(key)).min_by_key(|known| strsim::damerau_levenshtein(known, &text));
    ConfigError(format!("unknown key {text}; did you mean {}?", nearest.unwrap_or_default()))
}

/// As it stands in a file: `upstream."docker.io".url`.
fn written(key: &[String]) -> String {
    let bare = |part: &String| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let parts: Vec<String> = key.iter().map(|part| if bare(part) { part.clone() } else { format!("{part:?}") }).collect();
    parts.join(".")
}

/// The parts of a dotted key, quoted where need be.
fn dotted(text: &str) -> Option<Vec<String>> {
    let mut table: Table = format!("{text} = true").parse().ok()?;
    let mut key = Vec::new();
    loop {
        let (part, value) = table.into_iter().next()?;
        key.push(part);
        match value {
            Value::Table(inner) => table = inner,
            _ => return Some(key),
        }
    }
}

/// The option that an environment variable means: `LARDER_SERVER_LISTEN`, `LARDER_UPSTREAM_DOCKER_IO_USERNAME`. What
/// belongs to no section is not ours: Kubernetes sets the like for a service named larder.
fn key_of_variable(name: &str, table: &Table) -> Result<Option<Vec<String>>, ConfigError> {
    let Some(rest) = name.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else { return Ok(None) };
    let Some((section, option)) = rest.split_once('_') else { return Ok(None) };
    if !schema().contains_key(section) || option.starts_with("service_") || option.starts_with("port") {
        return Ok(None);
    }
    if section != "upstream" {
        let key = vec![section.to_owned(), option.to_owned()];
        return if default_of(&key).is_some() { Ok(Some(key)) } else { Err(unknown(&key)) };
    }
    let configured = table.get("upstream").and_then(Value::as_table).into_iter().flat_map(Table::keys).map(String::as_str);
    let in_variable = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric(), "_").to_ascii_lowercase();
    for upstream in configured.chain(WELL_KNOWN) {
        if let Some(option) = option.strip_prefix(&format!("{}_", in_variable(upstream))) {
            let key = vec![section.to_owned(), upstream.to_owned(), option.to_owned()];
            return if default_of(&key).is_some() { Ok(Some(key)) } else { Err(unknown(&key)) };
        }
    }
    Err(ConfigError(format!("{} names no upstream that is configured; name it in the file first", name.escape_debug())))
}

/// Sets an option to what `text` means for its type.
fn put(table: &mut Table, key: &[String], text: &str) -> Result<(), ConfigError> {
    let wrong = |what: &str| ConfigError(format!("{}: {text:?} is {what}", written(key)));
    let value = match default_of(key) {
        None | Some(Value::Table(_)) => return Err(unknown(key)),
        Some(Value::Boolean(_)) => Value::Boolean(text.parse().map_err(|_| wrong("neither true nor false"))?),
        Some(Value::Integer(_)) => Value::Integer(text.parse().map_err(|_| wrong("no whole number"))?),
        // A list of tables.
        Some(Value::Array(_)) if text.starts_with("[{") => {
            let lists: Table = format!("list = {text}").parse().map_err(|_| wrong("no list of tables"))?;
            lists["list"].clone()
        }
        Some(Value::Array(_)) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::Array(items.map(|item| Value::String(item.into())).collect())
        }
        Some(_) => Value::String(text.into()),
    };
    let (last, sections) = key.split_last().ok_or_else(|| wrong("for no option"))?;
    let mut at = table;
    for section in sections {
        let inner = at.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        at = inner.as_table_mut().ok_or_else(|| ConfigError(format!("{section} must be a section")))?;
    }
    at.insert(last.clone(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Place;
    use bytesize::ByteSize;

    fn load(variables: &[(&str, &str)], settings: &[&str]) -> Result<Config, ConfigError> {
        let environment = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Config::load(None, environment, &settings.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn the_example_file_holds_every_option_at_its_default() {
        let text = include_str!("../config/larder.toml");
        let defaults = Config::from_toml("").unwrap();
        let written = Config::from_toml(text).unwrap();
        assert_eq!(written.upstream["docker.io"], defaults.upstream["docker.io"]);
        // The directory depends on who asks.
        assert_eq!(written.cache.dir, Path::new("/var/lib/larder"));
        assert_eq!(Config { cache: defaults.cache.clone(), ..written.clone() }, defaults);
        let cache = store::Options { dir: defaults.cache.dir.clone(), ..written.cache };
        assert_eq!(cache, defaults.cache);
        let mut keys = Vec::new();
        let schema = schema();
        for (section, options) in &schema {
            let options = if section == "upstream" { &options["*"] } else { options };
            keys.extend(options.as_table().unwrap().keys().map(|key| format!("\n{key} = ")));
        }
        let missing: Vec<_> = keys.iter().filter(|key| !text.contains(*key)).collect();
        assert!(missing.is_empty(), "not in config/larder.toml: {missing:?}");
    }

    #[test]
    fn the_other_examples_are_valid() {
        for text in [
            include_str!("../config/dockerhub.toml"),
            include_str!("../config/multi-upstream.toml"),
            include_str!("../config/passthrough.toml"),
            include_str!("../config/company.toml"),
            include_str!("../config/container.toml"),
        ] {
            let doubts = Config::from_toml(text).unwrap().server.doubts();
            assert!(doubts.is_empty(), "{doubts:?}");
        }
    }

    /// The image had `LARDER_SERVER_LISTEN=0.0.0.0:5000` in its environment, which opened a listener that asks nobody beside
    /// whatever doors a mounted file had.
    #[test]
    fn in_a_container_a_file_alone_says_where_larder_listens() {
        let image = include_str!("../Dockerfile");
        assert!(!image.contains("LARDER_SERVER"), "the environment goes over every file");
        assert!(image.contains("COPY config/container.toml /etc/larder/larder.toml\n"));
        assert!(image.contains("CMD [\"serve\", \"--config\", \"/etc/larder/larder.toml\"]"));
        let listen = Config::from_toml(include_str!("../config/container.toml")).unwrap().server.listen;
        assert_eq!(listen, Some(Place::Tcp(([0, 0, 0, 0], 5000).into())));
    }

    #[test]
    fn flags_go_over_the_environment() {
        let config = load(
            &[
                ("LARDER_SERVER_LISTEN", "0.0.0.0:1"),
                ("LARDER_CACHE_MAX_SIZE", "1GiB"),
                ("LARDER_UPSTREAM_DOCKER_IO_USERNAME", "12345"),
                ("LARDER_UPSTREAM_DOCKER_IO_TOKEN_HOSTS", "a.example, b.example"),
                ("LARDER_PORT", "tcp://10.0.0.1:5000"),
                ("LARDER_SERVICE_HOST", "10.0.0.1"),
                ("LARDER_SERVER_PORT_5000_TCP", "of a service named larder-server"),
                ("OTHER", "x"),
            ],
            &[
                "server.listen=0.0.0.0:2",
                "mirror.offline=true",
                "mirror.tag_ttls=latest=30s,v*=forever",
                "upstream.\"docker.io\".tag_ttl=5s",
            ],
        )
        .unwrap();
        assert_eq!(config.server.listen, Some(Place::Tcp(([0, 0, 0, 0], 2).into())));
        assert_eq!(config.cache.max_size, ByteSize::gib(1));
        assert!(config.mirror.offline);
        assert_eq!(config.mirror.tag_ttls.iter().map(ToString::to_string).collect::<Vec<_>>(), ["latest=30s", "v*=forever"]);
        let hub = &config.upstream["docker.io"];
        assert_eq!((hub.username.as_str(), hub.tag_ttl.as_secs()), ("12345", 5));
        assert_eq!(hub.token_hosts, ["a.example", "b.example", "auth.docker.io"]);
    }

    #[test]
    fn the_operators_listener_can_be_put_elsewhere_or_left_out() {
        let listen = |setting: &str| load(&[("LARDER_ADMIN_LISTEN", "0.0.0.0:1")], &[setting]).unwrap().admin.listen;
        assert_eq!(Config::default().admin.listen, "127.0.0.1:5001".parse().ok());
        assert_eq!(listen("mirror.offline=false"), "0.0.0.0:1".parse().ok());
        assert_eq!(listen("admin.listen="), None);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_that_says_what_to_do() {
        let error = |text: &str| Config::from_toml(text).unwrap_err().to_string();
        assert_eq!(error("[server]\nlsten = \"x\""), "unknown key server.lsten; did you mean server.listen?");
        assert_eq!(error("[cach]\nx = 1"), "unknown key cach; did you mean cache?");
        assert_eq!(
            error("[upstream.\"docker.io\"]\nuser = \"x\""),
            "unknown key upstream.\"docker.io\".user; did you mean upstream.\"docker.io\".url?"
        );
        assert!(error("[cache]\nmax_size = \"lots\"").starts_with("cache.max_size: "));
        assert!(error("[cache]\nmin_free = \"101%\"").contains("neither a size such as"));
        assert!(error("[cache]\nmax_size = \"1MiB\"").contains("must be at least"));
        assert!(error("[server]\nlisten = \"nowhere\"").starts_with("server.listen: "));
        assert!(error("[admin]\nlisten = \"here\"").starts_with("admin.listen: \"here\" is no address such as "));
        assert!(error("[mirror]\ntag_ttl = \"soon\"").starts_with("mirror.tag_ttl: "));
        assert!(
            error("[mirror]\ntag_ttls = [\"latest\"]").starts_with("mirror.tag_ttls[0]: \"latest\" is no TTL of tags; write ")
        );
        assert!(error("[mirror]\nstretch_below = 101").starts_with("mirror.stretch_below is 101; "));
        assert!(error("[mirror]\nkeep = [\"Nginx:1.27\"]").starts_with("mirror.keep[0]: \"Nginx:1.27\" is no image such as "));
        assert!(error("[mirror]\nkeep_platforms = [\"amd64\"]").starts_with("mirror.keep_platforms: \"amd64\" is no platform; "));
        assert!(error("[mirror]\nkeep_every = \"1s\"").starts_with("mirror.keep_every must be at least "));
        assert!(error("[mirror]\nstretch_factor = 0").starts_with("mirror.stretch_factor is 0; "));
        assert!(
            error("[mirror]\norphan_fills = 9000000000000000000").starts_with("mirror.orphan_fills is 9000000000000000000; ")
        );
        assert!(error("[mirror]\ndefault_upstream = \"x\"").contains("is no upstream"));
        assert!(error("[server\n").starts_with("line 1: "));
        assert!(error("[upstream.\"a\\nb\"]\nurl = 1").starts_with("upstream.a\\nb.url: "));
        for (variables, settings) in [
            (&[("LARDER_SERVER_LISTN", "x")][..], &[][..]),
            (&[("LARDER_UPSTREAM_NOWHERE_URL", "x")], &[]),
            (&[("LARDER_MIRROR_OFFLINE", "maybe")], &[]),
            (&[], &["server.listn=x"]),
            (&[], &["server=x"]),
            (&[], &["nonsense"]),
            (&[], &["a\nb"]),
            (&[("LARDER_UPSTREAM_A\nB", "x")], &[]),
        ] {
            let error = load(variables, settings).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
