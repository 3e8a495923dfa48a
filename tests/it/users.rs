//! Users of larder's own: passwords, certificates, what each may have, and those who try out passwords.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use larder::clock::Clock;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    Answer, Authority, Client, Image, Log, PATIENCE, PutImage, Registry, StoppedMirror, TestMirror, basic, get, get_with,
};

const ALICES: &str = "canary-of-alice";
const BOBS: &str = "canary-of-bob";
/// Hashing takes a few milliseconds.
const COST: u32 = 5;

/// Writes users as `htpasswd -B` does.
fn htpasswd(file: &Path, users: &[(&str, &str)], cost: u32) {
    let mut text = String::from("# users\n\n");
    users.iter().for_each(|(name, password)| writeln!(text, "{}", line(name, password, cost)).unwrap());
    fs::write(file, text).unwrap();
}

fn line(name: &str, password: &str, cost: u32) -> String {
    let hash = bcrypt::hash_with_salt(password, cost, [7; 16]).unwrap().format_for_version(bcrypt::Version::TwoY);
    format!("{name}:{hash}")
}

struct World {
    upstream: Registry,
    image: PutImage,
    mirror: TestMirror,
    /// Where users are asked who they are.
    url: String,
    users: PathBuf,
}

async fn with_users(options: &str) -> World {
    before(options, COST, |mirror| mirror).await
}

async fn before(options: &str, cost: u32, more: impl FnOnce(StoppedMirror) -> StoppedMirror) -> World {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[100_000]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", &upstream);
    let users = mirror.dir().join("users");
    htpasswd(&users, &[("alice", ALICES), ("bob", BOBS)], cost);
    fs::write(mirror.dir().join("groups"), "ops: alice\nall: alice bob\n").unwrap();
    let groups = mirror.dir().join("groups");
    let listener = format!("users_file = '{}', groups_file = '{}', {options}", users.display(), groups.display());
    let mirror = more(mirror.listener(&listener)).start().await;
    let url = mirror.listening()[1].to_string();
    World { upstream, image, mirror, url, users }
}

impl World {
    async fn get(&self, path: &str, authorization: &str) -> Answer {
        get_with(format!("{}{path}", self.url), &[("authorization", authorization)]).await
    }

    async fn as_user(&self, path: &str, user: &str, password: &str) -> Answer {
        self.get(path, &basic(user, password)).await
    }
}

