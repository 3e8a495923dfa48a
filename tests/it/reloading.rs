//! A changed configuration that a running larder takes up, under load, and what it says of the rest.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{
    ANONYMOUS, Auth, Authority, Client, Image, PATIENCE, Process, Registry, Setup, TestMirror, TokenService, basic, get, noise,
};

const MIB: usize = 1 << 20;
const ALICES: &str = "canary-of-alice";

struct Served {
    larder: Process,
    dir: tempfile::TempDir,
    /// What is none of larder's writing.
    files: tempfile::TempDir,
    base: String,
}

/// A larder by a file: what all have, and `more`.
fn write(dir: &Path, base: &str, more: &str) {
    fs::write(dir.join("larder.toml"), format!("{base}{more}")).unwrap();
}

/// `listener`: where there is a second way in; `0` for a port of the kernel's choice.
fn serve(upstream: &Registry, more: &str) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let base = format!("upstream.\"docker.io\".url = {:?}\nmirror.well_known = false\n", upstream.url());
    write(dir.path(), &base, more);
    let larder = Process::start(dir.path(), &[], &[]);
    Served { larder, dir, files: tempfile::tempdir().unwrap(), base }
}

impl Served {
    /// Lets it read this instead, and waits for what it says.
    async fn told(&self, more: &str, says: &str) -> String {
        let before = self.larder.log().len();
        write(self.dir.path(), &self.base, more);
        self.larder.hang_up();
        let said = async {
            loop {
                let log = self.larder.log()[before..].to_owned();
                if log.contains(says) {
                    return log;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, said).await.unwrap_or_else(|_| panic!("it never says {says:?}: {}", &self.larder.log()[before..]))
    }
}

/// The options of an upstream to which larder is this user.
fn account(dir: &Path, user: &str) -> String {
    let file = dir.join(format!("password-of-{user}"));
    fs::write(&file, format!("canary-of-{user}")).unwrap();
    format!("upstream.\"docker.io\".username = {user:?}\nupstream.\"docker.io\".password_file = \"{}\"\n", file.display())
}

#[tokio::test]
async fn a_reload_under_load_of_200_connections_loses_none() {
    let upstream = Registry::start().await;
    let blob = noise(1, 4 * MIB);
    let path = format!("/v2/library/app/blobs/{}", upstream.put_blob("library/app", blob.clone()));
    let served = serve(&upstream, "");
    let url = served.larder.url(&path);
    assert!(Client::h1().get(&url).await.expect(200).body == blob);
    let clients: Vec<_> = (0..200).map(|n| if n % 4 == 0 { Client::h2() } else { Client::h1() }).collect();
    let mut bodies = join_all(clients.iter().map(|client| client.stream(&url))).await;
    for body in &mut bodies {
        body.take(1000).await;
    }
    served.larder.until("larder_connections", |open| open == 200).await;
    for n in 0..5 {
        let log = ["info", "debug"][n % 2];
        let more = format!("mirror.tag_ttl = \"{n}m\"\nserver.client_requests = {}\nlog.level = {log:?}\n", 1000 + n);
        served.told(&format!("{more}{}", account(served.files.path(), &format!("user-{n}"))), "has been read anew").await;
        served.told("nonsense", "what it was stays").await;
    }
    assert_eq!(served.larder.metric("larder_connections").await, 200);
    let rests = join_all(bodies.into_iter().map(|body| async { body.rest().await })).await;
    assert!(rests.iter().all(|rest| rest.complete && rest.body.len() + 1000 >= blob.len()));
    let again = join_all(clients.iter().map(|client| client.head(&url))).await;
    assert!(again.iter().all(|answer| answer.status == 200));
}

/// The one that had read its file first could be the last to take it up, and what was to be closed stayed open.
#[tokio::test]
async fn of_two_reloads_at_once_the_later_file_holds() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[10]).put(&upstream, "library/secret", "latest");
    let mirror = TestMirror::of(&upstream).await;
    let (older, newer) = (mirror.config_with(""), mirror.config_with("upstream.\"docker.io\".deny = [\"library/secret\"]"));
    let ((reads, is_read), (has_read, may_go_on)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let (running, beside) = (mirror.running(), mirror.running());
    let first = std::thread::spawn(move || {
        let read = || {
            reads.send(()).unwrap();
            may_go_on.recv().unwrap();
            Ok(older)
        };
        running.reload(read).is_ok()
    });
    is_read.recv().unwrap();
    let second = std::thread::spawn(move || beside.reload(|| Ok(newer)).is_ok());
    // It has every chance to be done with first.
    let done = async {
        while !second.is_finished() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = timeout(Duration::from_millis(300), done).await;
    has_read.send(()).unwrap();
    assert!(first.join().unwrap() && second.join().unwrap());
    mirror.get(&image.tag_path("latest")).await.expect(403);
}

/// An editor, or a full disk, leaves a file in which nothing is, which would be all defaults.
#[tokio::test]
async fn a_file_that_says_nothing_changes_nothing_and_what_is_lifted_is_told() {
    let upstream = Registry::start().await;
    let bounds =
        "server.client_requests = 10000\nmirror.max_rate = \"1GiB\"\nupstream.\"docker.io\".deny = [\"library/secret\"]\n";
    let served = serve(&upstream, bounds);
    let before = served.larder.log().len();
    for (n, nothing) in [(1, ""), (2, "\n# all is gone\n")] {
        fs::write(served.dir.path().join("larder.toml"), nothing).unwrap();
        served.larder.hang_up();
        let refused = |log: &str| log[before..].matches("has no option in it").count() == n;
        assert!(!served.larder.log_when("it is refused", refused).await[before..].contains("read anew"));
    }
    let log = served.told("server.client_requests = 20000\nmirror.max_rate = \"1GiB\"\n", "has been read anew").await;
    assert!(log.contains("WARN") && log.contains("do so no more: upstream.\"docker.io\".deny\n"), "{log}");
    let log = served.told("", "has been read anew").await;
    assert!(log.contains("do so no more: mirror.max_rate, server.client_requests\n"), "{log}");
}

/// Under way are new connections, handshakes and logins.
#[tokio::test]
async fn while_users_certificates_and_options_change_everyone_gets_in() {
    let upstream = Registry::start().await;
    let (authority, files) = (Arc::new(Authority::new()), tempfile::tempdir().unwrap());
    let (certificate, key) = authority.server(files.path(), "127.0.0.1");
    let users = files.path().join("users");
    let alice = format!("alice:{}\n", bcrypt::hash(ALICES, 5).unwrap());
    fs::write(&users, &alice).unwrap();
    let listener = format!(
        "[[server.listener]]\nlisten = \"127.0.0.1:0\"\ncert_file = {certificate:?}\nkey_file = {key:?}\nusers_file = {users:?}\n"
    );
    let served = serve(&upstream, &listener);
    let url = served.larder.greeting().split("https://").nth(1).unwrap().split_whitespace().next().unwrap();
    let (url, ended) = (format!("https://{url}/v2/"), CancellationToken::new());
    let mut comers = JoinSet::new();
    for n in 0..8 {
        let (authority, url, ended) = (authority.clone(), url.clone(), ended.clone());
        comers.spawn(async move {
            let (mut came, protocol) = (0, if n % 2 == 0 { "h2" } else { "http/1.1" });
            while !ended.is_cancelled() {
                let client = Client::tls(authority.believed(rustls::ALL_VERSIONS, &[protocol]));
                client.get_with(&url, &[("authorization", &basic("alice", ALICES))]).await.expect(200);
                came += 1;
            }
            came
        });
    }
    for n in 0..5 {
        fs::write(&users, format!("{alice}user-{n}:{}\n", bcrypt::hash(ALICES, 4).unwrap())).unwrap();
        authority.server(files.path(), "127.0.0.1");
        let more = format!("mirror.tag_ttl = \"{n}m\"\nserver.client_requests = {}\n{listener}", 100_000 + n);
        served.told(&more, "the users of").await;
    }
    ended.cancel();
    let came = comers.join_all().await;
    assert!(came.iter().all(|came| *came > 0), "{came:?}");
}

#[tokio::test]
async fn what_may_be_had_and_how_often_changes_at_once_on_connections_that_are_open() {
    let upstream = Registry::start().await;
    let [app, secret] = ["library/app", "library/secret"].map(|name| Image::new(1).layers(&[10]).put(&upstream, name, "latest"));
    let served = serve(&upstream, "");
    let client = Client::h1();
    let ask = async |image: &crate::support::PutImage| client.get(served.larder.url(&image.tag_path("latest"))).await.status;
    assert_eq!((ask(&app).await, ask(&secret).await), (200, 200));
    let asked = upstream.requests().len();
    ask(&app).await;
    assert_eq!(upstream.requests().len(), asked, "it is fresh");
    let log = served.told("upstream.\"docker.io\".deny = [\"library/secret\"]\nmirror.tag_ttl = \"0s\"\n", "read anew").await;
    assert!(!log.contains("waits"), "{log}");
    assert_eq!((ask(&app).await, ask(&secret).await), (200, 403));
    assert_eq!(upstream.requests().len(), asked + 1, "it is fresh no more, and what is denied is not asked for");
    // What would let more be had than either configuration does, waits; and is told each time.
    for _ in 0..2 {
        let more = "upstream.\"docker.io\".hosts = [\"hub.test\"]\ncache.max_size = \"2GiB\"\n";
        let log = served.told(more, "waits for the next start").await;
        assert!(log.contains("cache.max_size, upstream.\"docker.io\".deny, upstream.\"docker.io\".hosts"), "{log}");
        assert_eq!(ask(&secret).await, 403);
    }
    served.told("", "has been read anew").await;
    assert_eq!(ask(&secret).await, 200);
    // What larder would not start with changes nothing.
    for (wrong, says) in [
        ("mirror.tag_ttl = \"soon\"", "mirror.tag_ttl: "),
        ("upstream.\"docker.io\".password_file = \"/nowhere\"", "upstream.\"docker.io\""),
        ("server.listener = [{ listen = \"127.0.0.1:0\", users_file = \"/nowhere\" }]", "/nowhere cannot be read"),
    ] {
        let log = served.told(wrong, "what it was stays").await;
        assert!(log.contains(says), "{log}");
        assert_eq!(ask(&secret).await, 200);
    }
    // Requests of one client.
    served.told("server.client_requests = 1\n", "has been read anew").await;
    let statuses = join_all((0..30).map(|_| ask(&app))).await;
    assert!(statuses.contains(&429) && statuses.contains(&200), "{statuses:?}");
}

#[tokio::test]
async fn rules_and_users_change_together_with_what_they_belong_to() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[10]).put(&upstream, "library/app", "latest");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let users = tempfile::NamedTempFile::new().unwrap();
    fs::write(users.path(), format!("alice:{}\n", bcrypt::hash(ALICES, 4).unwrap())).unwrap();
    let listener = |options: &str| format!("[[server.listener]]\nlisten = \"127.0.0.1:{port}\"\n{options}\n");
    let with_users = format!("users_file = {:?}\n", users.path());
    let rules = |name: &str| format!("rule = [{{ who = [\"user:{name}\"], allow = [\"docker.io/**\"] }}]");
    let served = serve(&upstream, &listener(&(with_users.clone() + &rules("alice"))));
    let client = Client::h1();
    let ask = async || {
        let url = format!("http://127.0.0.1:{port}{}", image.tag_path("latest"));
        client.get_with(url, &[("authorization", &basic("alice", ALICES))]).await.status
    };
    assert_eq!(ask().await, 200);
    served.told(&listener(&(with_users.clone() + &rules("bob"))), "has been read anew").await;
    assert_eq!(ask().await, 403);
    // No rules, and other doors to which that belongs: both wait.
    let log = served.told(&listener("proxies = [\"10.0.0.0/8\"]"), "waits for the next start").await;
    assert!(log.contains("server.listener"), "{log}");
    assert_eq!(ask().await, 403);
    served.told(&listener(&with_users), "has been read anew").await;
    assert_eq!(ask().await, 200);
    // The users themselves, without waiting until it is looked.
    fs::write(users.path(), format!("bob:{}\n", bcrypt::hash("canary-of-bob", 4).unwrap())).unwrap();
    served.told(&listener(&with_users), "has been read anew").await;
    assert_eq!(ask().await, 401);
}

