//! What goes along where a server or a client has chosen the way: whose credentials, and nothing else of anybody's.

use std::collections::BTreeSet;
use std::time::Duration;

use super::urls::{NAME, NOWHERE, SILENCE, answer, challenge, dialled, redirect, token, world};
use crate::support::{
    Answer, Auth, Fault, Image, Match, RawRegistry, StoppedMirror, Tap, TestMirror, User, basic as login_of, digest_of, noise,
};

const HOST: &str = "hub.mirror.test";
const PASSWORD: &str = "canary-of-bob";

/// Who is somebody to the registry, by what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Nobody,
    /// larder, by a password.
    Password,
    /// larder, by an identity token, which goes in the body of a POST.
    IdentityToken,
    /// A client of larder's, by a password of its own.
    Client,
}

fn basic() -> Auth {
    Auth::Basic { user: "bob", password: PASSWORD }
}

// === impl Who ===

impl Who {
    const ALL: [Self; 4] = [Self::Nobody, Self::Password, Self::IdentityToken, Self::Client];

    fn before(self, mirror: StoppedMirror) -> StoppedMirror {
        match self {
            Self::Nobody => mirror,
            Self::Password => mirror.login("docker.io", "bob", PASSWORD),
            Self::IdentityToken => mirror.login("docker.io", "<token>", PASSWORD),
            Self::Client => mirror
                .set("upstream.\"docker.io\".auth = \"passthrough\"")
                .set(&format!("upstream.\"docker.io\".public_url = \"https://{HOST}\"")),
        }
    }

    /// Asks for a blob that is not here, as nobody has asked before.
    async fn ask(self, mirror: &TestMirror, n: usize) -> Answer {
        let path = format!("/v2/library/app-{n}/blobs/{}", digest_of(b"x"));
        match self {
            Self::Client => User::at(mirror, HOST).showing(&login_of(&format!("bob-{n}"), PASSWORD)).head(&path).await,
            _ => mirror.head(&path).await,
        }
    }

    /// Whether a token service that may has been shown it in this request.
    fn is_shown(self, heard: &str) -> bool {
        match self {
            Self::Nobody => heard.starts_with("GET ") && !heard.contains("authorization"),
            Self::Password | Self::Client => heard.starts_with("GET ") && heard.contains("\r\nauthorization: Basic "),
            Self::IdentityToken => {
                heard.starts_with("POST ")
                    && !heard.contains("authorization")
                    && heard.ends_with(&format!("&refresh_token={PASSWORD}"))
            }
        }
    }
}

#[tokio::test]
async fn a_credential_goes_to_listed_origins_and_no_spelling_makes_another_of_one() {
    for who in [Who::Password, Who::IdentityToken, Who::Client] {
        goes_to_listed_origins_alone(who).await;
    }
}

async fn goes_to_listed_origins_alone(who: Who) {
    let (evil, listed) = (Tap::everywhere(token()).await, Tap::answering("127.0.0.3", token()).await);
    let (e, l) = (evil.port(), listed.port());
    let (registry, _way, mirror) = world(Auth::None).await;
    for name in ["evil.test", "tokens.test.evil.test", "xtokens.test"] {
        mirror.names().lead(name, &[&["127.0.0.1"]]);
    }
    // Another port of the host that is listed is somebody else.
    mirror.names().lead("tokens.test", &[&["127.0.0.3", "127.0.0.1"]]);
    let mirror = who
        .before(mirror)
        .set("upstream.\"docker.io\".allow_private = true")
        .set(&format!("upstream.\"docker.io\".token_hosts = [\"Tokens.test:{l}\", \"tokens.test\", \"evil.test\"]"))
        .start()
        .await;
    let ask = async |n: usize, realm: &str| {
        registry.heal();
        registry.on(Match::any("/v2/"), challenge(realm));
        let before = registry.requests().len();
        let answer = who.ask(&mirror, n).await;
        assert!(registry.requests().len() > before, "{who:?} {realm}");
        // Who has tried a few times is not heard for a moment.
        mirror.clock().advance(Duration::from_mins(1));
        answer
    };
    let wrong = [
        format!("http://tokens.test:{e}/token"),
        format!("http://evil.test:{e}/token"),
        format!("http://tokens.test.evil.test:{e}/token"),
        format!("http://xtokens.test:{e}/token"),
        format!("http://tokens.test:{l}@evil.test:{e}/token"),
        format!("http://evil.test:{e}/tokens.test:{l}"),
        format!("http://evil.test:{e}\\@tokens.test:{l}/"),
        format!("http://evil.test:{e}?@tokens.test:{l}/"),
        format!("http://evil.test:{e}#@tokens.test:{l}/"),
        format!("http://bob:x@tokens.test:{l}/token"),
        format!("//evil.test:{e}/token"),
        format!("tokens.test:{l}"),
    ];
    for (n, realm) in wrong.iter().enumerate() {
        let status = ask(n, realm).await.status;
        // To a client it is its own login that has not been taken.
        assert!(status == 502 || (who, status) == (Who::Client, 401), "{who:?} {realm}: {status}");
        assert_eq!((evil.heard(), listed.heard()), (SILENCE.into(), SILENCE.into()), "{who:?} {realm}");
    }
    for (n, realm) in [format!("http://tokens.test:{l}/token"), format!("http://TOKENS.test:{l}/token")].iter().enumerate() {
        let before = listed.heard().len();
        ask(100 + n, realm).await;
        assert!(listed.heard().len() > before, "{who:?} {realm}");
        assert!(listed.heard().iter().all(|heard| who.is_shown(heard)), "{who:?} {:?}", listed.heard());
    }
    assert_eq!(evil.heard(), SILENCE);
}

