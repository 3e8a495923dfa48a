//! Tags and referrers: lists that only the upstream knows.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Answer, Fault, Image, Match, PutImage, Registry, TestMirror, digest_of};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TAGS: &str = "/v2/library/alpine/tags/list";

async fn with_tags(tags: &[&str]) -> Registry {
    let upstream = Registry::start().await;
    let image = Image::new(1).put_untagged(&upstream, "library/alpine");
    for tag in tags {
        upstream.tag("library/alpine", tag, &image.digest);
    }
    upstream
}

fn tags(answer: &Answer) -> Vec<String> {
    let tags = answer.json()["tags"].as_array().expect("never null").clone();
    tags.iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

/// Where the list goes on: a path of the same server, as some clients follow no other.
#[track_caller]
fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let path = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect(link);
    assert!(path.starts_with('/') && !path.starts_with("//"), "{link}");
    Some(path.to_owned())
}

/// All pages from this one on, as a client follows them.
async fn follow(mirror: &TestMirror, path: &str) -> Vec<Answer> {
    let mut pages = vec![mirror.get(path).await.expect(200)];
    while let Some(path) = next(pages.last().unwrap()) {
        assert!(pages.len() < 10, "the list does not end: {path}");
        pages.push(mirror.get(&path).await.expect(200));
    }
    pages
}

async fn all_tags(mirror: &TestMirror, path: &str) -> Vec<String> {
    follow(mirror, path).await.iter().flat_map(tags).collect()
}

#[tokio::test]
async fn the_tags_are_the_upstreams_under_the_name_that_the_client_knows() {
    let upstream = with_tags(&["3.20", "edge", "latest"]).await;
    let mirror = TestMirror::of(&upstream).await;
    for (path, name) in [
        ("/v2/library/alpine/tags/list", "library/alpine"),
        ("/v2/alpine/tags/list", "alpine"),
        ("/v2/docker.io/library/alpine/tags/list", "docker.io/library/alpine"),
        ("/v2/library/alpine/tags/list?ns=docker.io", "library/alpine"),
    ] {
        let answer = mirror.get(path).await.expect(200);
        assert_eq!(answer.json(), json!({ "name": name, "tags": ["3.20", "edge", "latest"] }));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("link"), None);
    }
}

#[tokio::test]
async fn a_list_is_asked_for_each_time_as_a_cache_knows_only_what_was_pulled() {
    let upstream = with_tags(&["a"]).await;
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(all_tags(&mirror, TAGS).await, ["a"]);
    let image = Image::new(2).put(&upstream, "library/alpine", "b");
    assert_eq!(all_tags(&mirror, TAGS).await, ["a", "b"]);
    upstream.untag("library/alpine", "a");
    assert_eq!(all_tags(&mirror, TAGS).await, ["b"]);
    assert_eq!(mirror.get(&image.tag_path("b")).await.expect(200).body, image.manifest);
}

#[tokio::test]
async fn pages_follow_each_other_and_keep_the_way_to_the_upstream() {
    let upstream = with_tags(&["a", "b", "c", "d", "e"]).await;
    let mirror = TestMirror::of(&upstream).await;
    for (path, kept) in [
        ("/v2/library/alpine/tags/list?n=2", "/v2/library/alpine/"),
        ("/v2/library/alpine/tags/list?n=2&ns=docker.io", "ns=docker.io"),
        ("/v2/docker.io/library/alpine/tags/list?n=2", "/v2/docker.io/library/alpine/"),
        ("/docker.io/v2/library/alpine/tags/list?n=2", "/docker.io/v2/library/alpine/"),
    ] {
        let pages = follow(&mirror, path).await;
        assert_eq!(pages.iter().map(tags).collect::<Vec<_>>(), [vec!["a", "b"], vec!["c", "d"], vec!["e"]], "{path}");
        let link = next(&pages[0]).unwrap();
        assert!(link.contains(kept), "{path}: {link}");
    }
    assert_eq!(all_tags(&mirror, &format!("{TAGS}?last=b")).await, ["c", "d", "e"]);
    assert_eq!(all_tags(&mirror, &format!("{TAGS}?n=9&last=bb")).await, ["c", "d", "e"], "after a tag that is not there");
    assert_eq!(tags(&mirror.get(&format!("{TAGS}?n=2&last=e")).await.expect(200)), [""; 0]);
}

