//! What larder is built of: few crates, each with its reason, none with a known hole, all from one source.

use std::fs;

/// Older versions have holes that matter here: truncation that nobody notices, floods, forged certificates.
const FLOORS: [(&str, [u32; 3]); 4] =
    [("hyper", [1, 11, 0]), ("h2", [0, 4, 16]), ("rustls", [0, 23, 46]), ("rustls-webpki", [0, 103, 13])];

/// Second ways to do what is done already, and those with a history.
const BANNED: [&str; 7] = ["openssl-sys", "native-tls", "aws-lc-sys", "tokio-tar", "async-tar", "async-std", "serde_yaml"];

fn read(name: &str) -> String {
    fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Name, version and source of every package that is built in.
fn locked() -> Vec<(String, [u32; 3], Option<String>)> {
    let lock: toml::Table = read("Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap().iter();
    let text = |package: &toml::Value, key: &str| package.get(key).map(|value| value.as_str().unwrap().to_owned());
    packages
        .map(|package| {
            let version = text(package, "version").unwrap();
            let numbers: Vec<u32> = version.split(['.', '-', '+']).take(3).map(|part| part.parse().unwrap()).collect();
            (text(package, "name").unwrap(), numbers.try_into().unwrap(), text(package, "source"))
        })
        .collect()
}

#[test]
fn no_crate_is_older_than_its_last_hole() {
    let locked = locked();
    for (name, floor) in FLOORS {
        let versions: Vec<_> = locked.iter().filter(|(known, ..)| known == name).collect();
        assert!(!versions.is_empty(), "{name} is not used any more");
        assert!(versions.iter().all(|(_, version, _)| *version >= floor), "{versions:?}");
    }
}

#[test]
fn no_banned_crate_is_built_in() {
    let banned: Vec<_> = locked().into_iter().map(|(name, ..)| name).filter(|name| BANNED.contains(&name.as_str())).collect();
    assert!(banned.is_empty(), "{banned:?}");
}

#[test]
fn every_crate_comes_from_crates_io() {
    for (name, _, source) in locked().into_iter().filter(|(name, ..)| name != "larder") {
        assert_eq!(source.as_deref(), Some("registry+https://github.com/rust-lang/crates.io-index"), "{name}");
    }
}

#[test]
fn every_dependency_states_its_reason() {
    let manifest = read("Cargo.toml");
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("[profile").next().unwrap();
    for line in dependencies.lines().filter(|line| line.contains('=')) {
        assert!(line.contains(" # "), "{line}");
    }
}