/// Neither is it asked by GET what was to be told by POST, nor told again elsewhere.
#[tokio::test]
async fn a_token_service_that_sends_one_on_is_not_followed() {
    let evil = Tap::everywhere(token()).await;
    let onward = format!("http://evil.test:{}/token", evil.port());
    for (status, who) in ["302 Found", "307 Temporary Redirect", "308 Permanent Redirect"]
        .into_iter()
        .flat_map(|status| Who::ALL.map(|who| (status, who)))
    {
        let service = Tap::answering("127.0.0.2", answer(status, &[("location", &onward)], b"")).await;
        let (registry, _way, mirror) = world(Auth::None).await;
        mirror.names().lead("evil.test", &[&["127.0.0.1"]]);
        let service_host = format!("{NAME}:{}", service.port());
        let mirror = who
            .before(mirror)
            .set("upstream.\"docker.io\".allow_private = true")
            // Also where it would be listed, it is not the service that says so.
            .set(&format!("upstream.\"docker.io\".token_hosts = [{service_host:?}, \"evil.test:{}\"]", evil.port()))
            .start()
            .await;
        registry.on(Match::any("/v2/"), challenge(&format!("http://{service_host}/token")));
        who.ask(&mirror, 0).await.expect(502);
        let heard = service.heard();
        assert!(!heard.is_empty() && heard.iter().all(|heard| who.is_shown(heard)), "{status} {who:?} {heard:?}");
        assert_eq!((evil.heard(), dialled(&mirror)), (SILENCE.into(), NOWHERE.into()), "{status} {who:?}");
    }
}

