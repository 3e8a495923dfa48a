//! Whole pulls, as clients make them.

use crate::support::{MultiArch, Registry, TestMirror};

#[tokio::test]
async fn a_cold_pull_asks_the_upstream_once_for_everything_and_a_warm_one_not_at_all() {
    let upstream = Registry::start().await;
    let image = MultiArch::new(1).layers(&[1000, 300_000]).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for round in ["cold", "warm"] {
        let index = mirror.get("/v2/library/alpine/manifests/latest?ns=docker.io").await.expect(200);
        assert_eq!(index.digest(), image.digest, "{round}");
        for image in &image.images {
            let manifest = mirror.get(&format!("/v2/library/alpine/manifests/{}?ns=docker.io", image.digest)).await.expect(200);
            assert_eq!(manifest.body, image.manifest);
            for blob in image.blobs() {
                let answer = mirror.get(&format!("/v2/library/alpine/blobs/{}?ns=docker.io", blob.digest)).await.expect(200);
                assert_eq!(answer.body, blob.bytes, "{round}");
            }
        }
        let requests = upstream.requests();
        assert_eq!(requests.len(), 1 + 2 + 2 * 3, "{round}: {requests:#?}");
    }
}
