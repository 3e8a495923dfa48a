//! Upstreams that speak TLS, and those that should not be believed.

use crate::support::{Authority, Fault, Image, Match, Registry, TestMirror, TlsFront};

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
        let answer = mirror.get(&image.tag_path("latest")).await;
        assert_eq!(answer.status, 502, "a certificate {what}");
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