#[tokio::test]
async fn a_page_of_nothing_is_empty_and_the_last() {
    let upstream = with_tags(&["a", "b"]).await;
    let mirror = TestMirror::of(&upstream).await;
    let answer = mirror.get(&format!("{TAGS}?n=0")).await.expect(200);
    assert_eq!((tags(&answer), answer.header("link")), (vec![], None));
}

#[tokio::test]
async fn a_page_of_a_size_that_is_no_number_is_refused() {
    let upstream = with_tags(&["a", "b"]).await;
    let mirror = TestMirror::of(&upstream).await;
    for n in ["-1", "x", "1.5", "18446744073709551616", "1e9"] {
        let answer = mirror.get(&format!("{TAGS}?n={n}")).await.expect(400);
        assert_eq!(answer.error_code().as_deref(), Some("PAGINATION_NUMBER_INVALID"), "{n}");
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn a_page_is_never_longer_than_registries_allow() {
    let upstream = with_tags(&["a", "b"]).await;
    let mirror = TestMirror::of(&upstream).await;
    for n in ["1001", "100000", "9223372036854775808", "18446744073709551615"] {
        upstream.forget_requests();
        assert_eq!(all_tags(&mirror, &format!("{TAGS}?n={n}")).await, ["a", "b"]);
        assert_eq!(upstream.requests()[0].parameter("n").as_deref(), Some("1000"), "{n}");
        mirror.clock().advance(std::time::Duration::from_mins(1));
    }
}

#[tokio::test]
async fn an_upstream_that_passes_over_the_query_is_paged_here() {
    let upstream = Registry::start().await;
    let all = json!({ "name": "library/alpine", "tags": ["d", "b", "a", "c", "e"] }).to_string();
    upstream.on(Match::get("tags/list"), Fault::answer(200, &[("content-type", "application/json")], all));
    let mirror = TestMirror::of(&upstream).await;
    let pages = follow(&mirror, &format!("{TAGS}?n=2")).await;
    assert_eq!(pages.iter().map(tags).collect::<Vec<_>>(), [vec!["a", "b"], vec!["c", "d"], vec!["e"]]);
    assert_eq!(all_tags(&mirror, &format!("{TAGS}?last=c")).await, ["d", "e"]);
}

/// Scripts the pages of a list: each with what its `Link` says.
fn script(upstream: &Registry, pages: &[(&str, Option<&str>)]) {
    for (tags, link) in pages {
        let body = json!({ "name": "library/alpine", "tags": tags.split(' ').collect::<Vec<_>>() }).to_string();
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(link.map(|link| ("link", link)));
        upstream.on(Match::get("tags/list").times(1), Fault::answer(200, &headers, body));
    }
}

#[tokio::test]
async fn of_an_absolute_link_only_the_place_in_the_list_is_kept() {
    let upstream = Registry::start().await;
    let link = "<https://quay.example/v2/library/alpine/tags/list?n=2&next_page=gAAAA%3D%3D>; rel=\"next\"";
    script(&upstream, &[("x y", Some(link)), ("b a", None)]);
    let mirror = TestMirror::of(&upstream).await;
    let pages = follow(&mirror, &format!("{TAGS}?n=2&ns=docker.io")).await;
    assert_eq!(pages.iter().flat_map(tags).collect::<Vec<_>>(), ["x", "y", "b", "a"]);
    let second = &upstream.requests()[1];
    assert_eq!((second.path.as_str(), second.parameter("next_page").as_deref()), (TAGS, Some("gAAAA==")));
    assert_eq!(second.parameter("ns"), None);
}

/// A registry may name the place in a list by a key of its own. Such a `Link` was dropped, and the list ended early.
#[tokio::test]
async fn a_place_that_is_named_by_a_key_of_the_registrys_own_is_handed_back_to_it() {
    let upstream = Registry::start().await;
    let link = "<https://corp.example/v2/library/alpine/tags/list?marker=a%2Fb%3D&n=2>; rel=\"next\"";
    script(&upstream, &[("x y", Some(link)), ("b a", Some("<?abc>; rel=\"next\"")), ("d c e", None)]);
    let mirror = TestMirror::of(&upstream).await;
    let pages = follow(&mirror, &format!("{TAGS}?n=2&ns=docker.io")).await;
    assert_eq!(pages.iter().flat_map(tags).collect::<Vec<_>>(), ["x", "y", "b", "a", "d", "c", "e"]);
    assert!(pages[..2].iter().all(|page| next(page).unwrap().contains("ns=docker.io")));
    let queries: Vec<String> = upstream.requests().into_iter().map(|request| request.query).collect();
    assert_eq!(queries, ["n=2", "marker=a%2Fb%3D&n=2", "abc"]);
}

#[tokio::test]
async fn a_place_that_is_too_long_to_be_carried_is_an_error_and_no_end() {
    let upstream = Registry::start().await;
    let link = format!("<?marker={}>; rel=\"next\"", "a".repeat(3000));
    script(&upstream, &[("x y", Some(&link))]);
    TestMirror::of(&upstream).await.get(TAGS).await.expect(502);
}

/// The specification lets a registry sort without regard to case: `B` then comes after `a`. The last page has no `Link`, so a
/// larder that takes every tag before `last` in ASCII order for one already given would lose it.
#[tokio::test]
async fn the_last_page_of_an_upstream_that_sorts_without_case_is_whole() {
    let upstream = Registry::start().await;
    script(&upstream, &[("1.0 a", Some("</v2/library/alpine/tags/list?n=2&last=a>; rel=\"next\"")), ("B c", None)]);
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(all_tags(&mirror, &format!("{TAGS}?n=2")).await, ["1.0", "a", "B", "c"]);
}

/// What `last` is, is the registry's affair: some put an opaque place into it.
#[tokio::test]
async fn the_last_page_after_an_opaque_place_is_whole() {
    let upstream = Registry::start().await;
    script(&upstream, &[("b z", Some("</v2/library/alpine/tags/list?n=2&last=zyx%3D%3D>; rel=\"next\"")), ("a q", None)]);
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(all_tags(&mirror, &format!("{TAGS}?n=2")).await, ["b", "z", "a", "q"]);
}

/// A registry that was not told how long a page may be may say `n=0` where the list goes on. To the registry that means "as
/// you like"; from a client it means "none".
#[tokio::test]
async fn a_list_goes_on_after_a_link_that_does_not_say_how_far() {
    let upstream = Registry::start().await;
    script(&upstream, &[("a b", Some("</v2/library/alpine/tags/list?last=b&n=0>; rel=\"next\"")), ("c", None)]);
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(all_tags(&mirror, TAGS).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_repository_without_tags_has_an_empty_list() {
    for body in [r#"{"name":"library/alpine","tags":null}"#, r#"{"name":"library/alpine"}"#, r#"{"tags":[]}"#] {
        let upstream = Registry::start().await;
        upstream.on(Match::get("tags/list"), Fault::answer(200, &[("content-type", "application/json")], body));
        let mirror = TestMirror::of(&upstream).await;
        assert_eq!(mirror.get(TAGS).await.expect(200).json(), json!({ "name": "library/alpine", "tags": [] }), "{body}");
    }
}

#[tokio::test]
async fn an_old_list_stands_in_while_the_upstream_is_down() {
    let upstream = with_tags(&["a", "b"]).await;
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.get(TAGS).await.expect(200).header("warning"), None);
    upstream.stop().await;
    let answer = mirror.get(TAGS).await.expect(200);
    assert_eq!(tags(&answer), ["a", "b"]);
    assert!(answer.header("warning").is_some_and(|warning| warning.starts_with("299 - \"")), "{:?}", answer.headers);
    mirror.clock().advance(Duration::from_hours(24 * 7 + 1));
    mirror.get(TAGS).await.expect(502);
    upstream.restart().await;
    mirror.clock().advance(Duration::from_secs(5));
    assert_eq!(mirror.get(TAGS).await.expect(200).header("warning"), None);
}

#[tokio::test]
async fn a_repository_that_is_gone_is_not_masked() {
    let upstream = with_tags(&["a"]).await;
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAGS).await.expect(200);
    upstream.on(Match::get("tags/list"), Fault::status(404));
    let answer = mirror.get(TAGS).await.expect(404);
    assert_eq!(answer.error_code().as_deref(), Some("NAME_UNKNOWN"));
}

fn referrer(name: &str, artifact_type: &str) -> Value {
    json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest_of(name.as_bytes()), "size": name.len(),
            "artifactType": artifact_type, "annotations": { "name": name } })
}

