//! `larder check`: whether larder could do its work here, said in a line for each thing.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::support::{Auth, Fault, Match, Process, Registry, Setup, TokenService, get};

const BOBS: &str = "canary-of-bob";

async fn registry() -> Registry {
    let setup = Setup { auth: Auth::Tokens(TokenService::default()), ..Setup::default() };
    Registry::with(setup.login("bob", BOBS)).await
}

fn settings(upstream: &Registry) -> Vec<String> {
    vec![
        format!("upstream.\"docker.io\".url={}", upstream.url()),
        format!("upstream.\"docker.io\".token_hosts={}", upstream.token_url().replace("http://", "")),
        "mirror.well_known=false".into(),
        "cache.max_size=20MiB".into(),
        "cache.min_free=1MiB".into(),
    ]
}

fn with<'a>(settings: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    settings.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

#[tokio::test]
async fn where_all_is_well_each_line_says_so_also_beside_a_larder_that_runs() {
    let (upstream, dir) = (registry().await, tempfile::tempdir().unwrap());
    let settings = settings(&upstream);
    fs::write(dir.path().join("password"), BOBS).unwrap();
    let password = format!("upstream.\"docker.io\".password_file={}", dir.path().join("password").display());
    let bob = ["upstream.\"docker.io\".username=bob", &password, "upstream.\"docker.io\".allow=library/**"];
    let settings = with(&settings, &bob);
    let larder = Process::start(dir.path(), &settings, &[]);
    let checked = Process::order(dir.path(), &["check"], &settings).await;
    assert!(checked.status.success(), "{}{}", checked.stdout, checked.log);
    let starts: Vec<&str> = checked.stdout.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(
        starts,
        ["ok    configuration", "ok    listener 127.0.0.1", "ok    disk", "ok    upstream docker.io", "ok    clock"]
    );
    assert!(checked.stdout.contains(" as bob after "), "{}", checked.stdout);
    get(larder.url("/v2/")).await.expect(200);
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do_and_by_the_exit_code() {
    let (upstream, dir) = (registry().await, tempfile::tempdir().unwrap());
    let settings = settings(&upstream);
    fs::write(dir.path().join("password"), "canary-of-nobody").unwrap();
    let password = format!("upstream.\"docker.io\".password_file={}", dir.path().join("password").display());
    let users = "server.listener=[{ listen = \"127.0.0.1:0\", users_file = \"/nowhere/users\" }]";
    for (wrong, says) in [
        (&["upstream.\"docker.io\".username=bob", &password][..], "look at its username, password_file"),
        (&["upstream.\"docker.io\".url=http://127.0.0.1:1"], "look at its url, proxy and ca_file"),
        (&["cache.max_size=1000TiB"], "wrong disk: "),
        (&[users], "/nowhere/users cannot be read"),
    ] {
        let checked = Process::order(dir.path(), &["check"], &with(&settings, wrong)).await;
        assert_eq!(checked.status.code(), Some(1), "{wrong:?}: {}", checked.stdout);
        let told: Vec<&str> = checked.stdout.lines().filter(|line| line.starts_with("wrong ")).collect();
        assert!(told.len() == 1 && told[0].contains(says), "{wrong:?}: {}{}", checked.stdout, checked.log);
    }
    let checked = Process::order(dir.path(), &["check"], &["server.lsten=x"]).await;
    assert_eq!((checked.status.code(), checked.stdout.as_str()), (Some(1), ""));
    assert!(checked.log.contains("unknown key server.lsten"), "{}", checked.log);
    assert!(!dir.path().join("cache").exists(), "nothing was made");
}

/// Certificates and tokens seem to have expired then, and nothing says why.
#[tokio::test]
async fn a_clock_that_is_wrong_is_found_by_those_of_the_upstreams() {
    let (upstream, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let url = format!("upstream.\"docker.io\".url={}", upstream.url());
    let settings = [&*url, "mirror.well_known=false", "cache.max_size=20MiB", "cache.min_free=1MiB"];
    for (away, wrong) in [(30, false), (7_300, true)] {
        let date = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(away));
        upstream.heal();
        upstream.on(Match::any(""), Fault::answer(200, &[("date", &date)], "{}"));
        let checked = Process::order(dir.path(), &["check"], &settings).await;
        let clock = checked.stdout.lines().find(|line| line.contains(" clock: ")).unwrap();
        assert_eq!(checked.status.code(), Some(i32::from(wrong)), "{}", checked.stdout);
        assert!(clock.starts_with(if wrong { "wrong clock: is 2h 1m" } else { "ok    clock: " }), "{clock}");
    }
}

#[tokio::test]
async fn what_an_operator_may_not_have_meant_is_said_and_is_no_fault() {
    let (upstream, dir) = (registry().await, tempfile::tempdir().unwrap());
    let settings = settings(&upstream);
    let users = dir.path().join("users");
    fs::write(&users, format!("alice:{}\n", bcrypt::hash(BOBS, 4).unwrap())).unwrap();
    let listener = |options: &str| format!("server.listener=[{{ listen = \"0.0.0.0:0\", {options} }}]");
    let with_users = format!("users_file = {users:?}");
    let open = |place: &str, options: &str| vec![format!("server.listen={place}"), listener(options)];
    let at = |url: &str| vec![format!("upstream.\"docker.io\".url={url}"), "upstream.\"docker.io\".connect_timeout=1ms".into()];
    let account = "upstream.\"docker.io\".username=bob";
    let allow = "upstream.\"docker.io\".allow=library/**";
    let nowhere = "where no registry can be";
    for (set, doubts) in [
        (open("0.0.0.0:0", &with_users), &["whoever reaches it is asked nothing", "in cleartext"][..]),
        (open("", &with_users), &["in cleartext"]),
        (open("127.0.0.1:0", &format!("{with_users}, proxies = [\"10.0.0.5\"]")), &[]),
        (open("127.0.0.1:0", "proxies = [\"10.0.0.0/8\"]"), &["whoever is in 10.0.0.0/8 of proxies"]),
        (open("0.0.0.0:0", "proxies = [\"127.0.0.0/8\", \"unix\", \"10.0.0.0/24\"]"), &[]),
        (vec![account.into()], &["can read all that they can; say in upstream.\"docker.io\".allow what may be read"]),
        (vec![account.into(), allow.into()], &[]),
        (at("http://169.254.169.254/latest"), &[nowhere]),
        (at("http://[fe80::1]"), &[nowhere]),
        (at("http://2852039166"), &[nowhere]),
        (at("http://metadata.google.internal"), &[nowhere]),
        (at("http://127.0.0.1:1"), &[]),
        (
            vec!["upstream.\"docker.io\".fallbacks=http://100.100.100.200".into()],
            &["fallbacks is http://100.100.100.200, where no"],
        ),
    ] {
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let checked = Process::order(dir.path(), &["check"], &with(&settings, &set)).await;
        let told: Vec<&str> = checked.stdout.lines().filter(|line| line.starts_with("doubt ")).collect();
        assert_eq!(told.len(), doubts.len(), "{set:?}: {}{}", checked.stdout, checked.log);
        assert!(told.iter().zip(doubts).all(|(told, doubt)| told.contains(doubt)), "{told:?}");
    }
    let larder = Process::start(dir.path(), &with(&settings, &[&listener(&with_users)]), &[]);
    larder.log_when("it says so at its start as well", |log| log.contains("WARN") && log.contains("in cleartext")).await;
}
