//! Upstreams that speak TLS, and those that should not be believed.

use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};

use crate::support::{Authority, Fault, Image, Log, Match, Registry, Tap, TestMirror, TlsFront};

async fn mirror_of(front: &TlsFront, trusted: &Authority) -> TestMirror {
    let mirror = TestMirror::builder();
    let file = trusted.file(mirror.dir());
    let url = format!("upstream.\"docker.io\".url = {:?}", front.url());
    mirror.set(&url).set(&format!("upstream.\"docker.io\".ca_file = \"{}\"", file.display())).start().await
}

#[tokio::test]
async fn an_upstream_whose_authority_is_in_ca_file_is_believed() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[300_000]).put(&upstream, "library/alpine", "latest");
    let authority = Authority::new();
    for signer in [&authority, &authority.below(true)] {
        let front = signer.front("localhost", upstream.address()).await;
        let mirror = mirror_of(&front, &authority).await;
        assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
        for blob in image.blobs() {
            assert_eq!(mirror.get(&image.blob_path(blob)).await.expect(200).body, blob.bytes);
        }
    }
}

#[tokio::test]
async fn nobody_is_believed_without_a_good_certificate() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let (authority, stranger) = (Authority::new(), Authority::new());
    let there = upstream.address();
    let (past, future) = (date_time_ymd(2020, 1, 1), date_time_ymd(2090, 1, 1));
    let for_clients = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (what, front) in [
        ("of a stranger", stranger.front("localhost", there).await),
        ("of another name", authority.front("registry.example", there).await),
        ("that has expired", authority.front_with("localhost", there, |its| its.not_after = past).await),
        ("that is not good yet", authority.front_with("localhost", there, |its| its.not_before = future).await),
        ("for clients", authority.front_with("localhost", there, |its| its.extended_key_usages = for_clients).await),
        ("of one who may not sign", authority.below(false).front("localhost", there).await),
    ] {
        let mirror = mirror_of(&front, &authority).await;
        let log = Log::from_here();
        let answer = mirror.get(&image.tag_path("latest")).await;
        assert_eq!(answer.status, 502, "a certificate {what}");
        let host = front.url().replace("https://", "");
        assert_eq!(log.says(&["WARN", &host, "invalid peer certificate: "]), 1, "a certificate {what}");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn https_never_becomes_http() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    // Where it would be had.
    let plain = Registry::start().await;
    plain.put_blob("library/alpine", image.layers[0].bytes.clone());
    let path = image.blob_path(&image.layers[0]);
    upstream.on(Match::get("blobs"), Fault::answer(307, &[("location", &format!("{}{path}", plain.url()))], ""));
    let authority = Authority::new();
    let front = authority.front("localhost", upstream.address()).await;
    let mirror =
        mirror_of(&front, &authority).await.stop().await.set("upstream.\"docker.io\".allow_private = true").start().await;
    let refused = mirror.get(&path).await.expect(502);
    assert!(refused.text().contains("https") && plain.requests().is_empty(), "{}", refused.text());
}

/// Whoever is on the way would hear it, and could answer. Neither is it asked for nobody: what it gives is shown to the upstream.
#[tokio::test]
async fn no_token_is_asked_for_in_cleartext_where_the_upstream_speaks_tls() {
    let upstream = Registry::start().await;
    let authority = Authority::new();
    let front = authority.front("localhost", upstream.address()).await;
    let tap =
        Tap::everywhere("HTTP/1.1 200 OK\r\ncontent-length: 21\r\nconnection: close\r\n\r\n{\"token\":\"of-nobody\"}").await;
    let host = format!("localhost:{}", tap.port());
    let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"x\"");
    upstream.on(Match::any("/v2/"), Fault::answer(401, &[("www-authenticate", &challenge)], ""));
    for user in [None, Some("bob"), Some("<token>")] {
        let mirror = TestMirror::builder();
        let file = authority.file(mirror.dir());
        let mirror = match user {
            Some(user) => mirror.login("docker.io", user, "canary-of-bob"),
            None => mirror,
        };
        let mirror = mirror
            .set(&format!("upstream.\"docker.io\".url = {:?}", front.url()))
            .set(&format!("upstream.\"docker.io\".ca_file = \"{}\"", file.display()))
            .set(&format!("upstream.\"docker.io\".token_hosts = [{host:?}]"))
            .start()
            .await;
        for path in ["/v2/library/alpine/manifests/latest", "/v2/library/alpine/tags/list"] {
            let refused = mirror.get(path).await.expect(502);
            let why = if user.is_some() { "larder's credentials cannot be used" } else { "names a plain http address" };
            assert!(refused.text().contains(why), "{user:?}: {}", refused.text());
        }
        assert_eq!(tap.heard(), [""; 0], "{user:?}");
    }
    let asked = upstream.requests();
    assert!(asked.len() >= 3 && asked.iter().all(|asked| asked.authorization().is_none()), "{asked:#?}");
}

