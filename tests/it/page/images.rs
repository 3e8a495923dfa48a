//! The table of images.

use std::collections::HashSet;

use bytes::Bytes;
use larder::oci::{Digest, Reference, Repository, Tag};
use larder::store::{Proof, TagRecord};
use serde_json::{Value, json};

use super::{api, names, order, says};
use crate::support::{Image, Registry, TestMirror, get, until_async};

#[tokio::test]
async fn images_are_told_with_all_that_one_wants_to_know_of_them() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000, 2000]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.pull(&image, "latest").await;
    mirror.head(&image.tag_path("latest")).await.expect(200);
    mirror.get(&image.tag_path("latest")).await.expect(200);
    let told = api(&mirror, "images").await;
    let row = &told["images"][0];
    assert_eq!((&told["all"], &told["matching"]), (&1.into(), &1.into()));
    assert_eq!((&row["image"], &row["digest"]), (&"docker.io/library/app:latest".into(), &image.digest.as_str().into()));
    let whole: usize = image.blobs().map(|blob| blob.bytes.len()).sum::<usize>() + image.manifest.len();
    assert_eq!((&row["bytes"], &row["pulls"], &row["pinned"]), (&whole.into(), &2.into(), &false.into()));
    assert!(row["used"].as_u64().unwrap() > 0);
    assert_eq!(row["platforms"][0], "linux/amd64");
}

/// An index may be 4 MiB of words that are no platforms, or of one platform again and again.
#[tokio::test]
async fn of_what_an_index_says_that_it_is_for_no_more_is_told_than_images_have() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/app", "v1");
    let child = |os: String, architecture: &str| {
        json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.digest, "size": image.manifest.len(),
            "platform": { "os": os, "architecture": architecture } })
    };
    let mut children: Vec<Value> = (0..300).map(|_| child("linux".into(), "amd64")).collect();
    children.extend([child("a".repeat(100_000), "amd64"), child("\u{1b}[31m".into(), "amd64"), child("li nux".into(), "x")]);
    children.extend((0..300).map(|n| child(format!("os{n}"), "amd64")));
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": children });
    upstream.put_manifest(
        "library/app",
        Some("latest"),
        "application/vnd.oci.image.index.v1+json",
        index.to_string().into_bytes(),
    );
    let mirror = TestMirror::of(&upstream).await;
    mirror.get("/v2/library/app/manifests/latest").await.expect(200);
    mirror.get(&image.manifest_path()).await.expect(200);
    let platforms = async || {
        let told = api(&mirror, "images?search=latest").await;
        told["images"][0]["platforms"].as_array().cloned().unwrap_or_default()
    };
    until_async("the image is in the table", async || !platforms().await.is_empty()).await;
    let platforms = platforms().await;
    assert_eq!((platforms.len(), &platforms[0], &platforms[1]), (100, &"linux/amd64".into(), &"os0/amd64".into()));
}

#[tokio::test]
async fn ten_thousand_images_are_searched_sorted_and_paged() {
    let mirror = TestMirror::builder().start().await;
    mirror.fill_with("team/app", 10_000, 100).await;
    let told = api(&mirror, "images?limit=1000000").await;
    assert_eq!((&told["all"], told["images"].as_array().unwrap().len()), (&10_000.into(), 200), "no page is larger");
    let page = names(&mirror, "offset=9990&limit=25").await;
    assert_eq!((page.len(), page[0].as_str()), (10, "docker.io/team/app:v09990"));
    assert_eq!(names(&mirror, "offset=20000").await.len(), 0);
    assert_eq!(names(&mirror, "order=desc&limit=1").await, ["docker.io/team/app:v09999"]);
    let told = api(&mirror, "images?search=V0123").await;
    assert_eq!((&told["matching"], &told["images"][0]["image"]), (&10.into(), &"docker.io/team/app:v01230".into()));
    let sizes = |told: Value| -> Vec<u64> {
        told["images"].as_array().unwrap().iter().map(|row| row["bytes"].as_u64().unwrap()).collect()
    };
    let (small, large) = (
        sizes(api(&mirror, "images?sort=size&limit=200").await),
        sizes(api(&mirror, "images?sort=size&order=desc&limit=200").await),
    );
    assert!(small.is_sorted() && large.is_sorted_by(|a, b| a >= b) && small[0] < large[0], "{small:?} {large:?}");
    order(&mirror, "pin?image=team/app:v05000", &[]).await.expect(200);
    assert_eq!(api(&mirror, "images?sort=pinned&order=desc&limit=1").await["images"][0]["pinned"], true);
    for wrong in ["sort=colour", "order=up", "offset=-1", "limit=x"] {
        get(mirror.admin_url(&format!("/api/images?{wrong}"))).await.expect(400);
    }
}