fn index_of(referrers: &[Value]) -> String {
    serde_json::to_string_pretty(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": referrers })).unwrap()
}

fn referrers_path(image: &PutImage) -> String {
    format!("/v2/{}/referrers/{}", image.repository, image.digest)
}

#[tokio::test]
async fn referrers_are_passed_on_as_they_are() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let index = index_of(&[referrer("signature", "application/signature"), referrer("sbom", "application/sbom")]);
    upstream.put_referrers("library/alpine", &image.digest, Some(index.clone().into()));
    let mirror = TestMirror::of(&upstream).await;
    for _ in ["cold", "warm"] {
        let answer = mirror.get(&referrers_path(&image)).await.expect(200);
        assert_eq!(answer.text(), index);
        assert_eq!(answer.header("content-type"), Some(INDEX));
        assert_eq!(answer.header("oci-filters-applied"), None);
        let head = mirror.head(&referrers_path(&image)).await.expect(200);
        assert_eq!(head.header("content-length"), Some(&*index.len().to_string()));
    }
}

#[tokio::test]
async fn referrers_are_filtered_and_the_answer_says_so() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let (signature, sbom) = (referrer("signature", "application/x+signature"), referrer("sbom", "application/sbom"));
    upstream.put_referrers("library/alpine", &image.digest, Some(index_of(&[signature.clone(), sbom]).into()));
    let mirror = TestMirror::of(&upstream).await;
    for (artifact_type, left) in [("application/x%2Bsignature", vec![signature]), ("application/none", vec![])] {
        let answer = mirror.get(&format!("{}?artifactType={artifact_type}", referrers_path(&image))).await.expect(200);
        assert_eq!(answer.json(), json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": left }));
        assert_eq!(answer.header("content-type"), Some(INDEX));
        assert_eq!(answer.header("oci-filters-applied"), Some("artifactType"));
    }
}

