//! Sources that change, fail and come back.
#![expect(clippy::disallowed_methods, reason = "the sources are files")]

use super::helper::tests::{install, runner};
use super::*;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// A helper that notes its runs, waits at a gate if there is one, and then fails, or answers, with what a file holds.
const HELPER: &str = r#"
echo run >> "$0.runs"
[ ! -e "$0.gate" ] || cat "$0.gate"
if [ -e "$0.broken" ]; then cat "$0.broken"; exit 1; fi
cat "$0.answer"
"#;

/// A directory with sources, and the clock that they are looked at by.
struct World {
    dir: TempDir,
    clock: Clock,
}

impl World {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap(), clock: Clock::system() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn account(&self, options: &AccountOptions) -> Result<Option<Credentials>, String> {
        let url = "https://r.example".parse().unwrap();
        let runner = runner(self.dir.path(), Duration::from_secs(10));
        Credentials::with(options, "r.example", &url, self.clock.clone(), runner)
    }

    fn with_password(&self, password: &str) -> Credentials {
        let password_file = self.write("password", password);
        let options = AccountOptions { username: "bob".into(), password_file, ..AccountOptions::default() };
        Credentials::new(&options, "r.example", &"https://r.example".parse().unwrap(), self.clock.clone()).unwrap().unwrap()
    }

    fn with_config(&self, config: &str) -> Credentials {
        let docker_config = self.write("config.json", config);
        self.account(&AccountOptions { docker_config, ..AccountOptions::default() }).unwrap().unwrap()
    }

    fn with_helper(&self, secret: &str) -> Credentials {
        install(self.dir.path(), "test", HELPER);
        self.helper_answers(secret);
        self.account(&AccountOptions { credential_helper: "test".into(), ..AccountOptions::default() }).unwrap().unwrap()
    }

    fn helper_answers(&self, secret: &str) {
        self.write("docker-credential-test.answer", &format!(r#"{{"ServerURL":"x","Username":"AWS","Secret":"{secret}"}}"#));
    }

    fn helper_fails(&self, message: &str) {
        self.write("docker-credential-test.broken", message);
    }

    fn helper_works_again(&self) {
        fs::remove_file(self.path("docker-credential-test.broken")).unwrap();
    }

    /// The helper waits from now on.
    fn close_gate(&self) {
        let made = std::process::Command::new("mkfifo").arg(self.path("docker-credential-test.gate")).status();
        assert!(made.unwrap().success());
    }

    /// Waits for the helper to come to the gate, and lets it and all after it through.
    async fn open_gate(&self) {
        let gate = self.path("docker-credential-test.gate");
        let (send, opened) = tokio::sync::oneshot::channel();
        // A thread that nobody waits for: if no helper comes, it stands there for ever.
        std::thread::spawn(move || {
            let open = fs::OpenOptions::new().write(true).open(&gate).unwrap();
            fs::remove_file(gate).unwrap();
            drop(open);
            send.send(())
        });
        tokio::time::timeout(Duration::from_secs(10), opened).await.expect("no helper came").unwrap();
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.path("docker-credential-test.runs")).map_or(0, |runs| runs.lines().count())
    }

    fn minutes_pass(&self, minutes: u64) {
        self.clock.advance(Duration::from_mins(minutes));
    }

    fn seconds_pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    fn in_an_hour(&self) -> u64 {
        (self.clock.now() + Duration::from_hours(1)).unix_millis() / 1000
    }

    fn jwt_for_an_hour(&self) -> String {
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{}}}"#, self.in_an_hour()));
        format!("e30.{claims}.c2ln")
    }
}

/// As `user password`.
fn show(credential: Option<Credential>) -> Option<String> {
    credential.map(|Credential { username, password }| format!("{username} {password}"))
}

async fn get(credentials: &Credentials) -> Result<Option<String>, Error> {
    credentials.get().await.map(show)
}

/// What fifty tasks are told that ask at the same time.
async fn fifty<F>(credentials: &Credentials, ask: impl Fn(Credentials) -> F) -> Vec<Result<Option<String>, Error>>
where
    F: Future<Output = Result<Option<String>, Error>> + Send + 'static,
{
    let asking: Vec<_> = (0..50).map(|_| tokio::spawn(ask(credentials.clone()))).collect();
    join_all(asking).await.into_iter().map(Result::unwrap).collect()
}

