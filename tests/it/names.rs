//! The ways in: however a client names a repository, it is the same one.

use http::Method;

use crate::support::{Client, Image, MultiArch, PutImage, Registry, TestMirror};

async fn pulled(mirror: &TestMirror, image: &PutImage, prefix: &str, repository: &str, query: &str, host: Option<&str>) {
    let headers: Vec<(&str, &str)> = host.iter().map(|host| ("host", *host)).collect();
    for (kind, reference, body) in [
        ("manifests", "latest", &image.manifest),
        ("manifests", &image.digest, &image.manifest),
        ("blobs", &image.layers[0].digest, &image.layers[0].bytes),
    ] {
        let path = format!("{prefix}/v2/{repository}/{kind}/{reference}{query}");
        let answer = mirror.get_with(&path, &headers).await.expect(200);
        assert_eq!(answer.body, *body, "{path} at {host:?}");
    }
}

#[tokio::test]
async fn all_ways_to_a_repository_share_one_fetch() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    let image = Image::new(1).layers(&[1000]).put(&hub, "library/alpine", "latest");
    let mirror = TestMirror::builder()
        .upstream("docker.io", &hub)
        .upstream("quay.io", &quay)
        .set("upstream.\"docker.io\".hosts = [\"hub.mirror.example\"]")
        .set("mirror.default_upstream = \"docker.io\"")
        .start()
        .await;
    for (prefix, repository, query, host) in [
        ("", "library/alpine", "?ns=docker.io", None),
        ("", "library/alpine", "?ns=index.docker.io", None),
        ("", "library/alpine", "?ns=registry-1.docker.io", None),
        ("", "library/alpine", "?ns=Docker.IO", None),
        ("", "library/alpine", "?ns=docker%2Eio", None),
        ("", "library/alpine", "?ns=docker.io&ns=docker.io", None),
        ("", "library/alpine", "?ns=&ns=docker.io&ns=", None),
        ("", "docker.io/library/alpine", "", None),
        ("", "index.docker.io/library/alpine", "", None),
        ("/docker.io", "library/alpine", "", None),
        ("/docker.io", "library/alpine", "?ns=docker.io", None),
        ("", "docker.io/library/alpine", "?ns=docker.io", None),
        ("", "docker.io/library/alpine", "?ns=index.docker.io", None),
        ("/docker.io", "docker.io/library/alpine", "?ns=docker.io", None),
        ("", "library/alpine", "", Some("hub.mirror.example")),
        ("", "library/alpine", "", Some("hub.mirror.example:5000")),
        ("", "library/alpine", "", None),
        ("", "library/alpine", "?ns=", None),
        ("", "alpine", "", None),
        ("", "alpine", "?ns=docker.io", None),
        ("", "docker.io/alpine", "", None),
        ("/docker.io", "alpine", "", None),
    ] {
        pulled(&mirror, &image, prefix, repository, query, host).await;
    }
    assert_eq!(hub.requests().len(), 2, "the tag and the layer, once: {:#?}", hub.requests());
    assert!(quay.requests().is_empty());
}

