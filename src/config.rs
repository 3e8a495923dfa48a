//! The configuration: one TOML file, over it the environment, over that `--set`.
//!
//! Each option is declared next to the code that reads it; here they come together. Plain data: nothing is built from it
//! before `app`.

mod keys;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::oci::Pattern;
use crate::upstream::{AuthMode, DOCKER_HUB, WELL_KNOWN};
use crate::{app, mirror, server, store, upstream};

use keys::{check_keys, default_of, dotted, key_of_variable, put};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: server::Options,
    pub admin: server::AdminOptions,
    pub cache: store::Options,
    pub mirror: mirror::Options,
    pub log: app::LogOptions,
    pub traces: app::TraceOptions,
    pub upstream: BTreeMap<String, upstream::Options>,
}

/// What is wrong with a configuration, in one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Where these are at their default, they bound nothing.
const BOUNDS: [&str; 6] = ["client_connections", "client_requests", "client_rate", "max_rate", "allow", "deny"];
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
            Some(path) => read(path)?,
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
        self.log.level = new.log.level;
        for (name, options) in &mut self.upstream {
            new.upstream.get(name).into_iter().for_each(|new| options.take_up(new));
        }
    }

    /// The options in which it is another than `other`, or the sections that only one of them has.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let [one, other] = [self, other].map(|config| Value::try_from(config).ok());
        let mut found = Vec::new();
        differ(&mut Vec::new(), one.as_ref(), other.as_ref(), &mut |key, _, _| found.push(keys::written(key)));
        found
    }

    /// What an operator may not have meant, in a sentence each that says what to do. larder does it all the same.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let of_upstreams = self.upstream.iter().flat_map(|(name, options)| options.doubts(name));
        self.server.doubts().into_iter().chain(of_upstreams).collect()
    }

    /// The options that bound what may be had, or how much, and of which nothing is left in `after`.
    #[must_use]
    pub fn lifted_by(&self, after: &Self) -> Vec<String> {
        let [one, other] = [self, after].map(|config| Value::try_from(config).ok());
        let mut found = Vec::new();
        differ(&mut Vec::new(), one.as_ref(), other.as_ref(), &mut |key, _, now| {
            let bounds = key.last().is_some_and(|option| BOUNDS.contains(&option.as_str()));
            if bounds && now.cloned() == default_of(key) {
                found.push(keys::written(key));
            }
        });
        let listeners = self.server.listener.iter().zip(&after.server.listener);
        let without_rules = listeners.filter(|(before, after)| !before.rule.is_empty() && after.rule.is_empty());
        found.extend(without_rules.map(|(listener, _)| format!("the rules of server.listener at {}", listener.listen)));
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
        config.traces.check().map_err(ConfigError)?;
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
        for listener in &config.server.listener {
            for pattern in listener.rule.iter().flat_map(server::Rule::patterns) {
                config.check_pattern(pattern).map_err(|what| {
                    ConfigError(format!("server.listener at {}: a rule has \"{pattern}\", {what}", listener.listen))
                })?;
            }
        }
        Ok(config)
    }

    /// A rule's pattern must be able to match: what it denied would be denied to nobody.
    fn check_pattern(&self, pattern: &Pattern) -> Result<(), String> {
        let Some(upstream) = pattern.first_component() else { return Ok(()) };
        if !self.upstream.contains_key(upstream) && !self.mirror.any_public {
            let meant = self.upstream.iter().find(|(name, options)| {
                name.eq_ignore_ascii_case(upstream) || options.aliases.iter().chain(&options.hosts).any(|alias| alias == upstream)
            });
            return Err(match meant {
                Some((name, _)) => format!("whose upstream is called {name} in rules"),
                None => format!("and {upstream} is no upstream; a pattern begins with one, as \"docker.io/library/*\" does"),
            });
        }
        let text = pattern.to_string();
        let rest = text.strip_prefix(upstream).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
        if rest.is_empty() {
            return Err(format!("which is no repository; all of {upstream} are \"{upstream}/**\""));
        }
        if upstream == DOCKER_HUB && !rest.contains('/') && !rest.contains("**") {
            return Err(format!("which no repository there is called; Docker's own are \"{upstream}/library/{rest}\""));
        }
        Ok(())
    }
}

