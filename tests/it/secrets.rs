//! That secrets are found where they get out. Everything else these tests produce is searched as it is produced:
//! `tests/support/secrets.rs`.

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