/// The five ways, each with all that a pull asks for: an index, the manifest it names, config and layer.
#[tokio::test]
async fn an_image_asked_for_in_all_five_ways_is_fetched_once() {
    let corp = Registry::start().await;
    let index = MultiArch::new(13).put(&corp, "team/app", "v1");
    let image = &index.images[0];
    let mirror = TestMirror::builder()
        .upstream("registry.corp:5000", &corp)
        .set("upstream.\"registry.corp:5000\".aliases = [\"registry.corp\"]")
        .set("upstream.\"registry.corp:5000\".hosts = [\"corp.mirror.example:8080\"]")
        .set("mirror.default_upstream = \"registry.corp:5000\"")
        .start()
        .await;
    for (way, prefix, repository, query, host) in [
        ("by ns", "", "team/app", "?ns=registry.corp%3A5000", "mirror"),
        ("by an alias as ns", "", "team/app", "?ns=registry.corp", "mirror"),
        ("by its host name", "", "team/app", "", "corp.mirror.example:8080"),
        ("by a prefix before /v2", "/registry.corp:5000", "team/app", "", "mirror"),
        ("by a prefix after /v2", "", "registry.corp%3A5000/team/app", "", "mirror"),
        ("as BuildKit does", "", "registry.corp:5000/team/app", "?ns=registry.corp:5000", "mirror"),
        ("as containerd does", "/registry.corp:5000", "team/app", "?ns=registry.corp%3A5000", "mirror"),
        ("by saying nothing", "", "team/app", "", "mirror"),
    ] {
        for (rest, body) in [
            ("manifests/v1".to_owned(), &index.manifest),
            (format!("manifests/{}", index.digest), &index.manifest),
            (format!("manifests/{}", image.digest), &image.manifest),
            (format!("blobs/{}", image.config.digest), &image.config.bytes),
            (format!("blobs/{}", image.layers[0].digest), &image.layers[0].bytes),
        ] {
            let path = format!("{prefix}/v2/{repository}/{rest}{query}");
            let answer = mirror.get_with(&path, &[("host", host)]).await.expect(200);
            assert_eq!(answer.body, *body, "{way}: {rest}");
        }
    }
    let asked: Vec<String> = corp.requests().iter().map(|request| format!("{} {}", request.method, request.path)).collect();
    let once = [&"v1".to_owned(), &image.digest].map(|reference| format!("GET /v2/team/app/manifests/{reference}"));
    let blobs = [&image.config, &image.layers[0]].map(|blob| format!("GET /v2/team/app/blobs/{}", blob.digest));
    assert_eq!(asked, [once, blobs].concat());
}

#[tokio::test]
async fn a_host_name_leads_to_the_upstream_that_claims_it() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    Image::new(2).layers(&[1000]).put(&hub, "org/app", "latest");
    let image = Image::new(3).layers(&[1000]).put(&quay, "org/app", "latest");
    let mirror = TestMirror::builder()
        .upstream("docker.io", &hub)
        .upstream("quay.io", &quay)
        .set("upstream.\"quay.io\".hosts = [\"quay.mirror.example\"]")
        .start()
        .await;
    pulled(&mirror, &image, "", "org/app", "", Some("quay.mirror.example")).await;
    pulled(&mirror, &image, "", "org/app", "?ns=quay.io", None).await;
    assert!(hub.requests().is_empty());
    assert_eq!(quay.requests().len(), 2);
}

#[tokio::test]
async fn ns_decides_over_the_host_and_names_its_own_repositories() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    let image = Image::new(4).layers(&[1000]).put(&quay, "org/app", "latest");
    let mirror = TestMirror::builder()
        .upstream("docker.io", &hub)
        .upstream("quay.io", &quay)
        .set("upstream.\"docker.io\".hosts = [\"hub.mirror.example\"]")
        .start()
        .await;
    pulled(&mirror, &image, "", "org/app", "?ns=quay.io", Some("hub.mirror.example")).await;
    mirror.get("/v2/docker.io/org/app/manifests/latest?ns=quay.io").await.expect(404);
    assert!(hub.requests().is_empty(), "a prefix beside another ns is a part of the repository's name");
    assert_eq!(quay.count("GET", "/v2/docker.io/org/app/manifests/latest"), 1);
}

#[tokio::test]
async fn an_upstream_with_a_port_is_named_with_the_port_written_either_way() {
    let corp = Registry::start().await;
    let image = Image::new(5).layers(&[1000]).put(&corp, "app", "latest");
    let mirror = TestMirror::builder().upstream("registry.corp:5000", &corp).start().await;
    pulled(&mirror, &image, "", "app", "?ns=registry.corp%3A5000", None).await;
    pulled(&mirror, &image, "", "app", "?ns=registry.corp:5000", None).await;
    pulled(&mirror, &image, "", "registry.corp:5000/app", "", None).await;
    pulled(&mirror, &image, "", "registry.corp%3A5000/app", "", None).await;
    pulled(&mirror, &image, "/registry.corp:5000", "app", "", None).await;
    let answer = mirror.get("/v2/app/manifests/latest?ns=registry.corp%3A5000").await.expect(200);
    assert_eq!(answer.header("oci-namespace"), Some("registry.corp:5000"));
    assert_eq!(corp.requests().len(), 2, "{:#?}", corp.requests());
    assert!(corp.requests().iter().all(|request| !request.path.contains("library")), "library/ is Docker Hub's alone");
}

