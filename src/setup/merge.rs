//! Files that others wrote and clients read, with larder added: whatever else stands there stays as it is.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use toml_edit::{Array, DocumentMut, Item, Table, TableLike, value};

/// Docker's daemon.json, with `mirror` as the first that is asked.
///
/// # Errors
/// One line that says why the text is not understood.
pub(super) fn daemon_json(text: Option<&str>, mirror: &str) -> Result<String, String> {
    const KEY: &str = "registry-mirrors";
    let text = text.unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(format!("{{\n  \"{KEY}\": [\"{mirror}\"]\n}}\n"));
    }
    let wrong = |error: serde_json::Error| format!("it is no object of JSON: {error}");
    let options: BTreeMap<&str, &RawValue> = serde_json::from_str(text).map_err(wrong)?;
    // It is a part of the text, and says so where it is.
    let place = |part: &RawValue| part.get().as_ptr() as usize - text.as_ptr() as usize;
    let (at, insertion) = match options.get(KEY) {
        None => {
            let at = text.find('{').unwrap_or_default() + 1;
            (at, format!("\n  \"{KEY}\": [\"{mirror}\"]{}", if options.is_empty() { "\n" } else { "," }))
        }
        Some(list) => {
            let mirrors: Vec<String> =
                serde_json::from_str(list.get()).map_err(|error| format!("\"{KEY}\" is no list of URLs: {error}"))?;
            if mirrors.first().is_some_and(|first| first.trim_end_matches('/') == mirror.trim_end_matches('/')) {
                return Ok(text.to_owned());
            }
            (place(list) + 1, format!("\"{mirror}\"{}", if mirrors.is_empty() { "" } else { ", " }))
        }
    };
    Ok([&text[..at], &insertion, &text[at..]].concat())
}

/// A hosts.toml, for containerd and for Docker 29: `mirror` is asked before the hosts that stand there, and `server` last.
///
/// # Errors
/// One line that says why the text is not understood.
pub(super) fn hosts_toml(text: Option<&str>, server: &str, mirror: &str, ca_file: Option<&str>) -> Result<String, String> {
    let fresh = format!("server = {server:?}\n");
    let mut file = document(text.filter(|text| !text.trim().is_empty()).unwrap_or(&fresh))?;
    let mut host = Table::new();
    host.insert("capabilities", value(["pull", "resolve"].into_iter().collect::<Array>()));
    let hosts = file.entry("host").or_insert_with(sections).as_table_mut().ok_or("its hosts are not sections [host.\"URL\"]")?;
    // They are asked in the order in which they stand.
    let first = hosts.iter().filter_map(|(_, host)| host.as_table()?.position()).min();
    if let Some(there) = hosts.get(mirror)
        && first.is_some_and(|first| there.as_table().and_then(Table::position) != Some(first))
    {
        return Err(format!("{mirror} is there, behind other hosts; put it before them"));
    }
    host.set_position(first.map(|first| first - 1));
    host.decor_mut().set_prefix("\n");
    let host = hosts.entry(mirror).or_insert(Item::Table(host)).as_table_like_mut();
    let host = host.ok_or_else(|| format!("host.{mirror:?} is no section"))?;
    if let Some(file) = ca_file {
        set(host, "ca", file);
    }
    Ok(file.to_string())
}

/// A buildkitd.toml in which each registry has larder as its first mirror.
///
/// # Errors
/// One line that says why the text is not understood.
pub(super) fn buildkitd_toml(
    text: Option<&str>,
    names: &[&str],
    authority: &str,
    tls: bool,
    ca_file: Option<&str>,
) -> Result<String, String> {
    let mut file = document(text.unwrap_or_default())?;
    let registries = file.entry("registry").or_insert_with(sections).as_table_like_mut().ok_or("registry is no section")?;
    for name in names {
        let mirrors = of(registries, name)?.entry("mirrors").or_insert_with(|| value(Array::new()));
        let mirrors = mirrors.as_array_mut().ok_or_else(|| format!("registry.{name:?}.mirrors is no list"))?;
        if mirrors.get(0).and_then(toml_edit::Value::as_str) != Some(authority) {
            mirrors.insert(0, authority);
            // They stand apart, as they were written.
            if let Some(second) =
                mirrors.get_mut(1).filter(|second| second.decor().prefix().is_none_or(|blank| blank.as_str() == Some("")))
            {
                second.decor_mut().set_prefix(" ");
            }
        }
    }
    let larder = of(registries, authority)?;
    match ca_file {
        _ if !tls => set(larder, "http", true),
        None => {}
        Some(ca_file) => {
            let files = larder.entry("ca").or_insert_with(|| value(Array::new()));
            let files = files.as_array_mut().ok_or_else(|| format!("registry.{authority:?}.ca is no list"))?;
            if files.iter().all(|file| file.as_str() != Some(ca_file)) {
                files.push(ca_file);
            }
        }
    }
    if larder.is_empty() {
        registries.remove(authority);
    }
    Ok(file.to_string())
}

fn document(text: &str) -> Result<DocumentMut, String> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        format!("line {line}: it is no TOML: {}", error.message().lines().collect::<Vec<_>>().join(" "))
    })
}

/// `[a.b]` without an `[a]`.
fn sections() -> Item {
    let mut table = Table::new();
    table.set_implicit(true);
    Item::Table(table)
}

fn of<'a>(registries: &'a mut dyn TableLike, name: &str) -> Result<&'a mut dyn TableLike, String> {
    let registry = registries.entry(name).or_insert(Item::Table(Table::new()));
    registry.as_table_like_mut().ok_or_else(|| format!("registry.{name:?} is no section"))
}

