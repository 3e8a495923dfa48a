//! Users of larder's own: passwords, certificates, what each may have, and those who try out passwords.

mod guesses;
mod rules;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use larder::clock::Clock;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Answer, Image, Log, PATIENCE, PutImage, Registry, StoppedMirror, TestMirror, basic, get, get_with};

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
