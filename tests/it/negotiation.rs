//! Which manifest a client gets that does not take every kind.

use http::Method;

use crate::support::{Answer, Client, Image, MultiArch, Registry, TestMirror};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

async fn accepting(mirror: &TestMirror, path: &str, accept: &str) -> Answer {
    mirror.get_with(path, &[("accept", accept)]).await
}

#[track_caller]
fn not_accepted(answer: Answer) {
    let answer = answer.expect(404);
    assert_eq!(answer.error_code().as_deref(), Some("MANIFEST_UNKNOWN"));
    assert!(answer.text().contains("Accept"), "the reason is told: {}", answer.text());
}

#[tokio::test]
async fn whoever_takes_what_is_there_gets_it() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(1).put(&upstream, "library/alpine", "latest");
    let list = MultiArch::new(2).docker().put(&upstream, "library/alpine", "docker");
    let mirror = TestMirror::of(&upstream).await;
    let containerd = format!("{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*");
    for accept in
        [&*containerd, "*/*", "application/*", "text/plain;q=0.5,*/*;q=0.1", &format!("{DOCKER_LIST},{OCI_INDEX};q=0.2")]
    {
        for (tag, put) in [("latest", &index), ("docker", &list)] {
            let answer = accepting(&mirror, &put.tag_path(tag), accept).await.expect(200);
            assert_eq!((answer.header("content-type"), answer.digest()), (Some(put.media_type), put.digest.clone()), "{accept}");
            assert_eq!(answer.header("vary").map(str::to_ascii_lowercase).as_deref(), Some("accept"));
        }
    }
    // Docker's client: one line for each type.
    let lines = [("accept", DOCKER_MANIFEST), ("accept", DOCKER_LIST), ("accept", OCI_MANIFEST), ("accept", OCI_INDEX)];
    assert_eq!(mirror.get_with(&index.tag_path("latest"), &lines).await.expect(200).digest(), index.digest);
}

#[tokio::test]
async fn who_says_nothing_gets_what_is_there() {
    let upstream = Registry::start().await;
    let list = MultiArch::new(1).docker().put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let request = format!("HEAD {} HTTP/1.1\r\nhost: mirror\r\nconnection: close\r\n\r\n", list.tag_path("latest"));
    let answer = String::from_utf8(crate::support::raw(mirror.address(), request).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&list.digest), "{answer}");
}

#[tokio::test]
async fn who_knows_no_lists_gets_dockers_image_for_amd64_under_its_own_digest() {
    let upstream = Registry::start().await;
    let list = MultiArch::new(1).docker().put(&upstream, "library/alpine", "latest");
    let amd64 = &list.images[0];
    let mirror = TestMirror::of(&upstream).await;
    for accept in [DOCKER_MANIFEST, &format!("application/vnd.docker.distribution.manifest.v1+prettyjws, {DOCKER_MANIFEST}")] {
        for method in [Method::GET, Method::HEAD] {
            let url = mirror.url(&list.tag_path("latest"));
            let answer = Client::h1().request(method.clone(), url, &[("accept", accept)]).await.expect(200);
            assert_eq!(answer.header("docker-content-digest"), Some(&*amd64.digest));
            assert_eq!(answer.header("etag"), Some(&*format!("\"{}\"", amd64.digest)));
            assert_eq!(answer.header("content-type"), Some(DOCKER_MANIFEST));
            assert_eq!(answer.header("content-length"), Some(&*amd64.manifest.len().to_string()));
            assert_eq!(answer.body, if method == Method::GET { &amd64.manifest[..] } else { b"" });
        }
    }
    assert_eq!(
        accepting(&mirror, &list.tag_path("latest"), "*/*").await.expect(200).digest(),
        list.digest,
        "the tag is the list's"
    );
}

#[tokio::test]
async fn who_takes_nothing_of_dockers_does_not_get_a_child_either() {
    let upstream = Registry::start().await;
    let list = MultiArch::new(1).docker().put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    not_accepted(accepting(&mirror, &list.tag_path("latest"), OCI_MANIFEST).await);
}

#[tokio::test]
async fn an_oci_index_is_unknown_to_who_does_not_take_it() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for accept in [OCI_MANIFEST, DOCKER_MANIFEST, &format!("{DOCKER_MANIFEST}, {DOCKER_LIST}")] {
        not_accepted(accepting(&mirror, &index.tag_path("latest"), accept).await);
    }
    assert_eq!(accepting(&mirror, &index.tag_path("latest"), OCI_INDEX).await.expect(200).digest(), index.digest);
}

#[tokio::test]
async fn by_digest_everyone_gets_what_has_the_digest() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(1).put(&upstream, "library/alpine", "latest");
    let list = MultiArch::new(2).docker().put(&upstream, "library/alpine", "docker");
    let mirror = TestMirror::of(&upstream).await;
    for put in [&index, &list] {
        for accept in [OCI_MANIFEST, DOCKER_MANIFEST, "application/json", "text/html"] {
            let answer = accepting(&mirror, &put.manifest_path(), accept).await.expect(200);
            assert_eq!((answer.header("content-type"), answer.digest()), (Some(put.media_type), put.digest.clone()), "{accept}");
        }
    }
}

#[tokio::test]
async fn the_upstream_is_asked_for_every_current_type_whatever_the_client_takes() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    accepting(&mirror, &image.tag_path("latest"), OCI_MANIFEST).await.expect(200);
    mirror.clock().advance(std::time::Duration::from_secs(61));
    accepting(&mirror, &image.tag_path("latest"), OCI_MANIFEST).await.expect(200);
    let other = Image::new(2).put(&upstream, "library/alpine", "other");
    accepting(&mirror, &other.manifest_path(), OCI_MANIFEST).await.expect(200);

    let requests = upstream.requests();
    let methods: Vec<_> = requests.iter().map(|request| request.method.as_str()).collect();
    assert_eq!(methods, ["GET", "HEAD", "GET"]);
    for request in requests {
        let lines: Vec<_> = request.headers.get_all("accept").iter().map(|line| line.to_str().unwrap()).collect();
        let accept = lines.join(", ");
        for media_type in [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
            assert!(accept.contains(media_type), "{accept}");
        }
        assert!(accept.ends_with("*/*"), "{accept}");
        assert!(!accept.contains("distribution.manifest.v1"), "or it would convert to schema 1: {accept}");
    }
}

#[tokio::test]
async fn one_question_serves_clients_of_all_tastes() {
    let upstream = Registry::start().await;
    let list = MultiArch::new(1).docker().put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    for accept in ["*/*", DOCKER_LIST, DOCKER_MANIFEST] {
        accepting(&mirror, &list.tag_path("latest"), accept).await.expect(200);
    }
    not_accepted(accepting(&mirror, &list.tag_path("latest"), OCI_INDEX).await);
    assert_eq!((upstream.count("GET", "latest"), upstream.count("HEAD", "latest")), (1, 0));
}
