//! That secrets are found where they get out, and that none is handed out with larder. Everything else these tests produce is searched
//! as it is produced: `tests/support/secrets.rs`.

use std::fs;
use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::support::{CANARY, has_secret};

#[test]
fn a_secret_is_found_also_in_base64_and_in_the_middle_of_a_word() {
    assert!(has_secret(format!("password {CANARY}-of-bob").as_bytes()));
    for before in ["", "b", "bo", "bob"] {
        let login = STANDARD.encode(format!("{before}:{CANARY}-of-bob"));
        assert!(has_secret(format!("Basic {login}, and more").as_bytes()), "{before}");
        assert!(has_secret(format!("\"token\":\"{}\"", login.trim_end_matches('=').replace('+', "-")).as_bytes()), "{before}");
    }
    assert!(!has_secret(b"docker.io/library/app@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"));
}

/// Whether a line of a configuration is a secret, or gives one to whatever it is for, also where it is only a comment.
fn gives_a_secret(line: &str) -> bool {
    const THEMSELVES: [&str; 5] = ["PRIVATE KEY-----", "$2a$", "$2b$", "$2y$", "stringData:"];
    const FOR_ONE: [&str; 5] = ["password", "passwd", "secret", "token", "key"];
    const NOTHING: [&str; 4] = ["", "{", "false", "true"];
    let quotes: &[char] = &['"', '\'', ' ', ',', '}'];
    let (name, value) = line.trim_start_matches(['#', '-', ' ']).split_once(['=', ':']).unwrap_or_default();
    let (name, value) = (name.trim_matches(quotes).to_ascii_lowercase(), value.trim_matches(quotes));
    THEMSELVES.iter().any(|secret| line.contains(secret))
        || FOR_ONE.iter().any(|it| name.ends_with(it))
            && !NOTHING.iter().any(|nothing| value == *nothing || value.starts_with("{ "))
}

/// What everybody has is no secret, and who forgets to change it has none.
#[test]
fn no_configuration_that_comes_with_larder_holds_a_secret() {
    for line in ["password = \"x\"", "#  password: x", "- \"auth_token\": \"x\",", "BOBS_SECRET=x", "alice:$2y$05$x"] {
        assert!(gives_a_secret(line), "{line}");
    }
    for line in ["password_file = \"/run/secrets/x\"", "secret: \"\"", "automountServiceAccountToken: false"] {
        assert!(!gives_a_secret(line), "{line}");
    }
    let (mut dirs, mut files) = (vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("config")], 0);
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            text.lines().for_each(|line| assert!(!gives_a_secret(line), "{}: {line}", path.display()));
            files += 1;
        }
    }
    assert!(files > 20, "they are elsewhere");
}
