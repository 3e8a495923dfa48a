//! What a registry sends in place of what was asked for: it is never served as that, and nothing of it stays.

use std::fs;

use bytes::Bytes;

use crate::support::{
    Answer, Fault, Image, Match, Registry, TestMirror, assert_booked, assert_sound, digest_of, files, noise, raw, sha512_of,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn blob_path(digest: &str) -> String {
    format!("/v2/library/app/blobs/{digest}")
}

#[track_caller]
fn bad_gateway(answer: &Answer, what: &str) {
    assert_eq!((answer.status, answer.error_code().as_deref()), (502, Some("UNAVAILABLE")), "{what}");
    assert!(answer.body.len() < 2000, "{what}: {} bytes of an error", answer.body.len());
}

/// How many blobs, whole or not, lie in the cache.
fn kept(mirror: &TestMirror) -> usize {
    let there =
        |dir| files(&mirror.cache_dir().join(dir)).into_iter().filter(|file| fs::metadata(file).is_ok_and(|meta| meta.len() > 0));
    ["blobs", "partial"].into_iter().flat_map(there).count()
}

fn flipped(bytes: &Bytes, at: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes.into()
}

// === manifests ===

#[tokio::test]
async fn a_manifest_with_one_wrong_byte_is_refused_before_the_status() {
    let registry = Registry::start().await;
    let image = Image::new(1).put(&registry, "library/app", "latest");
    let mirror = TestMirror::of(&registry).await;
    // In white space, so that it is the manifest of nothing else.
    let spaced = Bytes::from(format!("{} ", String::from_utf8(image.manifest.to_vec()).unwrap()));
    let wrongs = [flipped(&image.manifest, 20), flipped(&image.manifest, image.manifest.len() - 10), spaced, Bytes::new()];
    for wrong in wrongs {
        registry.heal();
        let headers = [("content-type", image.media_type), ("docker-content-digest", image.digest.as_str())];
        registry.on(Match::get(&image.digest), Fault::answer(200, &headers, wrong));
        bad_gateway(&mirror.get(&image.manifest_path()).await, "with the right digest in its header");
        assert_eq!(kept(&mirror), 0);
    }
    registry.heal();
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn the_digest_of_a_tag_is_that_of_its_bytes_whatever_the_registry_says() {
    let registry = Registry::start().await;
    let image = Image::new(2).put(&registry, "library/app", "latest");
    let other = digest_of(b"another");
    let headers = [("content-type", image.media_type), ("docker-content-digest", other.as_str())];
    registry.on(Match::any("/manifests/latest"), Fault::answer(200, &headers, image.manifest.clone()));
    let mirror = TestMirror::of(&registry).await;
    let answer = mirror.get(&image.tag_path("latest")).await.expect(200);
    assert_eq!((answer.header("docker-content-digest"), &answer.body), (Some(image.digest.as_str()), &image.manifest));
    mirror.kept(&image.digest).await;
    mirror.get(&format!("/v2/library/app/manifests/{other}")).await.expect(404);
    // A HEAD that says so of a tag that is known moves it nowhere.
    mirror.clock().advance(std::time::Duration::from_mins(2));
    let later = mirror.get(&image.tag_path("latest")).await.expect(200);
    assert_eq!((later.header("docker-content-digest"), &later.body), (Some(image.digest.as_str()), &image.manifest));
    assert!(!fs::read_to_string(mirror.cache_dir().join("records")).unwrap().contains(&other));
}

/// CVE-2021-41190: one client reads an image, another an index, both under one digest.
#[tokio::test]
async fn what_is_two_things_at_once_is_neither() {
    let registry = Registry::start().await;
    let mirror = TestMirror::of(&registry).await;
    let digest = digest_of(b"x");
    let image = format!(r#""config":{{"digest":"{digest}","size":1}},"layers":[]"#);
    let long = "x".repeat(3 << 20);
    for (n, (content_type, body)) in [
        (INDEX, format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}",{image}}}"#)),
        (MANIFEST, format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#)),
        (LIST, format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#)),
        (MANIFEST, format!(r#"{{"schemaVersion":2,"manifests":[],{image}}}"#)),
        (INDEX, r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.into()),
        (INDEX, format!(r#"{{"schemaVersion":2,"manifests":[],"config":{{"digest":"{digest}"}}}}"#)),
        ("text/plain", format!(r#"{{"schemaVersion":2,"manifests":[],{image}}}"#)),
        (MANIFEST, format!(r#"{{"mediaType":"{MANIFEST}","mediaType":"{INDEX}",{image}}}"#)),
        (MANIFEST, format!(r#"{{"layers":[],"layers":[],{image}}}"#)),
        (MANIFEST, format!(r#"{{"mediaType":"{long}",{image}}}"#)),
        (MANIFEST, format!(r#"{{"mediaType":"a/b\r\nset-cookie: x=y",{image}}}"#)),
        ("text/plain", format!(r#"{{"mediaType":"a/b\r\nset-cookie: x=y",{image}}}"#)),
        (MANIFEST, format!(r#"{{"manifests":"{long}"}}"#)),
        (MANIFEST, r#"{"manifests":"\u001b[31m\r\nforged"}"#.into()),
        (MANIFEST, format!("{}{}", r#"{"layers":["#.repeat(100_000), "]}".repeat(100_000))),
        (MANIFEST, "[".repeat(1 << 20)),
        (MANIFEST, "null".into()),
        (MANIFEST, "7".into()),
        ("text/html", r#"{"schemaVersion":2}"#.into()),
    ]
    .into_iter()
    .enumerate()
    {
        let digest = registry.put_manifest("library/app", Some(&format!("v{n}")), content_type, body.clone());
        for reference in [digest.as_str(), &format!("v{n}")] {
            let answer = mirror.get(&format!("/v2/library/app/manifests/{reference}")).await;
            bad_gateway(&answer, &format!("{content_type}: {}", &body[..body.len().min(200)]));
        }
    }
    assert_eq!(kept(&mirror), 0);
}

#[tokio::test]
async fn an_encoded_manifest_is_served_as_it_was_before_if_it_is_then_the_right_one() {
    let registry = Registry::start().await;
    let image = Image::new(3).put(&registry, "library/app", "latest");
    let mirror = TestMirror::of(&registry).await;
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        Bytes::from(encoder.finish().unwrap())
    };
    let encoded = |encoding: &'static str, body: Bytes| {
        registry.heal();
        let headers = [("content-type", image.media_type), ("content-encoding", encoding)];
        registry.on(Match::get("/manifests/"), Fault::answer(200, &headers, body));
    };
    for (encoding, body) in [
        ("gzip", gzip(&flipped(&image.manifest, 20))),
        ("gzip", gzip(&vec![b' '; 64 << 20])),
        ("gzip", image.manifest.clone()),
        ("gzip", gzip(&image.manifest).slice(..40)),
        ("gzip, gzip", gzip(&gzip(&image.manifest))),
        ("br", image.manifest.clone()),
        ("zstd", image.manifest.clone()),
        ("deflate", image.manifest.clone()),
        ("aes128gcm", image.manifest.clone()),
    ] {
        encoded(encoding, body);
        bad_gateway(&mirror.get(&image.manifest_path()).await, encoding);
        assert_eq!(kept(&mirror), 0, "{encoding}");
    }
    encoded("gzip", gzip(&image.manifest));
    let answer = mirror.get(&image.manifest_path()).await.expect(200);
    assert_eq!((answer.header("content-encoding"), &answer.body), (None, &image.manifest));
}

// === blobs ===

#[tokio::test]
async fn an_encoded_blob_is_none() {
    let registry = Registry::start().await;
    let blob = noise(4, 50_000);
    let digest = registry.put_blob("library/app", blob.clone());
    let mirror = TestMirror::of(&registry).await;
    for encoding in ["gzip", "x-gzip", "zstd", "br", "deflate", "identity, gzip", "?"] {
        registry.heal();
        registry.on(Match::any(&digest), Fault::ContentEncoding(encoding));
        bad_gateway(&mirror.get(&blob_path(&digest)).await, encoding);
        assert_eq!(kept(&mirror), 0, "{encoding}");
        mirror.clock().advance(std::time::Duration::from_mins(1));
    }
    registry.heal();
    registry.on(Match::any(&digest), Fault::ContentEncoding("Identity"));
    let answer = mirror.get(&blob_path(&digest)).await.expect(200);
    assert_eq!((answer.header("content-encoding"), &answer.body), (None, &blob));
}

/// Also where every question is answered so, and the bytes of what was asked for are here by another repository.
#[tokio::test]
async fn a_login_page_neither_is_a_blob_nor_proves_one() {
    let registry = Registry::start().await;
    let image = Image::new(5).layers(&[60_000]).put(&registry, "library/app", "latest");
    let layer = &image.layers[0];
    let mirror = TestMirror::of(&registry).await;
    for path in [image.manifest_path(), image.blob_path(layer), image.blob_path(&image.config)] {
        mirror.get(&path).await.expect(200);
    }
    let mirror = mirror.stop().await.start().await;
    let page = Bytes::from_static(b"<!doctype html><form>Sign in</form>");
    registry.on(Match::any(""), Fault::answer(200, &[("content-type", "text/html")], page.clone()));
    for repository in ["library/app", "library/other"] {
        let absent = format!("/v2/{repository}/blobs/{}", digest_of(b"absent"));
        let answer = mirror.get(&absent).await;
        // A small blob is verified before the status.
        assert_eq!(answer.status, 502, "{}", answer.text());
    }
    for path in [image.manifest_path(), image.blob_path(layer)].map(|path| path.replace("/app/", "/other/")) {
        for _ in 0..2 {
            assert_eq!(mirror.head(&path).await.status, 502, "{path}");
            assert_eq!(mirror.get(&path).await.status, 502, "{path}");
        }
    }
    assert_eq!(mirror.get(&image.blob_path(layer)).await.expect(200).body, layer.bytes, "where it belongs, it still is");
    assert_eq!(mirror.get(&image.manifest_path()).await.expect(200).body, image.manifest);
}

/// Whoever answers everything in so few words would prove that everything is everyone's.
#[tokio::test]
async fn an_answer_that_tells_neither_digest_nor_size_proves_no_blob() {
    let registry = Registry::start().await;
    let image = Image::new(8).layers(&[60_000]).put(&registry, "library/app", "latest");
    let layer = &image.layers[0];
    let mirror = TestMirror::of(&registry).await;
    mirror.get(&image.blob_path(layer)).await.expect(200);
    mirror.kept(&layer.digest).await;
    let page = Fault::answer(200, &[("content-type", "text/html")], "<!doctype html><form>Sign in</form>");
    registry.on(Match::any("/other/"), [page, Fault::NoLength]);
    let path = image.blob_path(layer).replace("/app/", "/other/");
    for _ in 0..2 {
        mirror.head(&path).await;
        // Of unknown length, it ends short when it is found to be something else.
        let answer = mirror.get(&path).await;
        assert!(!answer.complete && answer.body.is_empty(), "{} {} bytes", answer.status, answer.body.len());
    }
    assert_eq!(mirror.get(&image.blob_path(layer)).await.expect(200).body, layer.bytes);
}

#[tokio::test]
async fn a_part_that_lies_about_itself_never_makes_a_whole() {
    const SIZE: usize = 400_000;
    const AT: usize = 200_000;
    let blob = noise(6, SIZE);
    let registry = Registry::start().await;
    let digest = registry.put_blob("library/app", blob.clone());
    let part = |range: &str, body: Bytes| Fault::answer(206, &[("content-range", range)], body);
    let last = SIZE - 1;
    let rest = blob.slice(AT..);
    let lies = [
        ("of another place", part(&format!("bytes {}-{last}/{SIZE}", AT - 10_000), blob.slice(AT - 10_000..))),
        ("that begins later", part(&format!("bytes {}-{last}/{SIZE}", AT + 1), blob.slice(AT + 1..))),
        ("that begins earlier than it says", part(&format!("bytes {AT}-{last}/{SIZE}"), blob.slice(AT - 1..last))),
        ("that overlaps", part(&format!("bytes {AT}-{last}/{SIZE}"), blob.slice(AT - 5_000..))),
        ("of another blob", part(&format!("bytes {AT}-{last}/{SIZE}"), noise(7, SIZE - AT))),
        ("of a larger blob", part(&format!("bytes {AT}-{last}/{}", SIZE + 1), rest.clone())),
        ("of a smaller blob", part(&format!("bytes {AT}-{last}/{AT}"), rest.clone())),
        ("that is too short", part(&format!("bytes {AT}-{last}/{SIZE}"), blob.slice(AT..last - 7))),
        ("that is too long", part(&format!("bytes {AT}-{last}/{SIZE}"), [&rest[..], &rest[..]].concat().into())),
        ("that goes backwards", part(&format!("bytes {last}-{AT}/{SIZE}"), rest.clone())),
        ("of no unit", part(&format!("items {AT}-{last}/{SIZE}"), rest.clone())),
        ("of no size that there is", part("bytes 200000-18446744073709551615/18446744073709551615", rest.clone())),
        ("without a word", Fault::answer(206, &[], rest.clone())),
        ("of many parts", Fault::answer(206, &[("content-type", "multipart/byteranges; boundary=x")], rest)),
        ("that is a page", Fault::answer(200, &[("content-type", "text/html")], "<html>")),
    ];
    for (what, lie) in lies {
        let mirror = TestMirror::of(&registry).await;
        registry.heal();
        registry.on(Match::get(&digest).times(1), Fault::Cut { after: AT });
        registry.on(Match::get(&digest).ranged().times(1), lie);
        let answer = mirror.get(&blob_path(&digest)).await;
        if answer.complete {
            assert_eq!(answer.expect(200).body, blob, "a part {what}");
        } else {
            assert!(blob.starts_with(&answer.body) || answer.body.len() < SIZE, "a part {what}");
        }
        registry.heal();
        mirror.clock().advance(std::time::Duration::from_mins(2));
        assert_eq!(mirror.get(&blob_path(&digest)).await.expect(200).body, blob, "after a part {what}");
        mirror.kept(&digest).await;
        assert_booked(&mirror).await;
        assert_sound(&mirror.cache_dir());
    }
}

// === digests ===

#[tokio::test]
async fn what_is_not_exactly_a_digest_is_refused_without_a_question() {
    let registry = Registry::start().await;
    let blob = noise(8, 1000);
    let digest = registry.put_blob("library/app", blob.clone());
    let hex = digest.strip_prefix("sha256:").unwrap();
    let mirror = TestMirror::of(&registry).await;
    assert_eq!(mirror.get(&blob_path(&digest)).await.expect(200).body, blob);
    mirror.kept(&digest).await;
    registry.forget_requests();
    for wrong in [
        "md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        format!("sha1:{}", &hex[..40]),
        format!("sha384:{hex}{}", &hex[..32]),
        format!("sha512:{hex}"),
        format!("sha512:{hex}{}", &hex[..63]),
        format!("sha256:{hex}{hex}"),
        format!("SHA256:{hex}"),
        format!("Sha256:{hex}"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[..63]),
        format!("sha256:{hex}0"),
        format!("sha256:{hex}%00"),
        format!("sha256:{hex}%20"),
        format!("sha256:{hex}%0A"),
        format!("sha256:{hex}%2e%2e"),
        format!("sha256:{hex}%2F..%2F{hex}"),
        format!("sha256:..%2F..%2F..%2F{}", &hex[..52]),
        format!("sha256:%2E%2E/{hex}"),
        format!("sha256-{hex}"),
        format!("sha256+b64:{hex}"),
        format!("sha256%253A{hex}"),
        format!("sha256:sha256:{hex}"),
        format!(":{hex}"),
        format!("%EF%BD%93ha256:{hex}"),
        "..".into(),
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd".into(),
    ] {
        let answer = mirror.get(&blob_path(&wrong)).await;
        assert!(matches!(answer.status, 400 | 404), "{wrong}: {}", answer.status);
        assert!(answer.error_code().is_some() && !answer.text().contains('\u{0}'), "{wrong}: {}", answer.text());
        let answer = mirror.get(&format!("/v2/library/app/referrers/{wrong}")).await;
        assert!(matches!(answer.status, 400 | 404), "{wrong}: {}", answer.status);
    }
    // The colon may be encoded; that is the same digest.
    assert_eq!(mirror.get(&blob_path(&digest.replace(':', "%3A"))).await.expect(200).body, blob);
    let long = format!(
        "GET {} HTTP/1.1\r\nhost: mirror\r\nconnection: close\r\n\r\n",
        blob_path(&format!("sha256:{}", "a".repeat(2 << 20)))
    );
    let answer = String::from_utf8_lossy(&raw(mirror.address(), long).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 4") || answer.is_empty(), "{}", &answer[..answer.len().min(100)]);
    assert!(registry.requests().is_empty(), "{:#?}", registry.requests());
}

#[tokio::test]
async fn each_algorithm_has_keys_of_its_own() {
    let registry = Registry::start().await;
    let (blob, other) = (noise(9, 10_000), noise(10, 10_000));
    let long = sha512_of(&blob);
    registry.put_blob_under("library/app", &long, blob.clone());
    let short = registry.put_blob("library/app", blob.clone());
    let mirror = TestMirror::of(&registry).await;
    assert_eq!(mirror.get(&blob_path(&long)).await.expect(200).body, blob);
    mirror.kept(&long).await;
    // The same hexadecimal digits, as far as they go, of the other algorithm.
    let prefix = format!("sha256:{}", &long["sha512:".len()..][..64]);
    mirror.get(&blob_path(&prefix)).await.expect(404);
    registry.put_blob_under("library/app", &prefix, blob.clone());
    mirror.clock().advance(std::time::Duration::from_mins(1));
    assert!(mirror.get(&blob_path(&prefix)).await.status == 502, "its bytes are those of another digest");
    let lie = sha512_of(&other);
    registry.put_blob_under("library/app", &lie, blob.clone());
    assert_eq!(mirror.get(&blob_path(&lie)).await.status, 502);
    assert_eq!(mirror.get(&blob_path(&short)).await.expect(200).body, blob);
    mirror.kept(&short).await;
    let names: Vec<String> = files(&mirror.cache_dir().join("blobs"))
        .iter()
        .map(|file| file.strip_prefix(mirror.cache_dir()).unwrap().display().to_string())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let (short, long) = (&short["sha256:".len()..], &long["sha512:".len()..]);
    assert!(names.contains(&format!("blobs/sha256/{}/{short}", &short[..2])), "{names:?}");
    assert!(names.contains(&format!("blobs/sha512/{}/{long}", &long[..2])), "{names:?}");
}

// === headers ===

#[tokio::test]
async fn of_the_headers_of_a_registry_none_reaches_a_client_unread() {
    let registry = Registry::start().await;
    let image = Image::new(11).layers(&[50_000]).put(&registry, "library/app", "latest");
    let evil = [
        ("set-cookie", "session=evil"),
        ("server", "evil/1.0"),
        ("link", "<http://evil.test/>; rel=\"preload\""),
        ("x-evil", "evil"),
        ("www-authenticate", "Basic realm=\"evil\""),
        ("location", "http://evil.test/"),
        ("refresh", "0; url=http://evil.test/"),
        ("access-control-allow-origin", "*"),
        ("strict-transport-security", "max-age=1"),
        ("alt-svc", "h3=\"evil.test:443\""),
        ("content-disposition", "attachment; filename=evil"),
        ("etag", "\"evil\""),
        ("warning", "299 evil \"evil\""),
        ("cache-control", "public, max-age=99999999"),
        ("vary", "evil"),
        ("age", "12345"),
        ("via", "1.1 evil"),
        ("trailer", "x-evil"),
        ("cache-status", "evil\u{9}; <script>"),
        ("oci-filters-applied", "evil"),
        ("ratelimit-remaining", "77;w=21600"),
    ];
    let with = |content_type: &str, body: Bytes| {
        let headers = [&evil[..], &[("content-type", content_type)]].concat();
        Fault::answer(200, &headers, body)
    };
    let layer = &image.layers[0];
    registry.on(Match::any("/manifests/"), with(image.media_type, image.manifest.clone()));
    registry.on(Match::any("/blobs/"), with("text/html", layer.bytes.clone()));
    registry.on(Match::any("/tags/"), with("text/html", r#"{"name":"evil","tags":["evil-is-a-name"],"evil":"evil"}"#.into()));
    registry.on(Match::any("/referrers/"), with(INDEX, r#"{"schemaVersion":2,"manifests":[]}"#.into()));
    let mirror = TestMirror::of(&registry).await;
    let known = [
        "accept-ranges",
        "cache-control",
        "cache-status",
        "content-length",
        "content-type",
        "date",
        "docker-content-digest",
        "docker-distribution-api-version",
        "etag",
        "vary",
        "x-content-type-options",
    ];
    let paths = [
        image.tag_path("latest"),
        image.manifest_path(),
        image.blob_path(layer),
        "/v2/library/app/tags/list".into(),
        format!("/v2/library/app/referrers/{}", image.digest),
        "/v2/library/app/manifests/absent?ns=docker.io%0D%0Aset-cookie:%20x=y".into(),
    ];
    for _ in 0..2 {
        for path in &paths {
            for answer in [mirror.get(path).await, mirror.head(path).await] {
                let names: Vec<&str> = answer.headers.keys().map(http::HeaderName::as_str).collect();
                assert!(names.iter().all(|name| known.contains(name)), "{path}: {names:?}");
                let values = answer.headers.values().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
                let values: Vec<String> = values.collect();
                assert!(values.iter().all(|value| !value.contains("evil")), "{path}: {values:?}");
            }
        }
    }
    assert_eq!(mirror.get(&image.blob_path(layer)).await.header("content-type"), Some("application/octet-stream"));
    let list = mirror.get("/v2/library/app/tags/list").await.json();
    assert_eq!(list, serde_json::json!({ "name": "library/app", "tags": ["evil-is-a-name"] }));
}
