//! URLs that a server or a client chooses: where larder's packets go, and where its credentials.
//!
//! The registry is at 127.0.0.2 by a name of its own, so that 127.0.0.1 and all that is there is not its to name. What was
//! dialled is told by the resolver, and by a listener at every address of this machine.

use std::collections::BTreeSet;

use crate::support::{Auth, Fault, Image, Match, Raw, Registry, Setup, StoppedMirror, Tap, TestMirror, digest_of, noise};

const NAME: &str = "registry.test";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const PASSWORD: &str = "canary-of-bob";

/// A registry at [`NAME`], the way there, and a larder before it that knows one of its users.
async fn world(auth: Auth) -> (Registry, Tap, StoppedMirror) {
    let registry = Registry::with(Setup { auth, ..Setup::default() }).await;
    let way = Tap::before("127.0.0.2", registry.address()).await;
    let mirror = TestMirror::builder()
        .set(&format!("upstream.\"docker.io\".url = \"http://{NAME}:{}\"", way.port()))
        .set("upstream.\"docker.io\".header_timeout = \"5s\"");
    mirror.names().lead(NAME, &[&["127.0.0.2"]]);
    (registry, way, mirror)
}

fn basic() -> Auth {
    Auth::Basic { user: "bob", password: PASSWORD }
}

/// An answer on a connection that then closes.
fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    [text.as_bytes(), b"\r\n", body].concat()
}

