//! The keys of options: which there are, as they stand in a file, in the environment and in flags, and what texts mean for them.

use std::collections::BTreeMap;

use toml::{Table, Value};

use crate::upstream::{self, WELL_KNOWN};

use super::{Config, ConfigError, PREFIX};

/// All options with their defaults; an upstream's stand under the name `*`.
pub(super) fn schema() -> Table {
    let options = Config { upstream: BTreeMap::from([("*".into(), upstream::Options::default())]), ..Config::default() };
    Table::try_from(options).expect("defaults are plain data")
}

/// The default of an option, which tells its type; `None` if there is no such option.
pub(super) fn default_of(key: &[String]) -> Option<Value> {
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

pub(super) fn check_keys(table: &Table) -> Result<(), ConfigError> {
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

pub(super) fn unknown(key: &[String]) -> ConfigError {
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
pub(super) fn written(key: &[String]) -> String {
    let bare = |part: &String| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let parts: Vec<String> = key.iter().map(|part| if bare(part) { part.clone() } else { format!("{part:?}") }).collect();
    parts.join(".")
}

/// The parts of a dotted key, quoted where need be.
pub(super) fn dotted(text: &str) -> Option<Vec<String>> {
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
pub(super) fn key_of_variable(name: &str, table: &Table) -> Result<Option<Vec<String>>, ConfigError> {
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
pub(super) fn put(table: &mut Table, key: &[String], text: &str) -> Result<(), ConfigError> {
    let wrong = |what: &str| ConfigError(format!("{}: {text:?} is {what}", written(key)));
    let value = match default_of(key) {
        None | Some(Value::Table(_)) => return Err(unknown(key)),
        Some(Value::Boolean(_)) => Value::Boolean(text.parse().map_err(|_| wrong("neither true nor false"))?),
        Some(Value::Integer(_)) => Value::Integer(text.parse().map_err(|_| wrong("no whole number"))?),
        Some(Value::Float(_)) => Value::Float(text.parse().map_err(|_| wrong("no number"))?),
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
