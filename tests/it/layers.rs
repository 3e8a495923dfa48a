//! Floors: a file uses what is below it, never what is above or beside.

use std::fs;
use std::path::{Path, PathBuf};

/// What each part of the crate may use. Its own parts it may always use.
const MAY_USE: [(&str, &[&str]); 24] = [
    ("oci", &[]),
    ("clock", &[]),
    ("allowance", &[]),
    ("background", &[]),
    ("network", &[]),
    ("brake", &["clock", "network"]),
    ("current", &[]),
    ("sync", &["background"]),
    ("flight", &["sync"]),
    ("room", &["network", "sync"]),
    ("heavy", &["flight", "room"]),
    ("lines", &[]),
    ("metrics", &[]),
    ("setup", &[]),
    ("traces", &[]),
    ("store", &["oci", "clock", "sync", "flight", "metrics"]),
    ("upstream", &["oci", "clock", "current", "sync", "flight", "heavy", "metrics", "traces", "allowance", "network", "room"]),
    (
        "mirror",
        &[
            "oci",
            "clock",
            "background",
            "brake",
            "current",
            "sync",
            "flight",
            "heavy",
            "metrics",
            "traces",
            "room",
            "store",
            "upstream",
        ],
    ),
    ("orders", &["oci", "clock", "heavy", "metrics", "room", "store", "upstream", "mirror"]),
    ("dashboard", &["oci", "clock", "metrics", "store", "upstream", "mirror", "orders"]),
    (
        "server",
        &[
            "oci",
            "clock",
            "background",
            "current",
            "flight",
            "heavy",
            "lines",
            "metrics",
            "traces",
            "allowance",
            "brake",
            "network",
            "setup",
            "upstream",
            "mirror",
            "orders",
            "dashboard",
        ],
    ),
    ("config", &["oci", "server", "mirror", "store", "upstream", "app"]),
    (
        "app",
        &[
            "oci",
            "clock",
            "current",
            "lines",
            "metrics",
            "traces",
            "setup",
            "store",
            "upstream",
            "mirror",
            "orders",
            "dashboard",
            "server",
            "config",
        ],
    ),
    ("cli", &["oci", "clock", "background", "lines", "metrics", "setup", "store", "orders", "config", "app"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_use_goes_downward() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 30, "the sources are elsewhere");
    let mut wrong = Vec::new();
    for file in files {
        let name = file.strip_prefix(&src).unwrap();
        let part = name.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if matches!(part, "main" | "lib") {
            continue;
        }
        let (_, allowed) = MAY_USE.iter().find(|(known, _)| *known == part).unwrap_or_else(|| panic!("no floor for {part}"));
        let text = fs::read_to_string(&file).unwrap();
        // `use crate::{a, b}` and `crate::a::…` alike.
        for rest in text.split("crate::").skip(1) {
            let group = rest
                .strip_prefix('{')
                .map_or(rest.split([':', ';', ',', ')']).next().unwrap(), |group| group.split('}').next().unwrap());
            for used in group.split(',').map(|used| used.split("::").next().unwrap().trim()).filter(|used| !used.is_empty()) {
                let known = MAY_USE.iter().any(|(known, _)| *known == used);
                if known && used != part && !allowed.contains(&used) {
                    wrong.push(format!("{} uses {used}", name.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The lint says "deny", as what is forbidden cannot be expected anywhere; so here is where it is.
#[test]
fn what_the_compiler_cannot_check_is_in_two_places() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest: toml::Table = fs::read_to_string(dir.join("Cargo.toml")).unwrap().parse().unwrap();
    assert_eq!(manifest["lints"]["rust"]["unsafe_code"].as_str(), Some("deny"));
    let (src, mut files) = (dir.join("src"), Vec::new());
    sources(&src, &mut files);
    let mut places: Vec<String> = Vec::new();
    for file in files {
        let times = fs::read_to_string(&file).unwrap().matches("unsafe_code").count();
        places.extend(vec![file.strip_prefix(&src).unwrap().display().to_string(); times]);
    }
    places.sort();
    assert_eq!(places, ["app/inherited.rs", "store/disk/residence.rs"]);
}