/// A registry and its token service would know by them which larder it is; others' would be shown to it.
#[tokio::test]
async fn no_cookie_comes_back() {
    let blob = noise(8, 1000);
    let digest = digest_of(&blob);
    let upstream = RawRegistry::saying(move |_, _, head| {
        let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        let realm = format!("Bearer realm=\"http://{host}/token\"");
        let cookie = ("set-cookie", "session=of-larder; path=/; max-age=3600");
        let said = if head.starts_with("GET /token") {
            answer("200 OK", &[cookie], br#"{"token":"of-nobody"}"#)
        } else if head.contains("/cdn/") {
            answer("200 OK", &[cookie], &blob)
        } else if head.contains("\r\nauthorization: ") {
            answer("307 Temporary Redirect", &[cookie, ("location", "/cdn/x")], b"")
        } else {
            answer("401 Unauthorized", &[cookie, ("www-authenticate", &realm)], b"")
        };
        said.into()
    });
    let mirror = upstream.mirror().start().await;
    for repository in ["one", "two"] {
        let served = mirror.get(&format!("/v2/library/{repository}/blobs/{digest}")).await.expect(200);
        assert_eq!(served.header("set-cookie"), None);
    }
    let heads: Vec<String> = upstream.heard().into_iter().flat_map(|talk| talk.heads).collect();
    assert!(["/token", "/cdn/x", "/two/"].iter().all(|path| heads.iter().any(|head| head.contains(path))), "{heads:#?}");
    assert!(heads.iter().all(|head| !head.to_ascii_lowercase().contains("cookie")), "{heads:#?}");
}

/// Who has been sent elsewhere has left: what is asked for on the way back, another has chosen.
#[tokio::test]
async fn a_chain_of_redirects_carries_no_credential_once_it_has_left() {
    let (registry, way, mirror) = world(basic()).await;
    let private = registry.put_blob("library/private", "not for the one who asks");
    let back = format!("http://{NAME}:{}/v2/library/private/blobs/{private}", way.port());
    let elsewhere = Tap::everywhere(answer("307 Temporary Redirect", &[("location", &back)], b"")).await;
    mirror.names().lead("elsewhere.test", &[&["127.0.0.1"]]);
    let mirror = mirror.login("docker.io", "bob", PASSWORD).set("upstream.\"docker.io\".allow_private = true").start().await;
    let digest = registry.put_blob("library/app", noise(5, 1000));
    registry.on(Match::any("/library/app/"), redirect(&format!("http://elsewhere.test:{}/x", elsewhere.port())));
    mirror.head(&format!("/v2/library/app/blobs/{digest}")).await.expect(502);
    assert!(!elsewhere.heard().is_empty());
    let heard = elsewhere.heard().concat().to_ascii_lowercase();
    assert!(!heard.contains("authorization") && !heard.contains("cookie"), "{heard}");
    let returned: Vec<_> = registry.requests().into_iter().filter(|request| request.path.contains("private")).collect();
    assert!(!returned.is_empty(), "the chain has come back");
    assert!(returned.iter().all(|request| request.authorization().is_none()), "{returned:#?}");
    assert!(registry.requests().iter().any(|request| request.authorization().is_some()), "at the registry itself it is shown");
}

/// Where one part of a blob was found, the next ones are asked for; and where that is the registry itself, another has chosen it.
#[tokio::test]
async fn no_part_of_a_blob_is_asked_for_with_a_credential_where_the_way_back_has_led() {
    let (registry, way, mirror) = world(Auth::None).await;
    let bytes = noise(5, 40 << 20);
    let digest = registry.put_blob("library/app", bytes.clone());
    let back = format!("http://{NAME}:{}/v2/library/open/blobs/{}", way.port(), registry.put_blob("library/open", bytes.clone()));
    let elsewhere = Tap::everywhere(answer("307 Temporary Redirect", &[("location", &back)], b"")).await;
    mirror.names().lead("elsewhere.test", &[&["127.0.0.1"]]);
    let mirror = mirror.login("docker.io", "bob", PASSWORD).set("upstream.\"docker.io\".allow_private = true");
    let mirror = mirror.set("mirror.blob_connections = 4").start().await;
    registry.on(Match::any("/library/app/").times(1), Fault::answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""));
    registry.on(Match::any("/library/app/"), redirect(&format!("http://elsewhere.test:{}/x", elsewhere.port())));
    registry.on(Match::any("/library/open/"), Fault::Bandwidth(16 << 20));
    assert!(mirror.get(&format!("/v2/library/app/blobs/{digest}")).await.expect(200).body == bytes);
    let asked = registry.requests();
    let (at_first, returned): (Vec<_>, Vec<_>) = asked.iter().partition(|request| request.path.contains("/app/"));
    assert!(at_first[1..].iter().all(|request| request.authorization().is_some()), "{at_first:#?}");
    assert!(returned.len() > 4 && returned.iter().all(|request| request.authorization().is_none()), "{returned:#?}");
}

#[tokio::test]
async fn of_what_a_client_sends_nothing_goes_upstream_but_what_it_asks_for() {
    let (registry, way, mirror) = world(Auth::None).await;
    let mirror = mirror.start().await;
    let image = Image::new(6).layers(&[50_000]).put(&registry, "library/app", "latest");
    let sent = [
        ("authorization", "Bearer canary-of-a-client"),
        ("cookie", "session=canary-of-a-client"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-registry-auth", "canary-of-a-client"),
        ("accept", "*/*, application/x-of-a-client"),
        ("accept-encoding", "zstd;q=1.0, gzip;q=0.8"),
        ("user-agent", "of a client"),
        ("referer", "http://of.a.client/"),
        ("if-none-match", "\"of-a-client\""),
        ("te", "trailers"),
        ("traceparent", "00-of-a-client"),
        ("x-evil", "of a client"),
    ];
    let other = noise(7, 40_000);
    let ranged = registry.put_blob("library/app", other.clone());
    for path in [image.tag_path("latest"), image.manifest_path(), image.blob_path(&image.layers[0])] {
        mirror.get_with(&path, &sent).await.expect(200);
    }
    let range = [&sent[..], &[("range", "bytes=1-9")]].concat();
    assert_eq!(mirror.get_with(&format!("/v2/library/app/blobs/{ranged}"), &range).await.expect(206).body, other.slice(1..10));
    mirror.get_with("/v2/library/app/tags/list", &sent).await.expect(200);
    mirror.get_with(&format!("/v2/library/app/referrers/{}", image.digest), &sent).await.expect(200);
    let names: BTreeSet<String> =
        registry.requests().iter().flat_map(|request| request.headers.keys().map(ToString::to_string)).collect();
    let known = ["accept", "accept-encoding", "host", "range", "user-agent", "via"];
    assert!(names.iter().all(|name| known.contains(&name.as_str())), "{names:?}");
    let heard = way.heard().concat();
    assert!(!heard.contains("of-a-client") && !heard.contains("of a client") && !heard.contains("1.2.3.4"), "{heard}");
    assert!(heard.contains("user-agent: larder/") && heard.contains("accept-encoding: identity"), "{heard}");
}