#[tokio::test]
async fn what_nothing_refers_to_has_an_empty_index() {
    let upstream = Registry::start().await;
    upstream.put_referrers("library/alpine", &digest_of(b"other"), None);
    let mirror = TestMirror::of(&upstream).await;
    // The second repository is one that the upstream does not have.
    for repository in ["library/alpine", "library/nothing"] {
        let answer = mirror.get(&format!("/v2/{repository}/referrers/{}", digest_of(b"unknown"))).await.expect(200);
        assert_eq!(answer.json(), json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }));
        assert_eq!(answer.header("content-type"), Some(INDEX));
    }
}

#[tokio::test]
async fn an_upstream_without_the_api_is_asked_for_the_tag_that_stands_in() {
    for fault in [
        None,
        Some(Fault::status(400)),
        Some(Fault::status(405)),
        Some(Fault::answer(200, &[("content-type", "text/html")], "<html>")),
    ] {
        let upstream = Registry::start().await;
        let image = Image::new(1).put(&upstream, "library/alpine", "latest");
        if let Some(fault) = &fault {
            upstream.on(Match::get("/referrers/"), fault.clone());
        }
        let (signature, sbom) = (referrer("signature", "application/signature"), referrer("sbom", "application/sbom"));
        let index = index_of(&[signature, sbom.clone()]);
        upstream.put_manifest("library/alpine", Some(&image.digest.replace(':', "-")), INDEX, index.clone());
        let mirror = TestMirror::of(&upstream).await;
        let answer = mirror.get(&referrers_path(&image)).await.expect(200);
        assert_eq!((answer.text(), answer.header("content-type")), (index, Some(INDEX)), "{fault:?}");
        let answer = mirror.get(&format!("{}?artifactType=application/sbom", referrers_path(&image))).await.expect(200);
        assert_eq!(answer.json()["manifests"], json!([sbom]), "{fault:?}");
    }
}