#[tokio::test]
async fn another_account_is_who_the_upstream_is_asked_as_from_then_on() {
    let setup = Setup { auth: Auth::Tokens(TokenService::default()), ..Setup::default() };
    let upstream = Registry::with(setup.login("ann", "canary-of-ann").login("bob", "canary-of-bob")).await;
    let images: Vec<_> = (0..4).map(|n| Image::new(n).layers(&[10]).put(&upstream, &format!("team/app-{n}"), "latest")).collect();
    let trusted = format!("upstream.\"docker.io\".token_hosts = [{:?}]\n", upstream.token_url().replace("http://", ""));
    let served = serve(&upstream, &trusted);
    let [ann, bob] = ["ann", "bob"].map(|user| trusted.clone() + &account(served.files.path(), user));
    let asked_as = async |n: usize| {
        let before = upstream.requests().len();
        get(served.larder.url(&images[n].tag_path("latest"))).await.expect(200);
        let requests = upstream.requests()[before..].to_vec();
        let accounts = requests.into_iter().filter(|request| request.authorization().is_some()).map(|request| request.account);
        accounts.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(asked_as(0).await, [ANONYMOUS]);
    for (n, more, user) in [(1, &ann, "ann"), (2, &bob, "bob"), (3, &trusted, ANONYMOUS)] {
        let log = served.told(more, "has been read anew").await;
        assert!(!log.contains("waits"), "{log}");
        assert_eq!(log.contains("has credentials and no allow-list"), n == 1, "{log}");
        assert_eq!(asked_as(n).await, [user]);
    }
    // What cannot be read is not taken up, nor is anything beside it.
    let broken = "mirror.tag_ttl = \"7m\"\nupstream.\"docker.io\".username = \"ann\"\nupstream.\"docker.io\".password_file = \"/nowhere\"\n";
    served.told(&(trusted.clone() + broken), "what it was stays").await;
    // An account that goes on where it was keeps what is known of it: no password is sent once more.
    served.told(&ann, "has been read anew").await;
    let tokens = upstream.token_requests();
    served.told(&(ann.clone() + "mirror.tag_ttl = \"0s\"\n"), "has been read anew").await;
    get(served.larder.url(&images[1].tag_path("latest"))).await.expect(200);
    let of_ann = upstream.token_requests();
    served.told(&(ann + "mirror.tag_ttl = \"0s\"\nlog.level = \"debug\"\n"), "has been read anew").await;
    get(served.larder.url(&images[1].tag_path("latest"))).await.expect(200);
    assert_eq!((of_ann, upstream.token_requests()), (tokens + 1, of_ann));
}

#[tokio::test]
async fn what_is_logged_changes_at_once() {
    let upstream = Registry::start().await;
    let served = serve(&upstream, "log.level = \"warn\"\n");
    let shown = |log: &str| log.matches("access:").count();
    get(served.larder.url("/v2/")).await.expect(200);
    let log = served.told("log.level = \"info\"\n", "has been read anew").await;
    assert!(!log.contains("waits") && shown(&served.larder.log()) == 0, "{log}");
    get(served.larder.url("/v2/")).await.expect(200);
    served.larder.log_when("requests are shown", |log| shown(log) == 1).await;
    served.told("log.level = \"warn\"\ncache.max_size = \"2GiB\"\n", "waits for the next start").await;
    get(served.larder.url("/v2/")).await.expect(200);
    served.told("log.level = \"debug\"\n", "has been read anew").await;
    assert_eq!(shown(&served.larder.log()), 1);
}
