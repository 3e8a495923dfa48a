//! `larder check`: whether larder could do its work here, said in a line for each thing.

use std::fs;

use crate::support::{Auth, Process, Registry, Setup, TokenService, get};

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
    let settings = with(&settings, &["upstream.\"docker.io\".username=bob", &password]);
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
