//! What rules say that users, and those who show a certificate, may have.

use super::{ALICES, BOBS, COST, World, assert_challenged, before, with_users};
use crate::support::{Authority, Client, Image, Registry, StoppedMirror, TestMirror, basic, get_with};

#[tokio::test]
async fn rules_say_who_may_have_what() {
    let world = with_users(
        "rule = [{ who = ['group:all'], allow = ['docker.io/library/*'] }, { who = ['user:alice'], allow = ['docker.io/team/**'] }, \
         { deny = ['**/secret'] }, { who = ['user:bob'], deny = ['docker.io/library/old'] }]",
    )
    .await;
    let mut paths = Vec::new();
    for name in ["library/app", "team/a/b", "library/old", "library/secret"] {
        paths.push(Image::new(2).layers(&[1000]).put(&world.upstream, name, "latest").tag_path("latest"));
    }
    // In the cache by a way that asks nobody.
    for path in &paths {
        world.mirror.get(path).await.expect(200);
    }
    let asked = world.upstream.requests().len();
    for (user, password, expected) in [("alice", ALICES, [200, 200, 200, 403]), ("bob", BOBS, [200, 403, 403, 403])] {
        for (path, expected) in paths.iter().zip(expected) {
            let answer = world.as_user(path, user, password).await.expect(expected);
            if expected == 403 {
                assert_eq!(answer.error_code().as_deref(), Some("DENIED"));
                assert!(answer.text().contains(user), "{}", answer.text());
            }
        }
    }
    assert_eq!(world.upstream.requests().len(), asked, "what is refused is not asked for");
}

#[tokio::test]
async fn where_nobody_is_asked_rules_hold_for_anybody_and_nobody_is_told_to_log_in() {
    let upstream = Registry::start().await;
    let [public, private] = ["library/app", "team/app"].map(|name| Image::new(1).layers(&[10]).put(&upstream, name, "latest"));
    let rules = "rule = [{ allow = ['docker.io/library/**'] }]";
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).listener(rules).start().await;
    let url = mirror.listening()[1].to_string();
    for headers in [&[][..], &[("authorization", &*basic("alice", ALICES))]] {
        get_with(format!("{url}/v2/"), headers).await.expect(200);
        get_with(format!("{url}{}", public.tag_path("latest")), headers).await.expect(200);
        get_with(format!("{url}{}", private.tag_path("latest")), headers).await.expect(403);
    }
    mirror.get(&private.tag_path("latest")).await.expect(200);
}

// === certificates ===

async fn with_certificates(options: &str, authority: &Authority) -> World {
    let files = |mirror: StoppedMirror| {
        let (server, ca) = (authority.server(mirror.dir(), "127.0.0.1"), authority.file(mirror.dir()));
        mirror.tls(&server, &format!("client_ca_file = '{}', {options}", ca.display()))
    };
    let mut world = before("", COST, files).await;
    world.url = world.mirror.tls_url("");
    world
}

#[tokio::test]
async fn without_a_certificate_of_the_authority_nobody_is_heard_where_one_is_required() {
    let authority = Authority::new();
    let rules = "rule = [{ who = ['cert:build-*'], allow = ['**'] }]";
    let world = with_certificates(rules, &authority).await;
    let tag = format!("{}{}", world.url, world.image.tag_path("latest"));
    for protocol in ["h2", "http/1.1"] {
        let build = Client::tls(authority.believed_by("build-7", &[protocol]));
        assert_eq!(build.get(&tag).await.expect(200).body, world.image.manifest);
        let again = Client::tls(authority.believed_by("alice", &[protocol]));
        let refused = again.get(&tag).await.expect(403);
        assert!(refused.text().contains("no rule allows docker.io/library/app to alice"), "{}", refused.text());
        let none = Client::tls(authority.believed(rustls::ALL_VERSIONS, &[protocol]));
        assert!(none.try_get(&tag).await.is_err());
        let mut stranger = authority.believed(rustls::ALL_VERSIONS, &[protocol]);
        stranger.client_auth_cert_resolver = Authority::new().believed_by("build-7", &[]).client_auth_cert_resolver;
        assert!(Client::tls(stranger).try_get(&tag).await.is_err());
    }
}

