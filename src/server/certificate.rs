//! Whose a certificate is: the common name of its subject (X.509, RFC 5280, section 4.1). It is read only once the certificate has
//! been verified.

/// The common name, if there is exactly one, and it is text that can stand in a log.
pub(super) fn common_name(certificate: &[u8]) -> Option<&str> {
    let mut to_be_signed = Der(Der(certificate).take(SEQUENCE)?).take(SEQUENCE).map(Der)?;
    // The version, the serial number, the algorithm, the issuer and the validity come before.
    let _ = to_be_signed.take(VERSION);
    to_be_signed.take(INTEGER)?;
    for _ in ["algorithm", "issuer", "validity"] {
        to_be_signed.take(SEQUENCE)?;
    }
    let mut subject = Der(to_be_signed.take(SEQUENCE)?);
    let mut found = None;
    while !subject.0.is_empty() {
        let mut set = Der(subject.take(SET)?);
        while !set.0.is_empty() {
            let mut attribute = Der(set.take(SEQUENCE)?);
            if attribute.take(OBJECT_IDENTIFIER)? == COMMON_NAME {
                let text = TEXT.iter().find_map(|tag| attribute.take(*tag))?;
                if found.replace(std::str::from_utf8(text).ok()?).is_some() {
                    return None;
                }
            }
        }
    }
    found.filter(|name| !name.is_empty() && name.len() <= LONGEST && name.chars().all(|c| !c.is_control()))
}

/// What is left of values that stand one after the other, each with its tag and its length before it (X.690).
struct Der<'a>(&'a [u8]);

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const VERSION: u8 = 0xa0;
/// `UTF8String`, `PrintableString`, `IA5String`.
const TEXT: [u8; 3] = [0x0c, 0x13, 0x16];
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const LONGEST: usize = 256;

// === impl Der ===

impl<'a> Der<'a> {
    /// The next value, if it has this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&found, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        if found != tag {
            return None;
        }
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // The length of the length.
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn certificate(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["san.example".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        names.iter().for_each(|(kind, name)| params.distinguished_name.push(kind.clone(), *name));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_of_the_subject_is_found_among_others() {
        use DnType::{CommonName, CountryName, OrganizationName};
        let long = "x".repeat(200);
        for name in ["alice", "build-7.corp.example", "Zoë", &long] {
            let names = [(CountryName, "DE"), (OrganizationName, "of"), (CommonName, name)];
            assert_eq!(common_name(&certificate(&names)), Some(name));
        }
        assert_eq!(common_name(&certificate(&[(OrganizationName, "alice")])), None);
        assert_eq!(common_name(&certificate(&[])), None);
        assert_eq!(common_name(&certificate(&[(CommonName, "a\nb")])), None);
        assert_eq!(common_name(&certificate(&[(CommonName, &"x".repeat(300))])), None);
    }

    #[test]
    fn what_is_cut_or_changed_anywhere_is_no_trouble() {
        let whole = certificate(&[(DnType::CommonName, "alice")]);
        for length in 0..whole.len() {
            assert_eq!(common_name(&whole[..length]), None);
            let mut changed = whole.clone();
            for byte in [0, 0x7f, 0x80, 0x83, 0xff] {
                changed[length] = byte;
                let _ = common_name(&changed);
            }
        }
    }
}