async fn renew(credentials: &Credentials, password: &str) -> Result<Option<String>, Error> {
    let username = credentials.get().await.unwrap().unwrap().username;
    credentials.renew(&Credential { username, password: password.into() }).await.map(show)
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with what may fail")]
fn held(user_and_password: &str) -> Result<Option<String>, Error> {
    Ok(Some(user_and_password.into()))
}

/// Waits for the look that is under way; there may be none.
async fn background_work(credentials: &Credentials) {
    credentials.look(Cause::Due).await;
}

/// What is told after the look that asking starts.
async fn get_twice(credentials: &Credentials) -> Result<Option<String>, Error> {
    get(credentials).await?;
    background_work(credentials).await;
    get(credentials).await
}

#[tokio::test]
async fn every_source_gives_its_credentials() {
    let world = World::new();
    let from_file = world.with_password("pass word\r\n");
    assert_eq!((get(&from_file).await, from_file.label()), (held("bob pass word"), "bob"));
    let by_env = AccountOptions { username: "eve".into(), password_env: "PATH".into(), ..AccountOptions::default() };
    let from_env = world.account(&by_env).unwrap().unwrap();
    assert_eq!((get(&from_env).await, from_env.label()), (held(&format!("eve {}", std::env::var("PATH").unwrap())), "eve"));
    let from_config = world.with_config(r#"{"auths":{"r.example":{"auth":"Ym9iOmE6Yg=="}}}"#);
    assert_eq!((get(&from_config).await, from_config.label()), (held("bob a:b"), "docker_config"));
    let from_helper = world.with_helper("secret");
    assert_eq!((get(&from_helper).await, from_helper.label()), (held("AWS secret"), "helper test"));
    assert_eq!(get(&world.with_config("{}")).await, Ok(None), "it knows nothing of this registry");
    assert!(world.account(&AccountOptions::default()).unwrap().is_none(), "nobody is configured");
}

#[test]
fn a_credential_is_sent_as_basic_or_is_an_identity_token() {
    let credential = |username: &str| Credential { username: username.into(), password: "open sesame".into() };
    let basic = credential("Aladdin").basic();
    assert_eq!(basic, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    assert!(basic.is_sensitive());
    assert_eq!(credential("Aladdin").identity_token(), None);
    assert_eq!(credential("<token>").identity_token(), Some("open sesame"));
}

#[tokio::test]
async fn a_rotated_file_is_noticed_when_what_was_read_is_old() {
    let world = World::new();
    let password = world.with_password("one");
    let config = world.with_config(r#"{"auths":{"r.example":{"username":"eve","password":"one"}}}"#);
    world.write("password", "two");
    world.write("config.json", r#"{"auths":{"r.example":{"username":"eve","password":"two"}}}"#);
    world.seconds_pass(5);
    assert_eq!((get(&password).await, get(&config).await), (held("bob one"), held("eve one")));
    world.seconds_pass(5);
    assert_eq!((get(&password).await, get(&config).await), (held("bob two"), held("eve two")));
}

#[tokio::test]
async fn a_rotated_file_is_noticed_at_once_when_the_upstream_refuses_the_old() {
    let world = World::new();
    let credentials = world.with_password("one");
    assert_eq!(renew(&credentials, "one").await, Ok(None), "nothing new stands there");
    world.write("password", "two");
    assert_eq!(renew(&credentials, "one").await, held("bob two"));
    assert_eq!(renew(&credentials, "one").await, held("bob two"), "who comes later is given what is there");
    fs::remove_file(world.path("password")).unwrap();
    let refused = renew(&credentials, "two").await;
    assert!(matches!(refused, Err(Error::Credentials(why)) if why.starts_with("password_file ")));
}

#[tokio::test]
async fn while_a_file_is_away_or_broken_the_old_credentials_are_kept() {
    let world = World::new();
    let password = world.with_password("one");
    let config = world.with_config(r#"{"auths":{"r.example":{"username":"eve","password":"one"}}}"#);
    fs::remove_file(world.path("password")).unwrap();
    world.write("config.json", r#"{"auths":{"r.exa"#);
    for _ in 0..3 {
        world.seconds_pass(10);
        assert_eq!((get(&password).await, get(&config).await), (held("bob one"), held("eve one")));
    }
    world.write("password", "");
    world.seconds_pass(10);
    assert_eq!(get(&password).await, held("bob one"), "an empty file is one that is being written");
    world.write("password", "two");
    world.write("config.json", "{}");
    world.seconds_pass(10);
    assert_eq!((get(&password).await, get(&config).await), (held("bob two"), Ok(None)));
}

#[tokio::test]
async fn a_helper_is_asked_again_shortly_before_the_end_and_nobody_waits() {
    let world = World::new();
    let credentials = world.with_helper("one");
    assert_eq!(get(&credentials).await, held("AWS one"));
    world.helper_answers("two");
    world.close_gate();
    world.minutes_pass(7);
    assert_eq!(get(&credentials).await, held("AWS one"));
    assert_eq!(world.runs(), 1, "it does not say how long it is good, and ten minutes are taken");
    world.minutes_pass(1);
    for _ in 0..10 {
        assert_eq!(get(&credentials).await, held("AWS one"), "the helper stands at the gate");
    }
    world.open_gate().await;
    background_work(&credentials).await;
    assert_eq!(get(&credentials).await, held("AWS two"));
    assert_eq!(world.runs(), 2);
}

#[tokio::test]
async fn who_asks_after_the_end_waits_for_the_new() {
    let world = World::new();
    let credentials = world.with_helper("one");
    assert_eq!(get(&credentials).await, held("AWS one"));
    world.helper_answers("two");
    world.minutes_pass(10);
    assert_eq!(get(&credentials).await, held("AWS two"));
}

#[tokio::test]
async fn a_secret_that_says_when_it_ends_is_kept_as_long_while_its_helper_fails() {
    let world = World::new();
    let jwt = world.jwt_for_an_hour();
    let credentials = world.with_helper(&jwt);
    let old = held(&format!("AWS {jwt}"));
    assert_eq!(get(&credentials).await, old);
    world.minutes_pass(47);
    assert_eq!((get(&credentials).await, world.runs()), (old.clone(), 1));
    world.helper_fails("the cloud is away");
    world.minutes_pass(2);
    for _ in 0..10 {
        assert_eq!(get(&credentials).await, old);
        background_work(&credentials).await;
        world.seconds_pass(2);
    }
    assert_eq!(world.runs(), 2, "it has failed only just");
    world.seconds_pass(30);
    assert_eq!(get(&credentials).await, old);
    background_work(&credentials).await;
    assert_eq!(world.runs(), 3, "it is tried again");
    world.minutes_pass(11);
    let away = Error::Credentials("docker-credential-test ends with exit status: 1: the cloud is away".into());
    assert_eq!(get(&credentials).await, Err(away), "the old ones have expired");
    world.helper_works_again();
    world.helper_answers("new");
    world.seconds_pass(5);
    assert_eq!(get(&credentials).await, held("AWS new"));
}

#[tokio::test]
async fn a_password_of_ecr_is_renewed_in_time() {
    let world = World::new();
    let password = STANDARD.encode(format!(r#"{{"payload":"x","version":"2","expiration":{}}}"#, world.in_an_hour()));
    let credentials = world.with_helper(&password);
    assert_eq!(get(&credentials).await, held(&format!("AWS {password}")));
    world.helper_answers("new");
    world.minutes_pass(47);
    assert_eq!((get(&credentials).await, world.runs()), (held(&format!("AWS {password}")), 1));
    world.minutes_pass(2);
    assert_eq!(get(&credentials).await, held(&format!("AWS {password}")));
    background_work(&credentials).await;
    assert_eq!((get(&credentials).await, world.runs()), (held("AWS new"), 2));
}

#[tokio::test]
async fn a_secret_that_does_not_say_is_kept_as_long_as_its_helper_fails() {
    let world = World::new();
    let credentials = world.with_helper("one");
    assert_eq!(get(&credentials).await, held("AWS one"));
    world.helper_fails("the cloud is away");
    for runs in 2..5 {
        world.minutes_pass(60);
        assert_eq!((get(&credentials).await, world.runs()), (held("AWS one"), runs));
    }
}

#[tokio::test]
async fn a_helper_that_suddenly_knows_nothing_is_not_believed_at_once() {
    let world = World::new();
    let credentials = world.with_helper("one");
    assert_eq!(get(&credentials).await, held("AWS one"));
    world.helper_fails("credentials not found in native keychain");
    world.minutes_pass(9);
    assert_eq!((get_twice(&credentials).await, world.runs()), (held("AWS one"), 2), "it may have been unable to ask");
    world.minutes_pass(2);
    assert_eq!((get(&credentials).await, world.runs()), (Ok(None), 3));
    world.helper_works_again();
    world.seconds_pass(30);
    assert_eq!(get(&credentials).await, held("AWS one"), "that it knows nothing is not believed for long");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_who_ask_at_once_start_one_helper() {
    let world = World::new();
    let credentials = world.with_helper("one");
    assert_eq!(fifty(&credentials, |credentials| async move { get(&credentials).await }).await, vec![held("AWS one"); 50]);
    assert_eq!(world.runs(), 1);
    world.helper_answers("two");
    assert_eq!(
        fifty(&credentials, |credentials| async move { renew(&credentials, "one").await }).await,
        vec![held("AWS two"); 50]
    );
    assert_eq!(world.runs(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_helper_that_fails_is_not_started_for_everyone() {
    let world = World::new();
    let credentials = world.with_helper("one");
    world.helper_fails("the cloud is away");
    let away = Error::Credentials("docker-credential-test ends with exit status: 1: the cloud is away".into());
    assert_eq!(fifty(&credentials, |credentials| async move { get(&credentials).await }).await, vec![Err(away.clone()); 50]);
    assert_eq!((get(&credentials).await, world.runs()), (Err(away), 1));
    world.helper_works_again();
    world.seconds_pass(5);
    assert_eq!((get(&credentials).await, world.runs()), (held("AWS one"), 2));
}

#[tokio::test]
async fn a_helper_whose_answer_is_refused_is_asked_at_once_but_not_for_every_client() {
    let world = World::new();
    let credentials = world.with_helper("one");
    assert_eq!(get(&credentials).await, held("AWS one"));
    for _ in 0..10 {
        assert_eq!((renew(&credentials, "one").await, world.runs()), (Ok(None), 2), "it says the same still");
    }
    world.helper_answers("two");
    world.seconds_pass(5);
    assert_eq!((renew(&credentials, "one").await, world.runs()), (held("AWS two"), 3));
}

#[tokio::test]
async fn a_refusal_during_a_look_leads_to_another() {
    let world = World::new();
    let credentials = world.with_helper("one");
    assert_eq!(get(&credentials).await, held("AWS one"));
    world.close_gate();
    world.minutes_pass(9);
    assert_eq!(get(&credentials).await, held("AWS one"));
    let (renewed, ()) = tokio::join!(renew(&credentials, "one"), world.open_gate());
    assert_eq!((renewed, world.runs()), (Ok(None), 3));
}

#[tokio::test]
async fn the_helper_of_a_config_is_asked_for_what_it_knows_and_auths_for_the_rest() {
    let world = World::new();
    let auths = r#""auths":{"r.example":{"username":"eve","password":"plain"}}"#;
    world.with_helper("one");
    let credentials = world.with_config(&format!(r#"{{"credHelpers":{{"r.example":"test"}},{auths}}}"#));
    assert_eq!(get(&credentials).await, held("AWS one"));
    world.minutes_pass(1);
    assert_eq!((get_twice(&credentials).await, world.runs()), (held("AWS one"), 1), "the helper is left alone");
    install(world.dir.path(), "other", r#"echo '{"Username":"oauth2accesstoken","Secret":"two"}'"#);
    world.write("config.json", r#"{"credHelpers":{"r.example":"other"}}"#);
    world.seconds_pass(10);
    assert_eq!(get_twice(&credentials).await, held("oauth2accesstoken two"), "there is another helper");
    world.write("config.json", &format!("{{{auths}}}"));
    world.seconds_pass(10);
    assert_eq!(get_twice(&credentials).await, held("eve plain"), "there is no helper any more");
    world.helper_fails("credentials not found in native keychain");
    world.write("config.json", &format!(r#"{{"credsStore":"test",{auths}}}"#));
    world.seconds_pass(10);
    assert_eq!((get(&credentials).await, world.runs()), (held("eve plain"), 2), "the store knows nothing");
}