/// The name in the certificate was forgotten as soon as someone had logged in, and what was denied to it was not.
#[tokio::test]
async fn rules_for_certificates_hold_also_for_those_who_have_to_log_in_besides() {
    let authority = Authority::new();
    let files = |mirror: StoppedMirror| {
        let (server, ca) = (authority.server(mirror.dir(), "127.0.0.1"), authority.file(mirror.dir()));
        let users = mirror.dir().join("users");
        let rules = "rule = [{ who = ['cert:build-*'], allow = ['**'] }, { who = ['user:alice'], allow = ['docker.io/library/*'] }, \
                     { who = ['cert:contractor-*'], deny = ['docker.io/library/secret'] }]";
        mirror.tls(&server, &format!("client_ca_file = '{}', users_file = '{}', {rules}", ca.display(), users.display()))
    };
    let world = before("", COST, files).await;
    let secret = Image::new(2).layers(&[1000]).put(&world.upstream, "library/secret", "latest");
    let paths = [world.image.tag_path("latest"), secret.tag_path("latest")];
    for (certificate, user, password, expected) in [
        ("build-7", "bob", BOBS, [200, 200]),
        ("contractor-3", "alice", ALICES, [200, 403]),
        ("laptop-9", "alice", ALICES, [200, 200]),
        ("laptop-9", "bob", BOBS, [403, 403]),
        ("build-7", "bob", ALICES, [401, 401]),
    ] {
        let client = Client::tls(authority.believed_by(certificate, &["http/1.1"]));
        for (path, expected) in paths.iter().zip(expected) {
            let answer = client.get_with(world.mirror.tls_url(path), &[("authorization", &basic(user, password))]).await;
            assert_eq!(answer.status, expected, "{user} with the certificate of {certificate}: {path}");
            if expected == 403 {
                assert!(answer.text().contains(&format!("{user} with the certificate of {certificate}")), "{}", answer.text());
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_without_a_name_is_refused_where_rules_would_have_to_know_whose_it_is() {
    let authority = Authority::new();
    for (rules, expected) in
        [("rule = [{ allow = ['**'] }, { who = ['cert:*'], deny = ['docker.io/secret/**'] }]", 403), ("", 200)]
    {
        let world = with_certificates(rules, &authority).await;
        let nameless = Client::tls(authority.believed_by("", &["http/1.1"]));
        let answer = nameless.get(format!("{}{}", world.url, world.image.tag_path("latest"))).await.expect(expected);
        assert_eq!(answer.text().contains("no common name"), expected == 403, "{rules}");
    }
}

#[tokio::test]
async fn who_shows_a_certificate_need_not_log_in_where_that_is_optional_and_must_where_it_is_not() {
    let authority = Authority::new();
    for (options, with_certificate) in [("client_cert = 'optional', ", 200), ("client_cert = 'required', ", 401)] {
        let files = |mirror: StoppedMirror| {
            let (server, ca) = (authority.server(mirror.dir(), "127.0.0.1"), authority.file(mirror.dir()));
            let users = mirror.dir().join("users");
            let more = format!("{options}client_ca_file = '{}', users_file = '{}'", ca.display(), users.display());
            mirror.tls(&server, &more)
        };
        let world = before("", COST, files).await;
        let url = world.mirror.tls_url("/v2/");
        let build = Client::tls(authority.believed_by("build-7", &["http/1.1"]));
        build.get(&url).await.expect(with_certificate);
        build.get_with(&url, &[("authorization", &basic("alice", ALICES))]).await.expect(200);
        let none = Client::tls(authority.believed(rustls::ALL_VERSIONS, &["http/1.1"]));
        if with_certificate == 200 {
            assert_challenged(&none.get(&url).await);
            none.get_with(&url, &[("authorization", &basic("alice", ALICES))]).await.expect(200);
        } else {
            assert!(none.try_get(&url).await.is_err());
        }
    }
}