#[tokio::test]
async fn the_client_certificate_is_shown_to_the_upstream_and_to_nobody_else() {
    let (upstream, elsewhere) = (Registry::start().await, Registry::start().await);
    let image = Image::new(2).layers(&[30_000, 40_000]).put(&upstream, "library/alpine", "latest");
    let (own, redirected) = (image.blob_path(&image.layers[0]), image.blob_path(&image.layers[1]));
    elsewhere.put_blob("library/alpine", image.layers[1].bytes.clone());
    let authority = Authority::new();
    let front = authority.front_for_its_own("localhost", upstream.address()).await;
    let strict = authority.front_for_its_own("localhost", elsewhere.address()).await;
    let open = authority.front("localhost", elsewhere.address()).await;

    let without = mirror_of(&front, &authority).await;
    without.get(&image.tag_path("latest")).await.expect(502);
    let with = without.stop().await;
    let (certificate, key) = authority.client(with.dir());
    let with = with
        .set(&format!("upstream.\"docker.io\".client_cert_file = \"{}\"", certificate.display()))
        .set(&format!("upstream.\"docker.io\".client_key_file = \"{}\"", key.display()))
        .start()
        .await;
    assert_eq!(with.get(&own).await.expect(200).body, image.layers[0].bytes);
    for (front, status) in [(&strict, 502), (&open, 200)] {
        let location = format!("{}{redirected}", front.url());
        upstream.on(Match::get(&image.layers[1].digest), Fault::answer(307, &[("location", &location)], ""));
        with.clock().advance(std::time::Duration::from_secs(10));
        assert_eq!(with.get(&redirected).await.status, status);
        upstream.heal();
    }
}

/// It is a credential like any other: what may be read with it, not everyone may read.
#[tokio::test]
async fn what_is_read_with_a_client_certificate_is_asked_for_again_after_a_day() {
    let upstream = Registry::start().await;
    let image = Image::new(3).layers(&[30_000]).put(&upstream, "library/alpine", "latest");
    let authority = Authority::new();
    let front = authority.front_for_its_own("localhost", upstream.address()).await;
    let mirror = TestMirror::builder();
    let (ca, (certificate, key)) = (authority.file(mirror.dir()), authority.client(mirror.dir()));
    let mirror = mirror
        .set(&format!("upstream.\"docker.io\".url = {:?}", front.url()))
        .set(&format!("upstream.\"docker.io\".ca_file = \"{}\"", ca.display()))
        .set(&format!("upstream.\"docker.io\".client_cert_file = \"{}\"", certificate.display()))
        .set(&format!("upstream.\"docker.io\".client_key_file = \"{}\"", key.display()))
        .start()
        .await;
    let path = image.blob_path(&image.layers[0]);
    mirror.get(&path).await.expect(200);
    // A blob is committed after its last byte has gone out.
    mirror.kept(&image.layers[0].digest).await;
    upstream.remove("library/alpine", &image.layers[0].digest);
    mirror.get(&path).await.expect(200);
    mirror.clock().advance(std::time::Duration::from_hours(24));
    mirror.get(&path).await.expect(404);
}