fn token() -> Vec<u8> {
    answer("200 OK", &[("content-type", "application/json")], br#"{"token":"canary-of-another"}"#)
}

fn redirect(to: &str) -> Fault {
    Fault::answer(307, &[("location", to)], "")
}

fn challenge(realm: &str) -> Fault {
    Fault::answer(401, &[("www-authenticate", &format!("Bearer realm=\"{realm}\",service=\"x\""))], "")
}

/// The names that were dialled, apart from the registry's own.
fn dialled(mirror: &TestMirror) -> Vec<(String, Vec<String>)> {
    let elsewhere = mirror.names().dialled().into_iter().filter(|(host, _)| host != NAME);
    elsewhere.map(|(host, addresses)| (host, addresses.iter().map(ToString::to_string).collect())).collect()
}

const NOWHERE: [(String, Vec<String>); 0] = [];
const SILENCE: [String; 0] = [];

// === where packets go ===

#[tokio::test]
async fn no_spelling_of_an_inner_address_is_dialled() {
    let inner = Tap::everywhere(token()).await;
    let (registry, _way, mirror) = world(Auth::None).await;
    for (name, address) in [
        ("inner.test", "127.0.0.1"),
        ("private.test", "10.0.0.1"),
        ("metadata.test", "169.254.169.254"),
        ("six.test", "::1"),
        ("mapped.test", "::ffff:127.0.0.1"),
        ("translated.test", "64:ff9b::7f00:1"),
        ("local.test", "fe80::1"),
    ] {
        mirror.names().lead(name, &[&[address]]);
    }
    let mirror = mirror.start().await;
    let hosts = [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "0X7F.0.0.1",
        "0177.0.0.1",
        "2130706433",
        "127.0.0.1.",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[2001:0:5ef5:79fb::80ff:fffe]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "%31%32%37.0.0.1",
        "127%E3%80%820%E3%80%820%E3%80%821",
        "%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "[fd00:ec2::254]",
        "localhost",
        "localhost.",
        "inner.test",
        "INNER.test",
        "private.test",
        "metadata.test",
        "six.test",
        "mapped.test",
        "translated.test",
        "local.test",
    ];
    for (n, host) in hosts.iter().enumerate() {
        let url = format!("http://{host}:{}/latest/meta-data", inner.port());
        for (what, fault) in [("redirected", redirect(&url)), ("challenged", challenge(&url))] {
            let repository = format!("{what}/to-{n}");
            registry.on(Match::any(format!("/{repository}/")), fault);
            let asked = mirror.head(&format!("/v2/{repository}/blobs/{}", digest_of(b"x"))).await;
            assert_eq!(asked.status, 502, "{what} to {host}");
            assert!(registry.count("HEAD", &format!("/{repository}/")) > 0, "{what} to {host}");
            assert_eq!(inner.heard(), SILENCE, "{what} to {host}");
        }
    }
    assert_eq!(dialled(&mirror), NOWHERE);
    let told = mirror.get("/v2/redirected/to-0/manifests/latest").await.expect(502);
    assert!(told.text().contains("127.0.0.1, which is not a public address"), "{}", told.text());
}

/// The name means one address when it is checked and another when it is dialled.
#[tokio::test]
async fn a_name_is_checked_each_time_on_the_very_addresses_that_are_dialled() {
    let (blob, other) = (noise(1, 30_000), noise(2, 30_000));
    let served = answer("200 OK", &[], &blob);
    let [cdn, inner] = Tap::pair([("127.0.0.2", &served), ("127.0.0.1", &served)]).await;
    let (registry, _way, mirror) = world(Auth::None).await;
    // That the registry itself is at 127.0.0.2 is what makes it a place that may be dialled.
    mirror.names().lead("cdn.test", &[&["127.0.0.2"], &["127.0.0.1"]]);
    mirror.names().lead("both.test", &[&["127.0.0.1", "127.0.0.2", "::1", "169.254.169.254"]]);
    let mirror = mirror.start().await;
    for (repository, name) in [("library/app", "cdn.test"), ("library/both", "both.test")] {
        registry.on(Match::get(format!("{repository}/blobs")), redirect(&format!("http://{name}:{}/data", cdn.port())));
    }
    let path = |repository: &str, blob: &[u8]| format!("/v2/library/{repository}/blobs/{}", digest_of(blob));
    assert_eq!(mirror.get(&path("app", &blob)).await.expect(200).body, blob);
    let refused = mirror.get(&path("app", &other)).await.expect(502);
    assert_eq!(refused.error_code().as_deref(), Some("UNAVAILABLE"));
    let by = |name: &str| (name.to_owned(), vec!["127.0.0.2".to_owned()]);
    assert_eq!(dialled(&mirror), [by("cdn.test")]);
    assert_eq!(mirror.get(&path("both", &blob)).await.expect(200).body, blob);
    assert_eq!(dialled(&mirror), [by("cdn.test"), by("both.test")]);
    assert_eq!((cdn.heard().len(), inner.heard()), (2, SILENCE.into()));
}

#[tokio::test]
async fn a_redirect_leads_to_http_and_not_far() {
    let elsewhere = Tap::everywhere(answer("200 OK", &[], b"elsewhere")).await;
    let (registry, _way, mirror) = world(Auth::None).await;
    mirror.names().lead("elsewhere.test", &[&["127.0.0.1"]]);
    let mirror = mirror.set("upstream.\"docker.io\".allow_private = true").start().await;
    let port = elsewhere.port();
    for (n, to) in [
        "file:///etc/passwd".to_owned(),
        "ftp://elsewhere.test/x".into(),
        "gopher://elsewhere.test/x".into(),
        "data:,x".into(),
        "unix:/run/docker.sock".into(),
        "http://".into(),
        format!("http://user@elsewhere.test:{port}/x"),
        format!("http://user:pass@elsewhere.test:{port}/x"),
        format!("http://:pass@elsewhere.test:{port}/x"),
    ]
    .iter()
    .enumerate()
    {
        registry.on(Match::any(format!("/blobs-{n}/")), redirect(to));
        mirror.head(&format!("/v2/library/blobs-{n}/blobs/{}", digest_of(b"x"))).await.expect(502);
        assert_eq!(elsewhere.heard(), SILENCE, "{to}");
    }
    assert_eq!(dialled(&mirror), NOWHERE);

    let blob = noise(4, 1000);
    let digest = registry.put_blob("library/app", blob.clone());
    for (hops, status) in [(5, 200), (6, 502)] {
        registry.heal();
        registry.on(Match::get(&digest), redirect(&format!("/hop/{hops}/1")));
        for hop in 1..hops {
            registry.on(Match::get(format!("/hop/{hops}/{hop}")), redirect(&format!("/hop/{hops}/{}", hop + 1)));
        }
        registry.on(Match::get(format!("/hop/{hops}/{hops}")), Fault::answer(200, &[], blob.clone()));
        registry.on(Match::head(&digest), Fault::status(405));
        mirror.head(&format!("/v2/library/app-{hops}/blobs/{digest}")).await.expect(status);
    }
    registry.heal();
    registry.on(Match::get("/circle"), redirect("/circle"));
    registry.on(Match::any(&digest), redirect("/circle"));
    mirror.head(&format!("/v2/library/round/blobs/{digest}")).await.expect(502);
    assert_eq!(registry.count("GET", "/circle"), 5);
}

#[tokio::test]
async fn nothing_that_a_manifest_or_a_list_names_is_dialled() {
    let elsewhere = Tap::everywhere(answer("200 OK", &[], b"elsewhere")).await;
    let there = format!("http://elsewhere.test:{}", elsewhere.port());
    let (registry, _way, mirror) = world(Auth::None).await;
    mirror.names().lead("elsewhere.test", &[&["127.0.0.1"]]);
    let mirror = mirror.set("upstream.\"docker.io\".allow_private = true").start().await;

    let foreign = digest_of(b"elsewhere");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"digest":"{foreign}","size":9}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"{foreign}","size":9,
        "urls":["{there}/layer"]}}],"subject":{{"digest":"{foreign}","urls":["{there}/subject"]}}}}"#
    );
    registry.put_manifest("library/app", Some("latest"), "application/vnd.oci.image.manifest.v1+json", manifest.clone());
    assert_eq!(mirror.get("/v2/library/app/manifests/latest").await.expect(200).body, manifest);
    mirror.get(&format!("/v2/library/app/blobs/{foreign}")).await.expect(404);

    let link = format!("<{there}/v2/other/tags/list?n=1&last=a>; rel=\"next\"");
    let page = Fault::answer(200, &[("content-type", "application/json"), ("link", &link)], r#"{"tags":["a"]}"#);
    registry.on(Match::get("/library/app/tags/list").times(1), page);
    let list = mirror.get("/v2/library/app/tags/list?n=1").await.expect(200);
    let next = list.header("link").unwrap().strip_prefix('<').unwrap().split('>').next().unwrap().to_owned();
    assert_eq!(next, "/v2/library/app/tags/list?n=1&last=a");
    mirror.get(&next).await.expect(200);
    let asked = registry.requests().into_iter().filter(|request| request.path.ends_with("/tags/list"));
    let asked: Vec<(String, String)> = asked.map(|request| (request.path, request.query)).collect();
    assert_eq!(asked[1], ("/v2/library/app/tags/list".into(), "n=1&last=a".into()));

    let link = format!("<{there}/v2/other/referrers/x?page=2>; rel=\"next\"");
    let page = Fault::answer(200, &[("content-type", INDEX_TYPE), ("link", &link)], r#"{"schemaVersion":2,"manifests":[]}"#);
    registry.on(Match::get("/referrers/").times(1), page);
    registry.on(Match::get("/referrers/"), Fault::answer(200, &[("content-type", INDEX_TYPE)], r#"{"manifests":[]}"#));
    mirror.get(&format!("/v2/library/app/referrers/{foreign}")).await.expect(200);
    assert_eq!(registry.count("GET", &format!("/v2/library/app/referrers/{foreign}")), 2);

    assert_eq!(elsewhere.heard(), SILENCE);
    assert_eq!(dialled(&mirror), NOWHERE);
}

#[tokio::test]
async fn no_client_names_what_is_dialled() {
    let elsewhere = Tap::everywhere(answer("200 OK", &[], b"elsewhere")).await;
    let there = format!("elsewhere.test:{}", elsewhere.port());
    let (registry, _way, mirror) = world(Auth::None).await;
    mirror.names().lead("elsewhere.test", &[&["127.0.0.1"]]);
    let mirror = mirror.set("upstream.\"docker.io\".allow_private = true").start().await;
    let image = Image::new(1).put(&registry, "library/app", "latest");
    let path = image.tag_path("latest");
    let inner = format!("127.0.0.1:{}", elsewhere.port());
    for (request, status) in [
        (format!("GET {path}?ns={there} HTTP/1.1\r\nhost: mirror"), 404),
        (format!("GET {path}?ns={inner} HTTP/1.1\r\nhost: mirror"), 404),
        (format!("GET {path}?ns=http%3A%2F%2F{there} HTTP/1.1\r\nhost: mirror"), 404),
        (format!("GET {path}?ns=docker.io%40{there} HTTP/1.1\r\nhost: mirror"), 404),
        (format!("GET {path}?ns=docker.io%23{there} HTTP/1.1\r\nhost: mirror"), 404),
        (format!("GET {path}?ns=docker.io&ns={there} HTTP/1.1\r\nhost: mirror"), 400),
        (format!("GET /{there}{path} HTTP/1.1\r\nhost: mirror"), 404),
        (format!("GET /v2/{there}/library/app/manifests/latest HTTP/1.1\r\nhost: mirror"), 404),
        (format!("GET http://{there}{path} HTTP/1.1\r\nhost: {there}"), 200),
        (format!("GET {path} HTTP/1.1\r\nhost: {there}"), 200),
        (format!("GET {path} HTTP/1.1\r\nhost: mirror\r\nx-forwarded-host: {there}\r\nforwarded: host={there}"), 200),
        (format!("GET {path} HTTP/1.1\r\nhost: mirror\r\nx-original-url: http://{there}/\r\nx-rewrite-url: /x"), 200),
        (format!("GET {path} HTTP/1.1\r\nhost: mirror\r\noci-namespace: {there}\r\nreferer: http://{there}/"), 200),
        (format!("CONNECT {there} HTTP/1.1\r\nhost: {there}"), 405),
        (format!("GET //{there}{path} HTTP/1.1\r\nhost: mirror"), 400),
    ] {
        let mut client = Raw::connect(mirror.address()).await;
        client.send(format!("{request}\r\nconnection: close\r\n\r\n")).await;
        let head = client.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
    }
    assert_eq!(elsewhere.heard(), SILENCE);
    assert_eq!(dialled(&mirror), NOWHERE);
}

// === what goes along ===

#[tokio::test]
async fn the_password_goes_to_listed_origins_and_no_spelling_makes_another_of_one() {
    let (evil, listed) = (Tap::everywhere(token()).await, Tap::answering("127.0.0.3", token()).await);
    let (e, l) = (evil.port(), listed.port());
    let (registry, _way, mirror) = world(Auth::None).await;
    for name in ["evil.test", "tokens.test.evil.test", "xtokens.test"] {
        mirror.names().lead(name, &[&["127.0.0.1"]]);
    }
    // Another port of the host that is listed is somebody else.
    mirror.names().lead("tokens.test", &[&["127.0.0.3", "127.0.0.1"]]);
    let mirror = mirror
        .login("docker.io", "bob", PASSWORD)
        .set("upstream.\"docker.io\".allow_private = true")
        .set(&format!("upstream.\"docker.io\".token_hosts = [\"Tokens.test:{l}\", \"tokens.test\", \"evil.test\"]"))
        .start()
        .await;
    let ask = async |n: usize, realm: &str| {
        let repository = format!("library/app-{n}");
        registry.on(Match::any(format!("{repository}/")), challenge(realm));
        mirror.head(&format!("/v2/{repository}/blobs/{}", digest_of(b"x"))).await
    };
    let wrong = [
        format!("http://tokens.test:{e}/token"),
        format!("http://evil.test:{e}/token"),
        format!("http://tokens.test.evil.test:{e}/token"),
        format!("http://xtokens.test:{e}/token"),
        format!("http://tokens.test:{l}@evil.test:{e}/token"),
        format!("http://evil.test:{e}/tokens.test:{l}"),
        format!("http://evil.test:{e}\\@tokens.test:{l}/"),
        format!("http://evil.test:{e}?@tokens.test:{l}/"),
        format!("http://evil.test:{e}#@tokens.test:{l}/"),
        format!("http://bob:x@tokens.test:{l}/token"),
        format!("//evil.test:{e}/token"),
        format!("tokens.test:{l}"),
    ];
    for (n, realm) in wrong.iter().enumerate() {
        assert_eq!(ask(n, realm).await.status, 502, "{realm}");
        assert_eq!((evil.heard(), listed.heard()), (SILENCE.into(), SILENCE.into()), "{realm}");
    }
    for (n, realm) in [format!("http://tokens.test:{l}/token"), format!("http://TOKENS.test:{l}/token")].iter().enumerate() {
        let before = listed.heard().len();
        ask(100 + n, realm).await;
        assert!(listed.heard().len() > before, "{realm}");
        assert!(listed.heard().iter().all(|heard| heard.contains("\r\nauthorization: Basic ")), "{:?}", listed.heard());
    }
    assert_eq!(evil.heard(), SILENCE);
}

#[tokio::test]
async fn a_token_service_that_sends_one_on_is_not_followed() {
    let evil = Tap::everywhere(token()).await;
    let onward = format!("http://evil.test:{}/token", evil.port());
    let service = Tap::answering("127.0.0.2", answer("307 Temporary Redirect", &[("location", &onward)], b"")).await;
    for (n, login) in [false, true].into_iter().enumerate() {
        let (registry, _way, mirror) = world(Auth::None).await;
        mirror.names().lead("evil.test", &[&["127.0.0.1"]]);
        let service_host = format!("{NAME}:{}", service.port());
        let mirror = if login { mirror.login("docker.io", "bob", PASSWORD) } else { mirror };
        let mirror = mirror
            .set("upstream.\"docker.io\".allow_private = true")
            .set(&format!("upstream.\"docker.io\".token_hosts = [{service_host:?}]"))
            .start()
            .await;
        registry.on(Match::any("/v2/"), challenge(&format!("http://{service_host}/token")));
        mirror.head(&format!("/v2/library/app/blobs/{}", digest_of(b"x"))).await.expect(502);
        assert!(service.heard().len() > n, "{:?}", service.heard());
        assert_eq!((evil.heard(), dialled(&mirror)), (SILENCE.into(), NOWHERE.into()));
    }
}

/// Who has been sent elsewhere has left: what is asked for on the way back, another has chosen.
#[tokio::test]
async fn a_chain_of_redirects_carries_no_credential_once_it_has_left() {
    let (registry, way, mirror) = world(basic()).await;
    let private = registry.put_blob("library/private", "not for the one who asks");
    let back = format!("http://{NAME}:{}/v2/library/private/blobs/{private}", way.port());
    let elsewhere = Tap::everywhere(answer("307 Temporary Redirect", &[("location", &back)], b"")).await;
    mirror.names().lead("elsewhere.test", &[&["127.0.0.1"]]);
    let mirror = mirror.login("docker.io", "bob", PASSWORD).set("upstream.\"docker.io\".allow_private = true").start().await;
    let digest = registry.put_blob("library/app", noise(5, 1000));
    registry.on(Match::any("/library/app/"), redirect(&format!("http://elsewhere.test:{}/x", elsewhere.port())));
    mirror.head(&format!("/v2/library/app/blobs/{digest}")).await.expect(502);
    assert!(!elsewhere.heard().is_empty());
    let heard = elsewhere.heard().concat().to_ascii_lowercase();
    assert!(!heard.contains("authorization") && !heard.contains("cookie"), "{heard}");
    let returned: Vec<_> = registry.requests().into_iter().filter(|request| request.path.contains("private")).collect();
    assert!(!returned.is_empty(), "the chain has come back");
    assert!(returned.iter().all(|request| request.authorization().is_none()), "{returned:#?}");
    assert!(registry.requests().iter().any(|request| request.authorization().is_some()), "at the registry itself it is shown");
}

/// Where one part of a blob was found, the next ones are asked for; and where that is the registry itself, another has chosen it.
#[tokio::test]
async fn no_part_of_a_blob_is_asked_for_with_a_credential_where_the_way_back_has_led() {
    let (registry, way, mirror) = world(Auth::None).await;
    let bytes = noise(5, 40 << 20);
    let digest = registry.put_blob("library/app", bytes.clone());
    let back = format!("http://{NAME}:{}/v2/library/open/blobs/{}", way.port(), registry.put_blob("library/open", bytes.clone()));
    let elsewhere = Tap::everywhere(answer("307 Temporary Redirect", &[("location", &back)], b"")).await;
    mirror.names().lead("elsewhere.test", &[&["127.0.0.1"]]);
    let mirror = mirror.login("docker.io", "bob", PASSWORD).set("upstream.\"docker.io\".allow_private = true");
    let mirror = mirror.set("mirror.blob_connections = 4").start().await;
    registry.on(Match::any("/library/app/").times(1), Fault::answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""));
    registry.on(Match::any("/library/app/"), redirect(&format!("http://elsewhere.test:{}/x", elsewhere.port())));
    registry.on(Match::any("/library/open/"), Fault::Bandwidth(16 << 20));
    assert!(mirror.get(&format!("/v2/library/app/blobs/{digest}")).await.expect(200).body == bytes);
    let asked = registry.requests();
    let (at_first, returned): (Vec<_>, Vec<_>) = asked.iter().partition(|request| request.path.contains("/app/"));
    assert!(at_first[1..].iter().all(|request| request.authorization().is_some()), "{at_first:#?}");
    assert!(returned.len() > 4 && returned.iter().all(|request| request.authorization().is_none()), "{returned:#?}");
}

#[tokio::test]
async fn of_what_a_client_sends_nothing_goes_upstream_but_what_it_asks_for() {
    let (registry, way, mirror) = world(Auth::None).await;
    let mirror = mirror.start().await;
    let image = Image::new(6).layers(&[50_000]).put(&registry, "library/app", "latest");
    let sent = [
        ("authorization", "Bearer canary-of-a-client"),
        ("cookie", "session=canary-of-a-client"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-registry-auth", "canary-of-a-client"),
        ("accept", "*/*, application/x-of-a-client"),
        ("accept-encoding", "zstd;q=1.0, gzip;q=0.8"),
        ("user-agent", "of a client"),
        ("referer", "http://of.a.client/"),
        ("if-none-match", "\"of-a-client\""),
        ("te", "trailers"),
        ("traceparent", "00-of-a-client"),
        ("x-evil", "of a client"),
    ];
    let other = noise(7, 40_000);
    let ranged = registry.put_blob("library/app", other.clone());
    for path in [image.tag_path("latest"), image.manifest_path(), image.blob_path(&image.layers[0])] {
        mirror.get_with(&path, &sent).await.expect(200);
    }
    let range = [&sent[..], &[("range", "bytes=1-9")]].concat();
    assert_eq!(mirror.get_with(&format!("/v2/library/app/blobs/{ranged}"), &range).await.expect(206).body, other.slice(1..10));
    mirror.get_with("/v2/library/app/tags/list", &sent).await.expect(200);
    mirror.get_with(&format!("/v2/library/app/referrers/{}", image.digest), &sent).await.expect(200);
    let names: BTreeSet<String> =
        registry.requests().iter().flat_map(|request| request.headers.keys().map(ToString::to_string)).collect();
    let known = ["accept", "accept-encoding", "host", "range", "user-agent", "via"];
    assert!(names.iter().all(|name| known.contains(&name.as_str())), "{names:?}");
    let heard = way.heard().concat();
    assert!(!heard.contains("of-a-client") && !heard.contains("of a client") && !heard.contains("1.2.3.4"), "{heard}");
    assert!(heard.contains("user-agent: larder/") && heard.contains("accept-encoding: identity"), "{heard}");
}
