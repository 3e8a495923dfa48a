//! What larder is built of: few crates, each with its reason, none with a known hole, all from one source. `deny.toml` says what is
//! allowed; `cargo deny` asks the same.

use std::fs;
use std::process::Command;

type Version = [u32; 3];

fn read(name: &str) -> String {
    fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn rules() -> toml::Table {
    read("deny.toml").parse().unwrap()
}

fn version(text: &str) -> Version {
    let numbers: Vec<u32> = text.split(['.', '-', '+']).take(3).map(|part| part.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

/// Name, version and source of every package that is built in.
fn locked() -> Vec<(String, Version, Option<String>)> {
    let lock: toml::Table = read("Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap().iter();
    let text = |package: &toml::Value, key: &str| package.get(key).map(|value| value.as_str().unwrap().to_owned());
    packages
        .map(|package| (text(package, "name").unwrap(), version(&text(package, "version").unwrap()), text(package, "source")))
        .collect()
}

/// The crates that `deny.toml` bans: their names, and below which version, where others will do.
fn banned() -> Vec<(String, Option<Version>)> {
    let rules = rules();
    let banned = rules["bans"]["deny"].as_array().unwrap().iter().map(|ban| {
        let (name, below) = match ban["crate"].as_str().unwrap().split_once(":<") {
            Some((name, below)) => (name, Some(version(below))),
            None => (ban["crate"].as_str().unwrap(), None),
        };
        assert!(ban["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{name} is banned without a reason");
        (name.to_owned(), below)
    });
    banned.collect()
}

#[test]
fn nothing_is_built_in_that_is_banned_or_older_than_its_last_hole() {
    let (locked, banned) = (locked(), banned());
    for (name, below) in &banned {
        let versions: Vec<_> = locked.iter().filter(|(known, ..)| known == name).map(|(_, version, _)| *version).collect();
        let wrong = versions.iter().any(|version| below.is_none_or(|below| *version < below));
        assert!(!wrong, "{name} {versions:?}, and not {below:?}");
    }
    for (name, floor) in [("hyper", [1, 11, 0]), ("h2", [0, 4, 16]), ("rustls", [0, 23, 46]), ("rustls-webpki", [0, 103, 13])] {
        assert!(locked.iter().any(|(known, ..)| known == name), "{name} is not used any more");
        assert!(banned.iter().any(|(known, below)| known == name && below.is_some_and(|below| below >= floor)), "{name}");
    }
}

#[test]
fn every_crate_comes_from_crates_io() {
    for (name, _, source) in locked().into_iter().filter(|(name, ..)| !["larder", "larder-fuzz"].contains(&name.as_str())) {
        assert_eq!(source.as_deref(), Some("registry+https://github.com/rust-lang/crates.io-index"), "{name}");
    }
}

/// Whether the terms of an SPDX expression can be met with what is allowed. A slash is an old way to write OR.
fn is_met(expression: &str, allowed: &impl Fn(&str) -> bool) -> bool {
    let expression = expression.trim();
    let mut depth = 0;
    let outside: Vec<bool> = expression
        .chars()
        .map(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        })
        .collect();
    let parts = |word: &str| {
        let cuts = expression.match_indices(word).map(|(at, _)| at).filter(|at| outside[*at]);
        let (mut parts, mut from) = (Vec::new(), 0);
        for at in cuts {
            parts.push(&expression[from..at]);
            from = at + word.len();
        }
        parts.push(&expression[from..]);
        parts
    };
    for (word, all) in [(" OR ", false), ("/", false), (" AND ", true)] {
        let parts = parts(word);
        if parts.len() > 1 {
            return if all {
                parts.iter().all(|part| is_met(part, allowed))
            } else {
                parts.iter().any(|part| is_met(part, allowed))
            };
        }
    }
    match expression.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => is_met(inner, allowed),
        None => allowed(expression),
    }
}

#[test]
fn every_crate_has_a_licence_that_is_allowed() {
    let arguments =
        ["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rules = rules();
    let has = |list: &toml::Value, licence: &str| list.as_array().unwrap().iter().any(|known| known.as_str() == Some(licence));
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100);
    for package in packages {
        let (name, licence) = (package["name"].as_str().unwrap(), package["license"].as_str().unwrap_or("none"));
        let exceptions = rules["licenses"]["exceptions"].as_array().unwrap();
        let excepted =
            |licence: &str| exceptions.iter().any(|one| one["crate"].as_str() == Some(name) && has(&one["allow"], licence));
        assert!(is_met(licence, &|licence| has(&rules["licenses"]["allow"], licence) || excepted(licence)), "{name}: {licence}");
    }
}

#[test]
fn an_expression_of_licences_is_read_as_it_is_meant() {
    let allowed = |licence: &str| ["MIT", "ISC"].contains(&licence);
    for good in ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "MIT AND ISC", "(GPL-3.0 OR MIT) AND ISC", "(MIT)"] {
        assert!(is_met(good, &allowed), "{good}");
    }
    for bad in
        ["none", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "MIT WITH something", "GPL-3.0 OR (MIT AND GPL-2.0)"]
    {
        assert!(!is_met(bad, &allowed), "{bad}");
    }
}

#[test]
fn every_dependency_states_its_reason() {
    for (manifest, end) in [("Cargo.toml", "[profile"), ("fuzz/Cargo.toml", "[[bin]]")] {
        let text = read(manifest);
        let dependencies = text.split("[dependencies]").nth(1).unwrap().split(end).next().unwrap();
        for line in dependencies.lines().filter(|line| line.contains('=') && !line.contains("path =")) {
            assert!(line.contains(" # "), "{manifest}: {line}");
        }
    }
}