#[tokio::test]
async fn an_upstream_with_neither_the_api_nor_the_tag_has_no_referrers() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let answer = mirror.get(&referrers_path(&image)).await.expect(200);
    assert_eq!(answer.json(), json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }));
}

/// A registry may give referrers in pages, too. Without the second a client takes an image for unsigned.
#[tokio::test]
async fn referrers_that_come_in_pages_are_all_to_be_had() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let link = format!("<{}?next=2>; rel=\"next\"", referrers_path(&image));
    let headers = [("content-type", INDEX), ("link", &*link)];
    let pages = [referrer("sbom", "application/sbom"), referrer("signature", "application/signature")];
    upstream.on(Match::get("/referrers/").times(1), Fault::answer(200, &headers, index_of(&pages[..1])));
    upstream.on(Match::get("/referrers/"), Fault::answer(200, &headers[..1], index_of(&pages[1..])));
    let mirror = TestMirror::of(&upstream).await;
    let answers = follow(&mirror, &referrers_path(&image)).await;
    let found: Vec<Value> = answers.iter().flat_map(|page| page.json()["manifests"].as_array().unwrap().clone()).collect();
    assert_eq!(found, pages);
}

/// A hundred pages of four megabytes were held at once.
#[tokio::test]
async fn a_list_of_referrers_that_is_endless_is_given_up_before_it_fills_the_memory() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/alpine", "latest");
    let link = format!("<{}?next=2>; rel=\"next\"", referrers_path(&image));
    let page = index_of(&[referrer(&"x".repeat(3 << 20), "application/sbom")]);
    upstream.on(Match::get("/referrers/"), Fault::answer(200, &[("content-type", INDEX), ("link", &*link)], page));
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&referrers_path(&image)).await.expect(502);
    assert!(upstream.count("GET", "/referrers/") <= 6, "{}", upstream.count("GET", "/referrers/"));
}

/// However little there is on each.
#[tokio::test]
async fn a_list_of_referrers_of_more_than_a_hundred_pages_is_given_up() {
    let upstream = Registry::start().await;
    for (pages, status) in [(100, 200), (101, 502)] {
        upstream.heal();
        upstream.forget_requests();
        let goes_on = [("content-type", INDEX), ("link", "<?next=2>; rel=\"next\"")];
        upstream.on(Match::get("/referrers/").times(pages - 1), Fault::answer(200, &goes_on, index_of(&[])));
        upstream.on(Match::get("/referrers/"), Fault::answer(200, &[("content-type", INDEX)], index_of(&[])));
        let mirror = TestMirror::of(&upstream).await;
        mirror.get(&format!("/v2/library/alpine/referrers/{}", digest_of(b"x"))).await.expect(status);
        assert_eq!(upstream.requests().len(), pages);
    }
}

/// Each held what it had while it waited for its next page, and there may be a thousand.
#[tokio::test]
async fn of_lists_of_referrers_that_go_on_eight_are_read_on_at_a_time() {
    const LISTS: usize = 20;
    let upstream = Registry::start().await;
    let goes_on = [("content-type", INDEX), ("link", "<?next=2>; rel=\"next\"")];
    upstream.on(Match::get("/referrers/").times(LISTS), Fault::answer(200, &goes_on, index_of(&[])));
    upstream.on(Match::get("/referrers/"), Fault::Hang);
    let mirror = TestMirror::of(&upstream).await;
    let paths: Vec<_> = (0..LISTS).map(|n| format!("/v2/library/alpine/referrers/{}", digest_of(&n.to_be_bytes()))).collect();
    let counted = async {
        upstream.seen("GET", "/referrers/", LISTS + 8).await;
        for _ in 0..20 {
            mirror.get("/v2/").await.expect(200);
        }
        assert_eq!(upstream.held_now(), 8);
    };
    tokio::select! {
        _ = join_all(paths.iter().map(|path| mirror.get(path))) => panic!("none of them ends"),
        () = counted => {}
    }
}