/// Shows what is another in two, with its key.
fn differ(
    at: &mut Vec<String>,
    one: Option<&Value>,
    other: Option<&Value>,
    show: &mut impl FnMut(&[String], Option<&Value>, Option<&Value>),
) {
    match (one, other) {
        (Some(Value::Table(one)), Some(Value::Table(other))) => {
            for key in one.keys().chain(other.keys().filter(|key| !one.contains_key(*key))) {
                at.push(key.clone());
                differ(at, one.get(key), other.get(key), show);
                at.pop();
            }
        }
        _ if one == other => {}
        _ => show(at, one, other),
    }
}

/// Whether a file of options has none.
///
/// # Errors
/// See [`ConfigError`].
pub fn says_nothing(file: &Path) -> Result<bool, ConfigError> {
    Ok(read(file)?.is_empty())
}

fn read(file: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(file).map_err(|error| ConfigError(format!("{}: {error}", file.display())))?;
    parse(&text).map_err(|error| ConfigError(format!("{}: {error}", file.display())))
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

#[cfg(test)]
mod tests {
    use super::keys::schema;
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
            let doubts = Config::from_toml(text).unwrap().doubts();
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
                "traces.sample_ratio=0.25",
                "mirror.tag_ttls=latest=30s,v*=forever",
                "upstream.\"docker.io\".tag_ttl=5s",
            ],
        )
        .unwrap();
        assert_eq!(config.server.listen, Some(Place::Tcp(([0, 0, 0, 0], 2).into())));
        assert_eq!(config.cache.max_size, ByteSize::gib(1));
        assert!(config.mirror.offline);
        assert!((config.traces.sample_ratio - 0.25).abs() < f64::EPSILON);
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

    /// What they denied was denied to nobody, and nothing was said.
    #[test]
    fn rules_that_could_never_match_are_refused() {
        let with = |pattern: &str, more: &str| {
            let rule = format!("rule = [{{ allow = [\"**\"] }}, {{ deny = [\"{pattern}\"] }}]");
            Config::from_toml(&format!("{more}\n[[server.listener]]\nlisten = \"127.0.0.1:1\"\n{rule}"))
                .map_err(|error| error.to_string())
        };
        for (pattern, says) in [
            ("docker.io/nginx", "Docker's own are \"docker.io/library/nginx\""),
            ("docker.io/*", "Docker's own are \"docker.io/library/*\""),
            ("registry-1.docker.io/**", "whose upstream is called docker.io in rules"),
            ("index.docker.io/library/app", "whose upstream is called docker.io in rules"),
            ("GHCR.io/**", "whose upstream is called ghcr.io in rules"),
            ("library/app", "and library is no upstream"),
            ("docker.io", "which is no repository; all of docker.io are \"docker.io/**\""),
        ] {
            let error = with(pattern, "").unwrap_err();
            assert!(error.contains(says) && error.contains(&format!("a rule has \"{pattern}\"")), "{error}");
        }
        for pattern in
            ["docker.io/library/nginx", "docker.io/**", "docker.io/org/*", "**/secret", "*/library/app", "quay.io/app", "**"]
        {
            with(pattern, "").unwrap();
        }
        assert!(with("registry.example/**", "").is_err() && with("registry.example/**", "mirror.any_public = true").is_ok());
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
        assert!(error("[traces]\nsample_ratio = 1.5").starts_with("traces.sample_ratio is 1.5; "));
        assert!(error("[traces]\nendpoint = \"http://a:b@x/\"").starts_with("traces.endpoint must be a URL without a password"));
        assert!(error("[mirror]\nstretch_factor = 0").starts_with("mirror.stretch_factor is 0; "));
        assert!(
            error("[mirror]\norphan_fills = 9000000000000000000").starts_with("mirror.orphan_fills is 9000000000000000000; ")
        );
        assert!(error("[mirror]\ndefault_upstream = \"x\"").contains("is no upstream"));
        assert!(error("[server\n").starts_with("line 1: "));
        let twice = "[server]\nlisten = \"[::]:5000\"\n[[server.listener]]\nlisten = \"[::]:5000\"";
        assert!(error(twice).starts_with("server.listener: two are at [::]:5000; "));
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
