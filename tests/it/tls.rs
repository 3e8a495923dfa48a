//! Upstreams that speak TLS, and those that should not be believed.

use crate::support::{Authority, Fault, Image, Log, Match, Registry, TestMirror, TlsFront};

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
    let front = authority.front("localhost", false, upstream.address()).await;
    let mirror = mirror_of(&front, &authority).await;
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    for blob in image.blobs() {
        assert_eq!(mirror.get(&image.blob_path(blob)).await.expect(200).body, blob.bytes);
    }
}

#[tokio::test]
async fn nobody_is_believed_without_a_good_certificate() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/alpine", "latest");
    let (authority, stranger) = (Authority::new(), Authority::new());
    for (what, front) in [
        ("of a stranger", stranger.front("localhost", false, upstream.address()).await),
        ("of another name", authority.front("registry.example", false, upstream.address()).await),
        ("that has expired", authority.front("localhost", true, upstream.address()).await),
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
    let plain = format!("{}{}", upstream.url(), image.blob_path(&image.layers[0]));
    upstream.on(Match::get("blobs"), Fault::answer(307, &[("location", &plain)], ""));
    let authority = Authority::new();
    let front = authority.front("localhost", false, upstream.address()).await;
    let mirror = mirror_of(&front, &authority).await;
    assert_eq!(mirror.get(&image.blob_path(&image.layers[0])).await.status, 502);
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
    let open = authority.front("localhost", false, elsewhere.address()).await;

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
    while !mirror.holds(&image.layers[0].digest) {
        tokio::task::yield_now().await;
    }
    upstream.remove("library/alpine", &image.layers[0].digest);
    mirror.get(&path).await.expect(200);
    mirror.clock().advance(std::time::Duration::from_hours(24));
    mirror.get(&path).await.expect(404);
}