#[tokio::test]
async fn the_namespace_comes_back_as_it_was_given_and_only_then() {
    let upstream = Registry::start().await;
    Image::new(6).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for (path, query, status, ns) in [
        ("library/alpine/manifests/latest", "?ns=Index.Docker.io", 200, Some("Index.Docker.io")),
        ("library/alpine/manifests/latest", "", 200, None),
        ("library/alpine/manifests/latest", "?ns=", 200, None),
        ("", "?ns=docker.io", 200, Some("docker.io")),
        ("library/alpine/tags/list", "?ns=docker.io&n=5", 200, Some("docker.io")),
        ("library/alpine/tags/list", "?ns=docker.io&n=x", 400, Some("docker.io")),
        ("library/alpine/manifests/absent", "?ns=docker.io", 404, Some("docker.io")),
        ("library/alpine/manifests/latest", "?ns=evil.example%3A5000", 404, Some("evil.example:5000")),
        ("library/alpine/blobs/sha256:abc", "?ns=docker.io", 400, Some("docker.io")),
        ("Library/manifests/latest", "?ns=docker.io", 400, Some("docker.io")),
        ("library/alpine/manifests/latest", "?ns=a%0D%0Ax-y:z", 404, None),
        ("nonsense", "?ns=docker.io", 404, Some("docker.io")),
    ] {
        let answer = mirror.get(&format!("/v2/{path}{query}")).await.expect(status);
        assert_eq!(answer.header("oci-namespace"), ns, "{path}{query}");
    }
    let url = mirror.url("/v2/library/alpine/manifests/latest?ns=docker.io");
    let answer = Client::h1().request(Method::PUT, url, &[]).await.expect(405);
    assert_eq!(answer.header("oci-namespace"), Some("docker.io"));
}

#[tokio::test]
async fn library_is_docker_hubs_alone() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    Image::new(7).put(&hub, "library/alpine", "latest");
    Image::new(8).put(&quay, "library/alpine", "latest");
    let image = Image::new(9).layers(&[1000]).put(&quay, "alpine", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", &hub).upstream("quay.io", &quay).start().await;
    pulled(&mirror, &image, "", "alpine", "?ns=quay.io", None).await;
    pulled(&mirror, &image, "", "quay.io/alpine", "", None).await;
    assert!(quay.requests().iter().all(|request| request.path.starts_with("/v2/alpine/")), "{:#?}", quay.requests());
    mirror.get("/v2/alpine/manifests/latest").await.expect(200);
    assert_eq!(hub.requests()[0].path, "/v2/library/alpine/manifests/latest");
}

#[tokio::test]
async fn the_same_name_at_two_upstreams_is_two_repositories() {
    let (hub, quay) = (Registry::start().await, Registry::start().await);
    let at_hub = Image::new(10).layers(&[1000]).put(&hub, "org/app", "latest");
    let at_quay = Image::new(11).layers(&[1000]).put(&quay, "org/app", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", &hub).upstream("quay.io", &quay).start().await;
    pulled(&mirror, &at_hub, "", "org/app", "", None).await;
    pulled(&mirror, &at_quay, "", "org/app", "?ns=quay.io", None).await;
    mirror.get(&format!("/v2/org/app/blobs/{}?ns=quay.io", at_hub.layers[0].digest)).await.expect(404);
}

#[tokio::test]
async fn an_upstream_that_is_not_configured_is_refused_and_nobody_is_asked() {
    let upstream = Registry::start().await;
    Image::new(12).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for path in [
        "/v2/library/alpine/manifests/latest?ns=evil.example",
        "/v2/library/alpine/manifests/latest?ns=127.0.0.1%3A1",
        "/evil.example/v2/library/alpine/manifests/latest",
        "/v2/evil.example:443/library/alpine/manifests/latest",
    ] {
        let answer = mirror.get(path).await.expect(404);
        assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"), "{path}");
        assert_eq!(answer.header("cache-status"), Some("larder; detail=refused"), "{path}");
    }
    assert!(upstream.requests().is_empty(), "{:#?}", upstream.requests());
}