/// What says that already stays as it is written.
fn set(table: &mut dyn TableLike, key: &str, new: impl Into<toml_edit::Value>) {
    let new = new.into();
    let says = |item: &Item| item.as_value().is_some_and(|old| old.to_string().trim() == new.to_string().trim());
    if !table.get(key).is_some_and(says) {
        table.insert(key, value(new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARDER: &str = "http://127.0.0.1:5000";

    #[test]
    fn docker_asks_larder_first_and_its_other_options_stay() {
        for (before, after) in [
            ("", "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5000\"]\n}\n"),
            ("{}", "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5000\"]\n}"),
            (
                "{\n\t\"debug\":true,\n\t\"a\" : {\"registry-mirrors\": 1}\n}\n",
                "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5000\"],\n\t\"debug\":true,\n\t\"a\" : {\"registry-mirrors\": 1}\n}\n",
            ),
            (
                "{\"ü\": 1, \"registry-mirrors\": [ \"https://old.example\" ] }",
                "{\"ü\": 1, \"registry-mirrors\": [\"http://127.0.0.1:5000\",  \"https://old.example\" ] }",
            ),
            ("{\"registry-mirrors\":[]}", "{\"registry-mirrors\":[\"http://127.0.0.1:5000\"]}"),
            ("{\"registry-mirrors\":[\"http://127.0.0.1:5000/\"]}", "{\"registry-mirrors\":[\"http://127.0.0.1:5000/\"]}"),
        ] {
            let merged = daemon_json(Some(before), LARDER).unwrap();
            assert_eq!(merged, after);
            assert_eq!(daemon_json(Some(&merged), LARDER).unwrap(), merged, "once is enough");
            serde_json::from_str::<serde_json::Value>(&merged).unwrap();
        }
        for wrong in ["[]", "{", "{\"a\": 1,}", "nonsense", "{\"registry-mirrors\": \"http://x\"}", "{} {}"] {
            assert_eq!(daemon_json(Some(wrong), LARDER).unwrap_err().lines().count(), 1, "{wrong}");
        }
    }

    #[test]
    fn containerd_asks_larder_before_other_hosts() {
        let hosts = |text| hosts_toml(text, "https://ghcr.io", LARDER, None);
        let fresh = "server = \"https://ghcr.io\"\n\n[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        assert_eq!(hosts(None).unwrap(), fresh);
        let before = "# by hand\nserver = \"https://other\" # where else\n\n# the old one\n[host.\"https://old.example\"]\n  capabilities = [\"pull\"]\n  [host.\"https://old.example\".header]\n    x-y = \"z\"\n";
        let after = hosts(Some(before)).unwrap();
        let ours = "\n[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        assert_eq!(after.replace(ours, ""), before);
        assert!(after.find(LARDER) < after.find("old.example"), "{after}");
        assert_eq!((hosts(Some(&after)).unwrap(), hosts(Some(fresh)).unwrap()), (after.clone(), fresh.into()), "once is enough");
        let with_ca = |text| hosts_toml(Some(text), "", LARDER, Some("/etc/ca.pem"));
        assert_eq!(with_ca(fresh).unwrap(), fresh.to_owned() + "ca = \"/etc/ca.pem\"\n");
        assert_eq!(with_ca(&with_ca(fresh).unwrap()).unwrap(), with_ca(fresh).unwrap());
        let behind = format!("[host.\"https://old.example\"]\n[host.{LARDER:?}]\n");
        for wrong in ["server = ", "host = \"x\"", "[[host]]", behind.as_str()] {
            assert_eq!(hosts(Some(wrong)).unwrap_err().lines().count(), 1, "{wrong}");
        }
    }

    #[test]
    fn buildkit_has_larder_as_each_registrys_first_mirror() {
        let add = |text| buildkitd_toml(text, &["docker.io", "ghcr.io"], "127.0.0.1:5000", false, None);
        let fresh = add(None).unwrap();
        assert_eq!(
            fresh,
            "[registry.\"docker.io\"]\nmirrors = [\"127.0.0.1:5000\"]\n\n[registry.\"ghcr.io\"]\nmirrors = [\"127.0.0.1:5000\"]\n\n\
             [registry.\"127.0.0.1:5000\"]\nhttp = true\n"
        );
        let before = "debug = true # always\n\n[registry.\"docker.io\"]\n  mirrors = [\"old.example\"] # ours\n  http = true\n\n[worker.oci]\n  enabled = true\n";
        let after = add(Some(before)).unwrap();
        assert!(after.contains("  mirrors = [\"127.0.0.1:5000\", \"old.example\"] # ours\n  http = true\n"), "{after}");
        assert!(after.starts_with("debug = true # always\n") && after.contains("[worker.oci]\n  enabled = true\n"), "{after}");
        assert_eq!((add(Some(&fresh)).unwrap(), add(Some(&after)).unwrap()), (fresh.clone(), after.clone()), "once is enough");
        let by_tls = buildkitd_toml(None, &["a.io"], "m:1", true, Some("/ca.pem")).unwrap();
        assert_eq!(by_tls, "[registry.\"a.io\"]\nmirrors = [\"m:1\"]\n\n[registry.\"m:1\"]\nca = [\"/ca.pem\"]\n");
        assert_eq!(buildkitd_toml(None, &["a.io"], "m:1", true, None).unwrap(), "[registry.\"a.io\"]\nmirrors = [\"m:1\"]\n");
        for wrong in ["registry = 1", "[registry]\n\"docker.io\" = 2", "[registry.\"docker.io\"]\nmirrors = \"x\"", "["] {
            assert_eq!(add(Some(wrong)).unwrap_err().lines().count(), 1, "{wrong}");
        }
    }
}
