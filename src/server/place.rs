//! Where larder listens, as an operator writes it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `127.0.0.1:5000`, `unix:/run/larder/larder.sock`, `systemd`, `systemd:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    Tcp(SocketAddr),
    /// A socket in the file system, for those who may write to it.
    Unix(PathBuf),
    /// The sockets that systemd has opened under this name (`FileDescriptorName=`); without one, all that it has opened.
    Systemd(Option<String>),
}

/// Why a text is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address such as 127.0.0.1:5000, unix:/run/larder/larder.sock, systemd or systemd:NAME")]
pub struct InvalidPlace(String);

// === impl Place ===

impl Place {
    /// Whether it is another place each time.
    pub(super) fn is_of_the_kernels_choice(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.port() == 0)
    }

    /// Whether nobody reaches it over the network, as far as larder can tell.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) | Self::Systemd(_) => true,
        }
    }
}

impl FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') && !path.contains('\0') => Ok(Self::Unix(path.into())),
            Some(("systemd", name)) if !name.is_empty() => Ok(Self::Systemd(Some(name.into()))),
            None if text == "systemd" => Ok(Self::Systemd(None)),
            _ => text.parse().map(Self::Tcp).map_err(|_| InvalidPlace(text.into())),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = InvalidPlace;

    fn try_from(text: String) -> Result<Self, InvalidPlace> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Systemd(Some(name)) => write!(f, "systemd:{name}"),
            Self::Systemd(None) => f.write_str("systemd"),
        }
    }
}

/// Empty for none.
pub(super) mod or_none {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::Place;

    #[expect(clippy::ref_option, reason = "serde gives it so")]
    pub(in crate::server) fn serialize<S: Serializer>(place: &Option<Place>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&place.as_ref().map_or_else(String::new, ToString::to_string))
    }

    pub(in crate::server) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Place>, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_address_a_path_or_a_name_and_is_written_as_it_is_read() {
        for text in ["127.0.0.1:5000", "[::]:443", "unix:/run/larder/larder.sock", "systemd", "systemd:larder.socket"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["", "localhost:5000", "127.0.0.1", "unix:", "unix:larder.sock", "systemd:", "systemctl", "unix:/a\0b"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
