//! k3s' registries.yaml, to which larder adds itself. What others wrote there stays as it is, byte for byte: lines go in between,
//! and what then stands there is read again before it is believed.

use saphyr_parser::{Event, Parser, Span};

/// A value, and where it begins.
#[derive(Debug)]
struct Node {
    line: usize,
    column: usize,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// Text to be put before a place: of which line, behind how many characters of it.
type Insertion = (usize, usize, String);

const BY_HAND: &str =
    "it is written in a way to which larder does not add; put it in by hand, as `larder setup k3s` without --write shows it";

/// `text` with `endpoint` as the first of each registry, and `ca_file` to verify it by.
///
/// # Errors
/// One line that says what is in the way.
pub(super) fn registries(
    text: Option<&str>,
    names: &[&str],
    endpoint: &str,
    authority: &str,
    ca_file: Option<&str>,
) -> Result<String, String> {
    let text = text.unwrap_or_default();
    let root = parsed(text)?;
    let wanted = |name: &&str| (name.to_string(), endpoint.to_owned());
    let wanted: Vec<_> = names.iter().map(wanted).collect();
    let mut added = Vec::new();
    let mut behind = String::new();
    let mirrors = section(root.as_ref(), "mirrors")?;
    let entry =
        |indent: &str, (name, url): &(String, String)| format!("{indent}{name:?}:\n{indent}  endpoint:\n{indent}    - {url:?}\n");
    match mirrors {
        None => behind += &format!("mirrors:\n{}", wanted.iter().map(|wanted| entry("  ", wanted)).collect::<String>()),
        Some(mirrors) => {
            for wanted @ (name, url) in &wanted {
                match mirrors.get(name) {
                    None => added.push(mirrors.before_first(|indent| entry(indent, wanted))?),
                    Some(mirror) => added.extend(first_endpoint(text, mirror, url)?),
                }
            }
        }
    }
    if let Some(file) = ca_file {
        let tls = |indent: &str| format!("{indent}{authority:?}:\n{indent}  tls:\n{indent}    ca_file: {file:?}\n");
        match section(root.as_ref(), "configs")? {
            None => behind += &format!("configs:\n{}", tls("  ")),
            Some(configs) if configs.get(authority).is_none() => added.push(configs.before_first(tls)?),
            Some(_) => {}
        }
    }
    let new = inserted(text, added, &behind);
    let root = parsed(&new).ok().flatten().ok_or(BY_HAND)?;
    let is_first = |(name, url): &(String, String)| {
        let list = root.get("mirrors")?.get(name)?.get("endpoint")?;
        let Value::List(list) = &list.value else { return None };
        (list.first()?.text() == Some(url)).then_some(())
    };
    let is_verified = |file| {
        let tls = root.get("configs").and_then(|configs| configs.get(authority)?.get("tls")?.get("ca_file"));
        tls.and_then(Node::text) == Some(file)
    };
    if wanted.iter().all(|wanted| is_first(wanted).is_some()) && ca_file.is_none_or(is_verified) {
        Ok(new)
    } else {
        Err(BY_HAND.into())
    }
}

/// A mapping below the root; `None` if it is not there.
fn section<'a>(root: Option<&'a Node>, key: &str) -> Result<Option<&'a Node>, String> {
    match root.map(|root| (&root.value, root.get(key))) {
        None | Some((Value::Map(_), None)) => Ok(None),
        Some((Value::Map(_), Some(node))) if matches!(node.value, Value::Map(_)) => Ok(Some(node)),
        Some(_) => Err(BY_HAND.into()),
    }
}

/// What makes `url` the first of a mirror's endpoints. Nothing, if it is.
fn first_endpoint(text: &str, mirror: &Node, url: &str) -> Result<Option<Insertion>, String> {
    let Some(Node { value: Value::List(endpoints), .. }) = mirror.get("endpoint") else { return Err(BY_HAND.into()) };
    let Some(first) = endpoints.first() else { return Err(BY_HAND.into()) };
    if first.text() == Some(url) {
        return Ok(None);
    }
    let line = text.lines().nth(first.line).unwrap_or_default();
    let before: String = line.chars().take(first.column).collect();
    // In brackets or behind a dash.
    Ok(Some(if before.trim_start().chars().all(|c| c == '-' || c == ' ') {
        (first.line, 0, format!("{before}{url:?}\n"))
    } else {
        (first.line, first.column, format!("{url:?}, "))
    }))
}

fn inserted(text: &str, added: Vec<Insertion>, behind: &str) -> String {
    let starts: Vec<usize> =
        text.split_inclusive('\n').scan(0, |at, line| Some(std::mem::replace(at, *at + line.len()))).collect();
    let offset = |line: usize, column: usize| {
        let start = starts.get(line).copied().unwrap_or(text.len());
        start + text[start..].chars().take(column).map(char::len_utf8).sum::<usize>()
    };
    let mut added: Vec<_> = added.into_iter().map(|(line, column, insertion)| (offset(line, column), insertion)).collect();
    added.sort_by_key(|(at, _)| *at);
    let mut new = text.to_owned();
    // From the end, so that places before stay what they are.
    added.iter().rev().for_each(|(at, insertion)| new.insert_str(*at, insertion));
    if !behind.is_empty() && !new.is_empty() && !new.ends_with('\n') {
        new.push('\n');
    }
    new + behind
}

