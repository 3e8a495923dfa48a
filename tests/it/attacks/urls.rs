//! URLs that a server or a client chooses: where larder's packets go.
//!
//! The registry is at 127.0.0.2 by a name of its own, so that 127.0.0.1 and all that is there is not its to name. What was
//! dialled is told by the resolver, and by a listener at every address of this machine.

use crate::support::{Auth, Fault, Image, Match, Raw, Registry, Setup, StoppedMirror, Tap, TestMirror, digest_of, noise};

pub(super) const NAME: &str = "registry.test";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// A registry at [`NAME`], the way there, and a larder before it that knows one of its users.
pub(super) async fn world(auth: Auth) -> (Registry, Tap, StoppedMirror) {
    let registry = Registry::with(Setup { auth, ..Setup::default() }).await;
    let way = Tap::before("127.0.0.2", registry.address()).await;
    let mirror = TestMirror::builder()
        .set(&format!("upstream.\"docker.io\".url = \"http://{NAME}:{}\"", way.port()))
        .set("upstream.\"docker.io\".header_timeout = \"5s\"");
    mirror.names().lead(NAME, &[&["127.0.0.2"]]);
    (registry, way, mirror)
}

/// An answer on a connection that then closes.
pub(super) fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    [text.as_bytes(), b"\r\n", body].concat()
}

pub(super) fn token() -> Vec<u8> {
    answer("200 OK", &[("content-type", "application/json")], br#"{"token":"canary-of-another"}"#)
}

pub(super) fn redirect(to: &str) -> Fault {
    Fault::answer(307, &[("location", to)], "")
}

pub(super) fn challenge(realm: &str) -> Fault {
    Fault::answer(401, &[("www-authenticate", &format!("Bearer realm=\"{realm}\",service=\"x\""))], "")
}

/// The names that were dialled, apart from the registry's own.
pub(super) fn dialled(mirror: &TestMirror) -> Vec<(String, Vec<String>)> {
    let elsewhere = mirror.names().dialled().into_iter().filter(|(host, _)| host != NAME);
    elsewhere.map(|(host, addresses)| (host, addresses.iter().map(ToString::to_string).collect())).collect()
}

pub(super) const NOWHERE: [(String, Vec<String>); 0] = [];
pub(super) const SILENCE: [String; 0] = [];

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

/// Whoever runs a registry could have it told what is open on the inside: nothing is dialled, so that neither the answer nor the time that
/// it takes depends on it.
#[tokio::test]
async fn nothing_that_a_server_names_on_the_inside_is_told_to_be_open_or_closed() {
    let open = Tap::everywhere(token()).await;
    let (registry, _way, mirror) = world(Auth::None).await;
    mirror.names().lead("inner.test", &[&["127.0.0.1"]]);
    let mirror = mirror.start().await;
    for host in ["127.0.0.1", "[::1]", "localhost", "inner.test", "10.0.0.1"] {
        for (what, fault) in [("redirected", redirect as fn(&str) -> Fault), ("challenged", challenge)] {
            // The second is of TCPMUX, which nobody speaks.
            let told = [open.port(), 1].map(async |port| {
                let repository = format!("{what}/to-{}-{port}", digest_of(host.as_bytes()).replace(':', "-"));
                registry.on(Match::any(format!("/{repository}/")), fault(&format!("http://{host}:{port}/x")));
                let answer = mirror.get(&format!("/v2/{repository}/manifests/latest")).await;
                (answer.status, answer.text().replace(&repository, "").replace(&format!("{host}:{port}"), host))
            });
            let [open, closed] = told;
            assert_eq!(open.await, closed.await, "{what} to {host}");
        }
    }
    assert_eq!((open.heard(), dialled(&mirror)), (SILENCE.into(), NOWHERE.into()));
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