/// Whatever has happened since, the table is the one that would be made anew: no name of what has gone, none missing that came.
#[tokio::test]
async fn a_table_that_was_kept_up_is_the_one_that_would_be_made_anew() {
    let mirror = TestMirror::builder().start().await;
    let store = mirror.store();
    let repositories: Vec<Repository> = ["team/a", "team/b", "team/c"]
        .map(|name| Repository { upstream: "docker.io".into(), name: name.parse().unwrap() })
        .into();
    let tags: Vec<Tag> = ["latest", "v1", "v2"].map(|tag| tag.parse().unwrap()).into();
    // The last three name those before them.
    let texts: Vec<Bytes> = (0..6).map(|n| Bytes::from(format!("{{\"n\":{n}}}"))).collect();
    let digests: Vec<Digest> = texts.iter().map(|text| Digest::sha256(text)).collect();
    let now = mirror.clock().now();
    let (mut seed, mut seen) = (9_u64, HashSet::new());
    let mut any = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    for step in 0..600 {
        let (repository, tag, n) = (&repositories[any(3)], &tags[any(3)], any(6));
        let (digest, named) = (&digests[n], Reference::Tag(tag.clone()));
        match any(9) {
            0 | 1 => _ = store.put(digest, texts[n].clone(), if n > 2 { &digests[n - 3..n - 2] } else { &[] }).await,
            2 | 3 => {
                let proof = Proof { size: texts[n].len() as u64, media_type: Some("application/x".into()), proven: now };
                store.set_proof(repository, digest, proof);
            }
            4 => store.set_tag(repository, tag, &TagRecord { digest: digest.clone(), checked: now }),
            5 => store.remove_tag(repository, tag),
            6 => _ = store.remove(digest, repository).await.unwrap(),
            7 => store.pin(repository, &named, digest).await.unwrap(),
            _ => _ = store.unpin(repository, &named).await.unwrap(),
        }
        let table = names(&mirror, "limit=200").await;
        assert_eq!(table, mirror.images(), "after step {step}");
        seen.extend(table);
    }
    assert!(seen.len() > 20, "{seen:?}");
}

/// It is made when something has changed and somebody asks.
#[tokio::test]
async fn the_table_is_as_new_as_what_the_operator_has_done() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[1000]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(names(&mirror, "").await.len(), 0);
    mirror.pull(&image, "latest").await;
    let comes = async || !names(&mirror, "").await.is_empty();
    until_async("the image is in the table", comes).await;
    let pinned = order(&mirror, "pin?image=app", &[]).await.expect(200).json();
    assert_eq!((&pinned["report"], &pinned["missing"]), (&"pinned".into(), &0.into()));
    assert_eq!(api(&mirror, "images").await["images"][0]["pinned"], true);
    let refused = order(&mirror, "remove?image=app", &[]).await.expect(409);
    assert!(says(&refused).contains("it is pinned"), "{}", says(&refused));
    order(&mirror, "unpin?image=app", &[]).await.expect(200);
    assert!(order(&mirror, "remove?image=app", &[]).await.expect(200).json()["freed"].as_u64().unwrap() > 0);
    assert_eq!(names(&mirror, "").await.len(), 0);
    assert!(!mirror.holds(&image.digest));
}