#[track_caller]
fn assert_challenged(answer: &Answer) {
    assert_eq!((answer.status, answer.error_code().as_deref()), (401, Some("UNAUTHORIZED")));
    assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"larder\""));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn who_logs_in_gets_all_and_who_does_not_gets_nothing_not_even_what_is_cached() {
    let world = with_users("").await;
    let (tag, blob) = (world.image.tag_path("latest"), world.image.blob_path(&world.image.layers[0]));
    for path in ["/v2/", &tag, &blob, "/v2/library/app/tags/list", "/token", "/nothing"] {
        assert_challenged(&get(format!("{}{path}", world.url)).await);
    }
    assert_eq!(world.upstream.requests().len(), 0);
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    assert_eq!(world.as_user(&tag, "alice", ALICES).await.expect(200).body, world.image.manifest);
    assert_eq!(world.as_user(&blob, "bob", BOBS).await.expect(200).body, world.image.layers[0].bytes);
    for wrong in [
        basic("alice", BOBS),
        basic("alice", ""),
        basic("Alice", ALICES),
        basic("", ALICES),
        basic("mallory", ALICES),
        basic("alice", &format!("{ALICES}x")),
        "Basic !!!".to_owned(),
        "Bearer eyJ".to_owned(),
        "Basic".to_owned(),
    ] {
        for path in ["/v2/", &tag, &blob] {
            assert_challenged(&world.get(path, &wrong).await);
        }
    }
    // Elsewhere nobody is asked who it is, whatever it shows.
    for authorization in [basic("alice", BOBS), "Bearer eyJ".to_owned()] {
        let answer = world.mirror.get_with(&blob, &[("authorization", &authorization)]).await.expect(200);
        assert_eq!(answer.body, world.image.layers[0].bytes);
    }
    assert!(world.upstream.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_login_costs_its_hash_once_and_is_forgotten_when_the_file_changes() {
    // A hash that takes a quarter of a second or so.
    let world = before("", 12, |mirror| mirror).await;
    let begun = Instant::now();
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    let first = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..20 {
        world.as_user("/v2/", "alice", ALICES).await.expect(200);
    }
    assert!(begun.elapsed() < first * 5, "{first:?}, and then twenty in {:?}", begun.elapsed());
    // Many at once are checked once as well, and are no tries at a password.
    let begun = Instant::now();
    let answers = join_all((0..60).map(|_| world.as_user("/v2/", "bob", BOBS))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(begun.elapsed() < first * 10, "{first:?}, and then sixty in {:?}", begun.elapsed());

    htpasswd(&world.users, &[("bob", BOBS), ("carol", "canary-of-carol")], COST);
    let gone = async {
        while world.as_user("/v2/", "alice", ALICES).await.status != 401 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("who is not in the file any more is nobody");
    world.as_user("/v2/", "carol", "canary-of-carol").await.expect(200);
    world.as_user("/v2/", "bob", BOBS).await.expect(200);

    // What is no such file is not taken up.
    let log = Log::from_here();
    fs::write(&world.users, "bob:{SHA}fEqNCco3Yq9h5ZUglD3CZJT4lBs=\n").unwrap();
    log.will_say(&["WARN", "what it was stays", world.users.to_str().unwrap(), "line 1 holds no password"]).await;
    world.as_user("/v2/", "carol", "canary-of-carol").await.expect(200);
}

/// The least of many tries is what the work takes; the rest is what else the machine had to do.
#[tokio::test]
async fn unknown_users_and_those_with_a_weak_hash_cost_the_time_of_the_others() {
    let with_carol = |mirror: StoppedMirror| {
        let users = mirror.dir().join("users");
        let text = fs::read_to_string(&users).unwrap() + &line("carol", "canary-of-carol", 6);
        fs::write(users, text).unwrap();
        mirror
    };
    let world = before("", 10, |mirror| with_carol(mirror).clock(Clock::still())).await;
    let names = ["alice", "carol", "mallory"];
    let mut took = [Duration::MAX; 3];
    for n in 0..10 {
        for (user, took) in names.iter().zip(&mut took) {
            let begun = Instant::now();
            assert_challenged(&world.as_user("/v2/", user, &format!("canary-{n}")).await);
            *took = (*took).min(begun.elapsed());
        }
    }
    assert!(took[0] > Duration::from_millis(5), "it is hashed: {took:?}");
    for other in &took[1..] {
        let ratio = other.as_secs_f64() / took[0].as_secs_f64();
        assert!((0.6..1.6).contains(&ratio), "{took:?} for {names:?}");
    }
    // What is right is so at once, and at no other time either.
    world.mirror.clock().advance(Duration::from_mins(2));
    world.as_user("/v2/", "carol", "canary-of-carol").await.expect(200);
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
}

#[tokio::test]
async fn who_tries_out_passwords_is_slowed_down_and_nobody_else_is() {
    let world = before("", COST, |mirror| mirror.clock(Clock::still())).await;
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    let mut said = Vec::new();
    for n in 0..40 {
        said.push(world.as_user("/v2/", "alice", &format!("canary-{n}")).await);
    }
    let count = |status| said.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(401), count(429)), (30, 10));
    let refused = said.last().unwrap();
    assert_eq!((refused.header("retry-after"), refused.error_code().as_deref()), (Some("2"), Some("TOOMANYREQUESTS")));
    // Not even the right password is tried now, as the guesser would learn it.
    assert_eq!(world.as_user("/v2/", "bob", BOBS).await.status, 429);
    // Who is known goes on.
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    world.mirror.clock().advance(Duration::from_secs(2));
    world.as_user("/v2/", "bob", BOBS).await.expect(200);
    // However long ago that was.
    world.mirror.clock().advance(Duration::from_hours(24));
    for n in 40..80 {
        world.as_user("/v2/", "alice", &format!("canary-{n}")).await;
    }
    assert_eq!(world.as_user("/v2/", "bob", &format!("{BOBS}x")).await.status, 429);
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    world.as_user("/v2/", "bob", BOBS).await.expect(200);
}

/// Users had to be found out again, all at once, where one line of the file had changed; and who shared an address with someone who
/// guessed was not heard then.
#[tokio::test]
async fn who_is_known_stays_so_over_a_change_of_the_files_unless_its_own_line_has_changed() {
    let world = before("", COST, |mirror| mirror.clock(Clock::still())).await;
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    world.as_user("/v2/", "bob", BOBS).await.expect(200);
    world.as_user("/v2/", "carol", "canary-of-carol").await.expect(401);
    for n in 0..40 {
        world.as_user("/v2/", "alice", &format!("canary-{n}")).await;
    }
    htpasswd(&world.users, &[("alice", ALICES), ("bob", "canary-of-bob-anew"), ("carol", "canary-of-carol")], COST);
    let read_anew = async {
        while world.as_user("/v2/", "bob", BOBS).await.status == 200 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, read_anew).await.expect("it is read anew");
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    for (user, password) in [("bob", BOBS), ("bob", "canary-of-bob-anew"), ("carol", "canary-of-carol")] {
        assert_eq!(world.as_user("/v2/", user, password).await.status, 429, "it is to be found out");
    }
    world.mirror.clock().advance(Duration::from_mins(1));
    world.as_user("/v2/", "bob", BOBS).await.expect(401);
    world.as_user("/v2/", "bob", "canary-of-bob-anew").await.expect(200);
    world.as_user("/v2/", "carol", "canary-of-carol").await.expect(200);
}

/// A job with an old password kept all who came from its address from logging in.
#[tokio::test]
async fn the_same_wrong_password_again_is_no_further_guess_and_costs_nothing() {
    let world = before("", 12, |mirror| mirror.clock(Clock::still())).await;
    let begun = Instant::now();
    for user in ["alice", "mallory"] {
        assert_challenged(&world.as_user("/v2/", user, "canary-of-old").await);
    }
    let two = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..50 {
        for user in ["alice", "mallory"] {
            assert_challenged(&world.as_user("/v2/", user, "canary-of-old").await);
        }
    }
    assert!(begun.elapsed() < two * 5, "{two:?}, and then a hundred in {:?}", begun.elapsed());
    world.as_user("/v2/", "bob", BOBS).await.expect(200);
}

/// A login from an address that a trusted proxy tells of.
async fn login_from(world: &World, from: &str, user: &str, password: &str) -> u16 {
    let (shown, url) = (basic(user, password), format!("{}/v2/", world.url));
    get_with(url, &[("authorization", &shown), ("x-forwarded-for", from)]).await.status
}

/// Sixty-four waiting guesses of whomever were enough that nobody else was heard who was not known yet.
#[tokio::test]
async fn guesses_from_many_addresses_keep_nobody_elsewhere_from_logging_in() {
    let world = before("proxies = ['127.0.0.1']", COST, |mirror| mirror.clock(Clock::still())).await;
    let addresses: Vec<String> = (0..100).map(|n| format!("198.51.100.{n}")).collect();
    let guesses = async {
        let guesses: Vec<(&String, String)> =
            addresses.iter().flat_map(|from| (0..3).map(move |n| (from, format!("canary-{from}-{n}")))).collect();
        let said = join_all(guesses.iter().map(|(from, guess)| login_from(&world, from, "bob", guess))).await;
        assert!(said.iter().all(|status| *status == 401), "{said:?}");
    };
    let others = async {
        sleep(Duration::from_millis(100)).await;
        assert_eq!(login_from(&world, "203.0.113.1", "alice", ALICES).await, 200);
        assert_eq!(login_from(&world, "203.0.113.2", "bob", BOBS).await, 200);
    };
    tokio::join!(guesses, others);
}

/// As after a restart: each was counted as a guess until it had been found right, and beyond sixty-four nobody was heard.
#[tokio::test]
async fn a_whole_fleet_logs_in_at_once_with_one_account_or_one_for_each() {
    const MACHINES: usize = 60;
    let names: Vec<String> = (0..MACHINES).map(|n| format!("robot-{n}")).collect();
    let robots = |mirror: StoppedMirror| {
        let lines: Vec<String> = names.iter().map(|name| line(name, &format!("canary-of-{name}"), COST)).collect();
        let users = mirror.dir().join("users");
        let text = fs::read_to_string(&users).unwrap() + &lines.join("\n");
        fs::write(users, text).unwrap();
        mirror.clock(Clock::still())
    };
    let world = before("proxies = ['127.0.0.1']", COST, robots).await;
    let passwords: Vec<String> = names.iter().map(|name| format!("canary-of-{name}")).collect();
    let each = names.iter().zip(&passwords).map(|(name, password)| login_from(&world, "198.51.100.1", name, password));
    assert_eq!(join_all(each).await, [200; MACHINES]);
    let from: Vec<String> = (0..200).map(|n| format!("203.0.113.{n}")).collect();
    let all = join_all(from.iter().map(|from| login_from(&world, from, "alice", ALICES)));
    assert_eq!(all.await, [200; 200]);
}

/// An address of its own for each guess would let one guess for ever.
#[tokio::test]
async fn an_address_that_no_trusted_proxy_tells_of_slows_down_the_one_who_says_it() {
    for (proxies, others) in [("proxies = ['127.0.0.1']", 401), ("", 429), ("proxies = ['10.0.0.0/8']", 429)] {
        let world = before(proxies, COST, |mirror| mirror.clock(Clock::still())).await;
        let guess = async |n: usize, from: &str| {
            let guess = basic("alice", &format!("canary-{n}"));
            let headers = [("authorization", &*guess), ("x-forwarded-for", from)];
            get_with(format!("{}/v2/", world.url), &headers).await.status
        };
        let invented = |n: usize| if others == 401 { format!("10.9.9.{n}, 198.51.100.1") } else { format!("198.51.100.{n}") };
        let mut heard = 0;
        for n in 0..40 {
            heard += usize::from(guess(n, &invented(n)).await == 401);
        }
        assert_eq!(heard, 30, "{proxies}");
        assert_eq!(guess(40, "203.0.113.1").await, others, "{proxies}");
    }
}

/// `ATTACKS=20` makes it 100,000.
#[tokio::test]
async fn a_storm_of_wrong_logins_slows_nobody_else_down() {
    let storm = 5_000 * std::env::var("ATTACKS").map_or(1, |times| times.parse::<usize>().unwrap());
    let world = before("", 8, |mirror| mirror.clock(Clock::still())).await;
    let blob = world.image.blob_path(&world.image.layers[0]);
    world.as_user(&blob, "alice", ALICES).await.expect(200);
    let client = Client::h1();
    let known = basic("alice", ALICES);
    let others = || async {
        let mut waited = Vec::new();
        for _ in 0..100 {
            let begun = Instant::now();
            client.get_with(format!("{}{blob}", world.url), &[("authorization", &known)]).await.expect(200);
            waited.push(begun.elapsed());
        }
        waited.sort();
        waited[95]
    };
    let before = others().await;
    let guesser = Client::h1();
    let guesses = async {
        let mut refused = 0;
        for n in 0..storm {
            let guess = basic("bob", &format!("canary-{n}"));
            let answer = guesser.get_with(format!("{}/v2/", world.url), &[("authorization", &guess)]).await;
            assert!(matches!(answer.status, 401 | 429), "{}", answer.status);
            refused += usize::from(answer.status == 429);
        }
        refused
    };
    let (refused, during) = tokio::join!(guesses, others());
    eprintln!("{storm} wrong logins, {refused} of them unheard; others wait {during:?}, {before:?} before");
    assert_eq!(refused, storm - 30);
    assert!(during < before * 5 + Duration::from_millis(100), "{during:?}, {before:?} before");
}

/// A cache before larder kept what one had logged in for, by the digest and for a year, and gave it to the next.
#[tokio::test]
async fn no_cache_on_the_way_may_keep_what_not_everyone_may_have() {
    let world = before("", COST, |mirror| mirror.listener("rule = [{ allow = ['docker.io/library/**'] }]")).await;
    let blob = world.image.blob_path(&world.image.layers[0]);
    let (tag, by_rules) = (world.image.tag_path("latest"), world.mirror.listening()[2].to_string());
    let caching = |answer: &Answer| answer.header("cache-control").unwrap().to_owned();
    assert_ne!(by_rules, world.url);
    for path in [&blob, &tag] {
        let open = caching(&world.mirror.get(path).await.expect(200));
        assert!(!open.contains("private"), "{open}");
        assert_eq!(caching(&world.as_user(path, "alice", ALICES).await.expect(200)), format!("private, {open}"));
        assert_eq!(caching(&get(format!("{by_rules}{path}")).await.expect(200)), format!("private, {open}"));
    }
}

// === rules ===

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

// === mistakes ===

#[tokio::test]
async fn what_is_wrong_with_users_is_said_before_anyone_is_let_in() {
    let upstream = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    let users = format!("users_file = '{}'", file.display());
    let twice = [line("alice", ALICES, COST), line("alice", BOBS, COST)].join("\n");
    fs::write(dir.path().join("groups"), "").unwrap();
    let without_groups = format!("{users}, groups_file = '{}'", dir.path().join("groups").display());
    let for_groups = format!("{users}, rule = [{{ allow = ['**'] }}, {{ who = ['group:x'], deny = ['x'] }}]");
    for (text, options, says) in [
        ("", &*users, "names nobody"),
        ("alice\n", &users, "line 1 is no name with a colon after it"),
        (&twice, &users, "line 2 is one more for alice"),
        (&twice[..twice.len() / 2], &without_groups, "has nobody in any group"),
        ("alice:$apr1$x$y\n", &users, "line 1 holds no password as `htpasswd -B` writes it"),
        ("alice:$2y$31$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuabcdefghijklmno\n", &users, "line 1 holds no password"),
        ("", "users_file = '/nowhere/users'", "/nowhere/users cannot be read"),
        ("", "groups_file = '/nowhere/groups'", "groups_file is for the users of users_file"),
        ("", "client_ca_file = '/nowhere/ca'", "client_ca_file is for TLS"),
        ("", "rule = [{ who = ['alice'] }]", "\"alice\" is nobody; write user:NAME"),
        ("", "rule = [{ whom = [] }]", "unknown field `whom`"),
        (
            "",
            "rule = [{ who = ['user:alice'] }, { allow = ['**'] }]",
            "a rule has neither allow nor deny; allow = [\"**\"] allows",
        ),
        // Denied to those who never are anyone here, it was denied to nobody.
        (
            "",
            "rule = [{ allow = ['**'] }, { who = ['user:x'], deny = ['x'] }]",
            "a rule is for \"user:x\", whom nobody here can be",
        ),
        (
            "",
            "rule = [{ allow = ['**'] }, { who = ['cert:x'], deny = ['x'] }]",
            "a rule is for \"cert:x\", whom nobody here can be",
        ),
        ("", &for_groups, "a rule is for \"group:x\", whom nobody here can be"),
        ("", "rule = [{ deny = ['docker.io/secret/**'] }]", "no rule allows anything; a rule with allow = [\"**\"] allows all"),
    ] {
        fs::write(&file, text).unwrap();
        let mirror = TestMirror::builder().upstream("docker.io", &upstream).listener(options);
        let (why, _) = mirror.try_start().await.err().unwrap();
        assert!(why.contains(says) && !why.contains('\n'), "{options}: {why}");
    }
}
