//! larder's own accounts: which is used for which repository, and what they have left.

use std::time::Duration;

use crate::support::{ANONYMOUS, Fault, Image, Like, Match, MultiArch, PutIndex, Registry, StoppedMirror, TestMirror};

const HOUR: Duration = Duration::from_hours(1);

/// Docker Hub with two users.
async fn hub() -> Registry {
    Registry::with(Like::DockerHub.setup().login("ann", "canary-of-ann").login("bob", "canary-of-bob")).await
}

/// A larder that trusts Docker Hub's token service with its credentials.
fn before(hub: &Registry) -> StoppedMirror {
    let host = hub.token_url().replace("http://", "");
    TestMirror::builder().upstream("docker.io", hub).set(&format!("upstream.\"docker.io\".token_hosts = [{host:?}]"))
}

/// One more account, for some repositories or for all.
fn account(mirror: StoppedMirror, lines: &[(&str, &str, &str)]) -> StoppedMirror {
    let mut tables = Vec::new();
    for (user, password, repositories) in lines {
        let file = mirror.dir().join(format!("password-of-{user}"));
        std::fs::write(&file, password).unwrap();
        let repositories = if repositories.is_empty() { String::new() } else { format!(", repositories = [{repositories:?}]") };
        let login =
            if user.is_empty() { String::new() } else { format!("username = {user:?}, password_file = \"{}\"", file.display()) };
        tables.push(format!("{{ {} }}", format!("{login}{repositories}").trim_start_matches(", ")));
    }
    mirror.set(&format!("upstream.\"docker.io\".account = [{}]", tables.join(", ")))
}

const BOTH: &[(&str, &str, &str)] = &[("ann", "canary-of-ann", ""), ("bob", "canary-of-bob", "")];

fn put(hub: &Registry, repository: &str) -> PutIndex {
    // Each with content of its own: what another repository holds as well is not fetched again.
    MultiArch::new(repository.bytes().map(u64::from).sum()).put(hub, repository, "latest")
}

fn gets(hub: &Registry, account: &str) -> usize {
    let counted = |request: &&crate::support::Recorded| {
        request.method == "GET"
            && request.path.contains("/manifests/")
            && request.account == account
            && request.authorization().is_some()
    };
    hub.requests().iter().filter(counted).count()
}

#[tokio::test]
async fn the_pattern_that_says_most_about_a_repository_chooses_the_account() {
    let hub = hub().await;
    let patterns = &[("ann", "canary-of-ann", "team/**"), ("bob", "canary-of-bob", "team/app"), ("", "", "**")];
    let mirror = account(before(&hub), patterns).start().await;
    for (repository, user) in [("team/app", "bob"), ("team/other", "ann"), ("team/a/b", "ann"), ("library/app", ANONYMOUS)] {
        put(&hub, repository);
        mirror.get(&format!("/v2/{repository}/manifests/latest")).await.expect(200);
        assert_eq!(hub.tokens(user, &format!("repository:{repository}:pull")), 1, "{repository}");
    }
    assert_eq!(hub.token_requests(), 4);
}

/// It was a 403, said in the name of an upstream that nobody had asked.
#[tokio::test]
async fn what_no_account_is_for_is_asked_for_as_nobody() {
    let hub = hub().await;
    let mirror = account(before(&hub), &[("ann", "canary-of-ann", "team/**")]).start().await;
    for (repository, user) in [("team/app", "ann"), ("library/app", ANONYMOUS)] {
        put(&hub, repository);
        mirror.get(&format!("/v2/{repository}/manifests/latest")).await.expect(200);
        assert_eq!(hub.tokens(user, &format!("repository:{repository}:pull")), 1, "{repository}");
    }
}

#[tokio::test]
async fn when_one_account_has_used_up_its_budget_the_next_is_used() {
    let hub = hub().await;
    let mirror = account(before(&hub), BOTH).start().await;
    hub.set_budget("ann", 2);
    for seed in 0..3 {
        let repository = format!("library/app{seed}");
        let image = put(&hub, &repository);
        mirror.get(&image.tag_path("latest")).await.expect(200);
        mirror.get(&image.images[0].manifest_path()).await.expect(200);
    }
    assert_eq!((gets(&hub, "ann"), gets(&hub, "bob")), (2, 4), "and no question of ann's was refused");
    assert_eq!(hub.budget("ann"), 0);
    assert_eq!(hub.budget("bob"), 96);
}

#[tokio::test]
async fn an_account_that_is_refused_for_its_rate_is_followed_by_the_next_within_the_same_question() {
    let hub = hub().await;
    hub.set_budget("ann", 0);
    let image = put(&hub, "library/app");
    let mirror = account(before(&hub), BOTH).start().await;
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    assert_eq!((gets(&hub, "ann"), gets(&hub, "bob")), (1, 1), "ann's 429 told what was not known before");
    mirror.get(&image.images[0].manifest_path()).await.expect(200);
    assert_eq!((gets(&hub, "ann"), gets(&hub, "bob")), (1, 2));
}

