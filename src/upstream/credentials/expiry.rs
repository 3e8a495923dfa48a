//! Until when a secret is good, where it says so itself.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::clock::Timestamp;

/// The end of a secret's life: the `exp` of a JWT, as the refresh tokens of ACR are; the `expiration` of an ECR password,
/// which is JSON in base64. `None`: it does not say.
pub(super) fn expiry_of(secret: &str) -> Option<Timestamp> {
    jwt_expiry(secret).or_else(|| ecr_expiry(secret))
}

/// The `exp` of a JWT: <https://www.rfc-editor.org/rfc/rfc7519#section-4.1.4>. Its signature is not ours to check.
pub(in crate::upstream) fn jwt_expiry(token: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let [_, claims, _] = token.split('.').collect::<Vec<_>>().try_into().ok()?;
    let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    unix_seconds(claims.exp)
}

fn ecr_expiry(password: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Password {
        expiration: f64,
    }
    let password: Password = serde_json::from_slice(&STANDARD.decode(password).ok()?).ok()?;
    unix_seconds(password.expiration)
}

fn unix_seconds(seconds: f64) -> Option<Timestamp> {
    Duration::try_from_secs_f64(seconds).ok().map(|since_1970| Timestamp::default() + since_1970)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUNE_2030: Timestamp = Timestamp::from_unix_millis(1_906_502_400_000);

    fn jwt(claims: &str) -> String {
        format!("{}.{}.c2lnbmVk", URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#), URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_jwt_says_when_it_expires() {
        assert_eq!(jwt_expiry(&jwt(r#"{"sub":"x?>","exp":1906502400}"#)), Some(JUNE_2030));
        assert_eq!(expiry_of(&jwt(r#"{"exp":1906502400.0}"#)), Some(JUNE_2030));
        for claims in [r#"{"sub":"x"}"#, r#"{"exp":"soon"}"#, r#"{"exp":-1}"#, r#"{"exp":1e300}"#, "[]", "nonsense"] {
            assert_eq!(jwt_expiry(&jwt(claims)), None, "{claims}");
        }
    }

    #[test]
    fn a_password_of_ecr_says_when_it_expires() {
        let password = |json: &str| STANDARD.encode(json);
        let real = r#"{"payload":"abc=","datakey":"def=","version":"2","type":"DATA_KEY","expiration":1906502400}"#;
        assert_eq!(expiry_of(&password(real)), Some(JUNE_2030));
        assert_eq!(expiry_of(&password(r#"{"payload":"abc="}"#)), None);
    }

    #[test]
    fn other_secrets_do_not_say() {
        for secret in ["", "hunter2", "..", "a.b.c", "ya29.c.b0Aaekm1K", "dckr_pat_abc", "{\"expiration\":1906502400}"] {
            assert_eq!(expiry_of(secret), None, "{secret}");
        }
    }
}