/// The one document of a file; `None` if it is empty.
fn parsed(text: &str) -> Result<Option<Node>, String> {
    /// What is open, with the key that waits for its value.
    struct Open(Node, Option<Node>);
    let (mut open, mut root): (Vec<Open>, Option<Node>) = (Vec::new(), None);
    let node = |span: Span, value| Node { line: span.start.line() - 1, column: span.start.col(), value };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| format!("line {}: it is no YAML: {}", error.marker().line(), error.info()))?;
        let closed = match event {
            Event::MappingStart(0, None) => {
                open.push(Open(node(span, Value::Map(Vec::new())), None));
                continue;
            }
            Event::SequenceStart(0, None) => {
                open.push(Open(node(span, Value::List(Vec::new())), None));
                continue;
            }
            Event::Scalar(text, _, 0, None) => node(span, Value::Text(text.into_owned())),
            Event::MappingEnd | Event::SequenceEnd => match open.pop() {
                Some(Open(node, _)) => node,
                None => return Err(BY_HAND.into()),
            },
            // Anchors, aliases and tags mean more than stands there.
            Event::Scalar(..) | Event::MappingStart(..) | Event::SequenceStart(..) | Event::Alias(_) => {
                return Err(BY_HAND.into());
            }
            _ => continue,
        };
        match open.last_mut() {
            None if root.is_some() => return Err(BY_HAND.into()),
            None => root = Some(closed),
            Some(Open(Node { value: Value::List(list), .. }, _)) => list.push(closed),
            Some(Open(Node { value: Value::Map(map), .. }, key)) => match key.take() {
                None => *key = Some(closed),
                Some(key) => map.push((key, closed)),
            },
            Some(_) => return Err(BY_HAND.into()),
        }
    }
    // A file of comments, or of a bare `---`.
    Ok(root.filter(|root| root.text() != Some("")))
}

// === impl Node ===

impl Node {
    fn text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(map) = &self.value else { return None };
        map.iter().find(|(known, _)| known.text() == Some(key)).map(|(_, value)| value)
    }

    /// An entry for a mapping, as its first: `entry` is told how far its lines are indented.
    fn before_first(&self, entry: impl Fn(&str) -> String) -> Result<Insertion, String> {
        match &self.value {
            // In braces, its first key is not where its line begins; what comes of it is found out by whoever reads it again.
            Value::Map(map) if !map.is_empty() => {
                let (first, _) = &map[0];
                Ok((first.line, 0, entry(&" ".repeat(first.column))))
            }
            _ => Err(BY_HAND.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARDER: &str = "https://mirror.example:5443";

    fn add(text: &str, names: &[&str], ca_file: Option<&str>) -> Result<String, String> {
        registries(Some(text), names, LARDER, "mirror.example:5443", ca_file)
    }

    #[test]
    fn a_new_file_has_each_registry_and_how_larder_is_verified() {
        let written = registries(None, &["docker.io", "ghcr.io"], LARDER, "mirror.example:5443", Some("/etc/ca.pem")).unwrap();
        assert_eq!(
            written,
            "mirrors:\n  \"docker.io\":\n    endpoint:\n      - \"https://mirror.example:5443\"\n  \"ghcr.io\":\n    endpoint:\n      \
             - \"https://mirror.example:5443\"\nconfigs:\n  \"mirror.example:5443\":\n    tls:\n      ca_file: \"/etc/ca.pem\"\n"
        );
        assert_eq!(add(&written, &["docker.io", "ghcr.io"], Some("/etc/ca.pem")).unwrap(), written);
        assert_eq!(add("# ours\n", &["a.io"], None).unwrap().lines().next(), Some("# ours"));
    }

    #[test]
    fn what_is_there_stays_and_larder_is_asked_first() {
        let before = "# by hand\nmirrors:\n    docker.io: # the Hub\n        endpoint:\n        - \"http://old.example\"   # ours\n        - \
                      http://older.example\n    quay.io:\n        endpoint: [ \"http://old.example\" ]\n        rewrite: {\"^(.*)$\": \"q/$1\"}\nconfigs:\n  \
                      old.example:\n    auth: {username: ü, password: x}";
        let after = add(before, &["docker.io", "quay.io", "ghcr.io"], Some("/ca")).unwrap();
        assert_eq!(
            after,
            "# by hand\nmirrors:\n    \"ghcr.io\":\n      endpoint:\n        - \"https://mirror.example:5443\"\n    docker.io: # the Hub\n        endpoint:\n        \
             - \"https://mirror.example:5443\"\n        - \"http://old.example\"   # ours\n        - http://older.example\n    quay.io:\n        endpoint: [ \
             \"https://mirror.example:5443\", \"http://old.example\" ]\n        rewrite: {\"^(.*)$\": \"q/$1\"}\nconfigs:\n  \"mirror.example:5443\":\n    tls:\n      \
             ca_file: \"/ca\"\n  old.example:\n    auth: {username: ü, password: x}"
        );
        assert_eq!(add(&after, &["docker.io", "quay.io", "ghcr.io"], Some("/ca")).unwrap(), after, "once is enough");
    }

    #[test]
    fn what_larder_does_not_understand_is_refused_in_one_line() {
        for text in [
            "mirrors: [",
            "mirrors: {docker.io: {endpoint: [a]}}",
            "mirrors:\n",
            "mirrors:\n  docker.io: {}\n",
            "mirrors:\n  docker.io:\n    endpoint: []\n",
            "mirrors:\n  docker.io: &a\n    endpoint: [b]\n  x: *a\n",
            "- a\n",
            "a: b\n---\nc: d\n",
            "configs:\n  \"mirror.example:5443\":\n    tls: {ca_file: /other}\n",
        ] {
            let why = add(text, &["docker.io", "ghcr.io"], Some("/ca")).unwrap_err();
            assert!(!why.contains('\n'), "{why}");
        }
    }
}