#[tokio::test]
async fn an_account_that_is_not_let_in_is_followed_by_the_next_and_what_that_one_is_denied_is_not_believed() {
    let hub = hub().await;
    let (image, private) = (put(&hub, "library/app"), put(&hub, "team/private"));
    hub.restrict("team/private", &["ann"]);
    let mistyped = &[("ann", "canary-mistyped", ""), ("bob", "canary-of-bob", "")];
    let mirror = account(before(&hub), mistyped).start().await;
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    assert_eq!(gets(&hub, "bob"), 1);
    let trouble = mirror.get(&private.tag_path("latest")).await.expect(502);
    assert!(trouble.text().contains("credentials"), "{}", trouble.text());
}

// === the budget at zero ===

#[tokio::test]
async fn with_nothing_left_nothing_is_asked_before_the_reset_and_what_is_cached_is_served() {
    let hub = Registry::like(Like::DockerHub).await;
    let (image, other) = (put(&hub, "library/app"), put(&hub, "library/other"));
    let mirror = TestMirror::of(&hub).await;
    hub.set_budget(ANONYMOUS, 2);
    mirror.get(&image.tag_path("latest")).await.expect(200);
    let child = &image.images[0];
    mirror.get(&child.manifest_path()).await.expect(200);
    assert_eq!(hub.budget(ANONYMOUS), 0);
    // Layers are not counted: what was allowed can be pulled to its end.
    for blob in child.blobs() {
        assert_eq!(mirror.get(&child.blob_path(blob)).await.expect(200).body, blob.bytes);
    }
    hub.forget_requests();

    for _ in 0..5 {
        mirror.clock().advance(HOUR);
        let stale = mirror.get(&image.tag_path("latest")).await.expect(200);
        assert!(stale.header("warning").is_some_and(|warning| warning.starts_with("299 ")), "{:?}", stale.headers);
        mirror.get(&child.manifest_path()).await.expect(200);
        let refused = mirror.get(&other.tag_path("latest")).await.expect(429);
        assert_eq!(refused.error_code().as_deref(), Some("TOOMANYREQUESTS"));
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=10).contains(&seconds), "podman sleeps for {seconds} s");
    }
    assert_eq!(hub.requests().len(), 0, "{:#?}", hub.requests());

    hub.set_budget(ANONYMOUS, 100);
    mirror.clock().advance(HOUR + HOUR / 60);
    assert_eq!(mirror.get(&other.tag_path("latest")).await.expect(200).body, other.manifest);
    assert!(mirror.get(&image.tag_path("latest")).await.expect(200).header("warning").is_none());
}

#[tokio::test]
async fn an_abuse_limit_in_plain_text_is_a_rate_limit_as_well() {
    let hub = Registry::like(Like::DockerHub).await;
    let image = put(&hub, "library/app");
    hub.on(Match::any("/manifests/"), Fault::answer(429, &[("content-type", "text/plain")], "Too Many Requests"));
    let mirror = TestMirror::of(&hub).await;
    for _ in 0..10 {
        let answer = mirror.get(&image.tag_path("latest")).await.expect(429);
        assert_eq!(answer.error_code().as_deref(), Some("TOOMANYREQUESTS"));
        mirror.get(&image.images[0].blob_path(&image.images[0].layers[0])).await.expect(429);
    }
    assert_eq!(hub.count("GET", "/manifests/") + hub.count("GET", "/blobs/"), 2, "a challenge and the 429");
    hub.heal();
    mirror.clock().advance(Duration::from_secs(31));
    mirror.get(&image.tag_path("latest")).await.expect(200);
}

// === the quota ===

#[tokio::test]
async fn when_the_byte_quota_is_used_up_no_blob_is_fetched_before_the_window_ends_also_after_a_restart() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[300_000, 400_000, 500_000]).put(&upstream, "library/app", "latest");
    let [first, second, third] = [0, 1, 2].map(|layer| image.blob_path(&image.layers[layer]));
    let options = "upstream.\"docker.io\".byte_quota = \"500KB\"\nupstream.\"docker.io\".byte_quota_window = \"1d\"";
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set(options).start().await;
    mirror.get(&first).await.expect(200);
    assert_eq!(mirror.get(&second).await.expect(200).body.len(), 400_000, "what was begun is fetched to its end");
    let refused = mirror.get(&third).await.expect(503);
    assert!(refused.text().contains("byte_quota"), "{}", refused.text());

    let mirror = mirror.stop().await.start().await;
    mirror.get(&third).await.expect(503);
    mirror.get(&first).await.expect(200);
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.clock().advance(HOUR * 25);
    mirror.get(&third).await.expect(200);
}
