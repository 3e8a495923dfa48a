//! Fuzz targets: everything that reads what strangers write. `fuzz/run` builds and runs them; `LARDER_FUZZ` names the one.
//!
//! A target is a function that panics where something is wrong; a panic anywhere in larder, in any of its threads, is a finding too.
//! Modules that larder keeps to itself are compiled into this program, from where they lie.

#![no_main]
#![allow(clippy::disallowed_methods, reason = "larder's own rule about files is not for those who test it")]

use std::sync::OnceLock;

// What the parsers of larder's inner modules are compiled from.
#[path = "../../src/upstream/challenge.rs"]
mod challenge;
#[allow(dead_code, reason = "the other half of it is for what was resolved")]
#[path = "../../src/upstream/guard.rs"]
mod guard;
#[path = "../../src/server/range.rs"]
mod range;

mod archives;
mod parsers;
mod records;
mod urls;
mod world;

/// What becomes of an input.
type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 10] = [
    ("route", parsers::route),
    ("range", parsers::range),
    ("challenge", parsers::challenge),
    ("reference", parsers::reference),
    ("config", parsers::config),
    ("records", records::records),
    ("archive", archives::archive),
    ("guard", urls::guard),
    ("upstream", world::upstream),
    ("client", world::client),
];

fn target() -> Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("LARDER_FUZZ").unwrap_or_default();
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("LARDER_FUZZ names none of {:?}", TARGETS.map(|(name, _)| name))).1
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| target()(bytes));
