//! The images that a file names: a list with a line each, or whatever Kubernetes and compose are given.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser};

/// Images in the order in which they are named.
///
/// A list has an image a line, and comments from `#` on; or it is a sequence. Anything else is YAML: what stands there under `image`.
/// It is read as events, never built: however its aliases refer to each other, it takes no more memory than its text.
///
/// # Errors
/// Says in one line, and where it is wrong, what is.
pub(super) fn images(text: &str) -> Result<Vec<String>, String> {
    // What Windows begins a text with.
    let text = text.trim_start_matches('\u{feff}');
    let lines: Vec<&str> = text.lines().map(|line| without_comment(line).trim()).filter(|line| !line.is_empty()).collect();
    let is_list = lines.iter().all(|line| is_word(line));
    if is_list {
        return Ok(lines.into_iter().map(str::to_owned).collect());
    }
    let images = in_yaml(text)?;
    // Lines of text are YAML as well.
    let is_text = lines.iter().all(|line| !line.ends_with(':') && !line.contains(": ") && !line.starts_with(['{', '[', '-']));
    match lines.iter().find(|line| !is_word(line)) {
        Some(line) if images.is_empty() && is_text => Err(format!("{line:?} is no image")),
        _ => Ok(images),
    }
}

fn without_comment(line: &str) -> &str {
    match line.find('#') {
        Some(0) => "",
        Some(at) if line[..at].ends_with(char::is_whitespace) => &line[..at],
        _ => line,
    }
}

/// What can be a line of a list: no key of a mapping, no item of a sequence, no mark between documents.
fn is_word(line: &str) -> bool {
    !line.contains(char::is_whitespace) && !line.ends_with(':') && !line.starts_with(['{', '[', '-'])
}

/// What comes next in a mapping, and whether it is an image: the value of `image`, or of `reference` in that, as for a volume.
enum Place {
    Sequence,
    Key { in_image: bool },
    Value { of_image: bool, in_image: bool },
}

fn in_yaml(text: &str) -> Result<Vec<String>, String> {
    let (mut images, mut anchors, mut places) = (Vec::new(), HashMap::<usize, String>::new(), Vec::new());
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let (line, column) = (error.marker().line(), error.marker().col() + 1);
            format!("line {line}, column {column}: it is neither a list of images nor YAML: {}", error.info())
        })?;
        match event {
            Event::Scalar(value, _, anchor, _) => {
                if anchor > 0 {
                    anchors.insert(anchor, value.to_string());
                }
                take(&mut places, Some(&value), span.start.line(), &mut images)?;
            }
            Event::Alias(anchor) => {
                let value = anchors.get(&anchor).cloned();
                take(&mut places, value.as_deref(), span.start.line(), &mut images)?;
            }
            Event::SequenceStart(..) => places.push(Place::Sequence),
            Event::MappingStart(..) => {
                places.push(Place::Key { in_image: matches!(places.last(), Some(Place::Value { of_image: true, .. })) });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                places.pop();
                take(&mut places, None, span.start.line(), &mut images)?;
            }
            _ => {}
        }
    }
    Ok(images)
}

/// Takes one node: `text` if it is a scalar.
fn take(places: &mut [Place], text: Option<&str>, line: usize, images: &mut Vec<String>) -> Result<(), String> {
    let is_root = places.len() == 1;
    let Some(place) = places.last_mut() else { return Ok(()) };
    match place {
        Place::Sequence if is_root => images.extend(text.map(str::to_owned)),
        Place::Sequence => {}
        Place::Key { in_image } => {
            let of_image = text == Some("image") || *in_image && text == Some("reference");
            *place = Place::Value { of_image, in_image: *in_image };
        }
        Place::Value { of_image, in_image } => {
            if let (true, Some(image)) = (*of_image, text.filter(|text| !text.is_empty())) {
                if image.contains('$') || image.contains("{{") {
                    return Err(format!(
                        "line {line}: the image {image:?} has a variable; give what `docker compose config` or `helm template` prints"
                    ));
                }
                images.push(image.to_owned());
            }
            *place = Place::Key { in_image: *in_image };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_an_image_a_line() {
        let text = "# all that we need\nnginx:1.27\n\n  ghcr.io/o/x@sha256:00  # asked for twice\nnginx:1.27\n";
        assert_eq!(images(text).unwrap(), ["nginx:1.27", "ghcr.io/o/x@sha256:00", "nginx:1.27"]);
        assert_eq!(images("").unwrap(), [""; 0]);
        assert_eq!(images("\u{feff}nginx:1.27\r\nredis\r\n").unwrap(), ["nginx:1.27", "redis"]);
        assert_eq!(images("- nginx:1.27\n- redis # both\n").unwrap(), ["nginx:1.27", "redis"]);
        assert_eq!(images(r#"["nginx:1.27", "redis"]"#).unwrap(), ["nginx:1.27", "redis"]);
        assert_eq!(images("nginx:1.27\nredis and more\n").unwrap_err(), "\"redis and more\" is no image");
    }

    #[test]
    fn images_are_found_in_what_kubernetes_is_given() {
        let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: image\nspec:\n  template:\n    spec:\n      initContainers:\n      - name: init\n        \
                    image: busybox:1.36\n      containers:\n      - image: \"nginx:1.27\" # the web\n        args: [image, --image, x]\n      - {name: side, image: quay.io/o/side}\n---\n\
                    kind: List\nitems:\n- kind: Pod\n  spec:\n    containers: [{image: nginx:1.27}]\n    image:\n      pull: never\n    \
                    volumes: [{image: {pullPolicy: Always, reference: quay.io/o/model:v1}}, {reference: no}]\n";
        assert_eq!(images(text).unwrap(), ["busybox:1.36", "nginx:1.27", "quay.io/o/side", "nginx:1.27", "quay.io/o/model:v1"]);
    }

    #[test]
    fn images_are_found_in_compose_files() {
        let text = "x-web: &web\n  image: &img ghcr.io/o/web:v1\nservices:\n  a:\n    image: *img\n  b:\n    <<: *web\n    build: .\n  db: {image: 'postgres:16'}\n";
        assert_eq!(images(text).unwrap(), ["ghcr.io/o/web:v1", "ghcr.io/o/web:v1", "postgres:16"]);
        let why = images("services:\n  a:\n    image: x:${TAG}\n").unwrap_err();
        assert!(why.starts_with("line 3: ") && why.contains("docker compose config"), "{why}");
    }

    #[test]
    fn what_is_neither_is_refused_with_its_place() {
        let why = images("a: b\n  c: [\n").unwrap_err();
        assert!(why.starts_with("line 2, column ") && why.lines().count() == 1, "{why}");
    }

    /// Built, it would have 10^9 items.
    #[test]
    fn aliases_that_laugh_cost_nothing() {
        let mut text = String::from("a0: &a0 [image, image]\n");
        for n in 1..30 {
            let before = format!("*a{}", n - 1);
            text += &format!("a{n}: &a{n} [{}]\n", [&*before; 10].join(", "));
        }
        text += "image: nginx\n";
        assert_eq!(images(&text).unwrap(), ["nginx"]);
    }

    #[test]
    fn nothing_is_nested_too_deep() {
        let _ = images(&"[".repeat(1_000_000));
        let _ = images(&"a: {".repeat(100_000));
    }
}
