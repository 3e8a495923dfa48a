//! The audit log: who has had what and what an operator has had done, whatever becomes of the file, and nobody waits for it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use http::Method;
use serde_json::{Value, json};
use tokio::time::{Duration, sleep, timeout};

use crate::support::{
    Auth, Authority, Client, Fault, Image, Log, Match, PATIENCE, Process, Registry, Setup, StoppedMirror, TestMirror,
    TokenService, User, basic, get, get_with,
};

const MIB: usize = 1 << 20;

fn audited(mirror: StoppedMirror) -> StoppedMirror {
    let file = mirror.dir().join("audit.log");
    mirror.set(&format!("log.audit_file = '{}'", file.display()))
}

/// Waits until the file has so many lines, and reads each of them.
async fn lines(file: &Path, number: usize) -> Vec<Value> {
    let read = || fs::read_to_string(file).unwrap_or_default();
    let written = async {
        while read().lines().count() < number || !read().ends_with('\n') {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, written).await.is_ok(), "{number} lines: {}", read());
    let text = read();
    assert!(!text.contains("canary"), "a password is told: {text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// A line without what is another each time.
fn lasting(mut line: Value) -> Value {
    let fields = line.as_object_mut().unwrap();
    let time = fields.remove("time").unwrap();
    assert!(humantime::parse_rfc3339(time.as_str().unwrap()).is_ok(), "{time}");
    let client = fields.remove("client").unwrap();
    assert!(client.as_str().unwrap().starts_with("127.0.0.1"), "{client}");
    line
}

fn without(mut line: Value, keys: &[&str]) -> Value {
    keys.iter().for_each(|key| _ = line.as_object_mut().unwrap().remove(*key));
    line
}

// === accesses ===

#[tokio::test]
async fn each_access_is_a_line_with_what_was_had_and_how_it_ended() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[2 * MIB]).put(&upstream, "library/app", "latest");
    let layer = &image.layers[0];
    let mirror = audited(TestMirror::builder().upstream("docker.io", &upstream)).start().await;
    let file = mirror.dir().join("audit.log");
    mirror.get(&image.tag_path("latest")).await.expect(200);
    lines(&file, 1).await;
    mirror.get(&image.blob_path(layer)).await.expect(200);
    lines(&file, 2).await;
    mirror.kept(&layer.digest).await;
    mirror.get_with(&image.blob_path(layer), &[("range", "bytes=0-99")]).await.expect(206);
    lines(&file, 3).await;
    mirror.get("/v2/library/none/manifests/v1").await.expect(404);
    let lines = lines(&file, 4).await;
    let of = |kind: &str, more: Value| {
        let mut line = json!({ "event": "access", "method": "GET", "kind": kind, "upstream": "docker.io", "end": "complete" });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line
    };
    let blob = |served: &str, status: u16, bytes: usize| {
        let digest = &layer.digest;
        let more = json!({ "repository": "library/app", "reference": digest, "digest": digest, "status": status, "served": served, "bytes": bytes });
        of("blob", more)
    };
    let manifest = json!({
        "repository": "library/app", "reference": "latest", "digest": image.digest, "status": 200, "served": "miss",
        "bytes": image.manifest.len(),
    });
    let told: Vec<Value> = lines.iter().cloned().map(lasting).collect();
    assert_eq!(told[0], of("manifest", manifest));
    assert_eq!([&told[1], &told[2]], [&blob("miss", 200, 2 * MIB), &blob("hit", 206, 100)]);
    let refused = without(told[3].clone(), &["bytes", "why"]);
    let none = json!({ "repository": "library/none", "reference": "v1", "status": 404, "served": "refused" });
    assert_eq!(refused, of("manifest", none));
    assert!(told[3]["why"].as_str().unwrap().contains("not found upstream"), "{}", told[3]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777 & !0o640, 0, "it is not for everyone");
}

#[tokio::test]
async fn who_leaves_in_the_middle_has_had_what_went_out() {
    let upstream = Registry::start().await;
    let image = Image::new(2).layers(&[2 * MIB]).put(&upstream, "library/app", "latest");
    upstream.on(Match::get(&image.layers[0].digest), Fault::Gate { after: MIB });
    let mirror = audited(TestMirror::builder().upstream("docker.io", &upstream)).start().await;
    let mut leaves = mirror.stream(&image.blob_path(&image.layers[0])).await;
    leaves.take(MIB / 2).await;
    drop(leaves);
    let line = &lines(&mirror.dir().join("audit.log"), 1).await[0];
    assert_eq!((&line["end"], &line["status"], &line["served"]), (&"left".into(), &200.into(), &"miss".into()));
    let bytes = line["bytes"].as_u64().unwrap();
    assert!((MIB as u64 / 2..=MIB as u64).contains(&bytes), "{line}");
}

/// By a password, by a certificate, by what a proxy says; and what each may not have.
#[tokio::test]
async fn who_it_was_is_told_as_far_as_that_is_known() {
    let upstream = Registry::start().await;
    let image = Image::new(3).put(&upstream, "library/app", "latest");
    let authority = Authority::new();
    let mirror = audited(TestMirror::builder().upstream("docker.io", &upstream));
    let users = mirror.dir().join("users");
    let hash = bcrypt::hash_with_salt("canary-of-alice", 4, [7; 16]).unwrap().format_for_version(bcrypt::Version::TwoY);
    fs::write(&users, format!("alice:{hash}\n")).unwrap();
    let (server, ca) = (authority.server(mirror.dir(), "127.0.0.1"), authority.file(mirror.dir()));
    let rules = "rule = [{ who = ['user:alice'], allow = ['docker.io/other/*'] }]";
    let mirror = mirror.listener(&format!("users_file = '{}', proxies = ['127.0.0.1'], {rules}", users.display()));
    let mirror = mirror.tls(&server, &format!("client_ca_file = '{}'", ca.display())).start().await;
    let (file, tag) = (mirror.dir().join("audit.log"), image.tag_path("latest"));
    let url = mirror.listening()[1].to_string();
    let alice = basic("alice", "canary-of-alice");
    let shown = [("authorization", alice.as_str()), ("x-forwarded-for", "198.51.100.7")];
    get_with(format!("{url}{tag}"), &shown).await.expect(403);
    lines(&file, 1).await;
    get_with(format!("{url}{tag}"), &[("authorization", &basic("alice", "canary-of-bob"))]).await.expect(401);
    lines(&file, 2).await;
    let build = Client::tls(authority.believed_by("build-7", &["h2"]));
    build.get(mirror.tls_url(&tag)).await.expect(200);
    let lines = lines(&file, 3).await;
    let of = |line: &Value| ["client", "user", "certificate", "status"].map(|key| line[key].clone());
    assert_eq!(of(&lines[0]), [json!("198.51.100.7"), json!("alice"), Value::Null, json!(403)]);
    assert_eq!(of(&lines[1])[1..], [Value::Null, Value::Null, json!(401)], "it is not known that it was alice");
    assert_eq!(of(&lines[2])[1..], [json!("build-7"), json!("build-7"), json!(200)]);
}

/// Where clients bring their own credentials, it is as whom they ask.
#[tokio::test]
async fn a_client_with_credentials_of_its_own_is_told_by_its_user() {
    let auth = Auth::Tokens(TokenService::default());
    let upstream = Registry::with(Setup { auth, ..Setup::default() }.login("alice", "canary-of-alice")).await;
    let image = Image::new(4).put(&upstream, "library/app", "latest");
    upstream.restrict("library/app", &["alice"]);
    let mirror = audited(TestMirror::builder().gate("docker.io", &upstream, "hub.mirror.test")).start().await;
    let alice = User::login(&mirror, "hub.mirror.test", "alice", "canary-of-alice").await;
    alice.get(&image.tag_path("latest")).await.expect(200);
    let lines = lines(&mirror.dir().join("audit.log"), 2).await;
    let of = |line: &Value| [&line["kind"], &line["user"], &line["status"]].map(Clone::clone);
    assert_eq!(of(&lines[0]), [json!("token"), json!("alice"), json!(200)]);
    assert_eq!(of(&lines[1]), [json!("manifest"), json!("alice"), json!(200)]);
}

/// What a client writes is a value in its line, and nothing else.
#[tokio::test]
async fn no_client_writes_a_line_of_its_own() {
    let mirror = audited(TestMirror::builder()).start().await;
    let evil = "/v2/library/a%22%7D%0A%7B%22event%22:%22order%22/manifests/%1B%5B31m";
    mirror.get(evil).await.expect(400);
    Client::h1().request(Method::from_bytes(b"X-ORDER").unwrap(), mirror.url("/v2/"), &[]).await.expect(405);
    let long = Method::from_bytes(&b"X".repeat(5_000)).unwrap();
    Client::h1().request(long, mirror.url("/v2/"), &[]).await.expect(405);
    let lines = lines(&mirror.dir().join("audit.log"), 3).await;
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.iter().all(|line| line["event"] == "access"), "{lines:?}");
    assert_eq!([&lines[1]["method"], &lines[2]["method"]], ["X-ORDER", "_OTHER"]);
}

// === orders ===

#[tokio::test]
async fn each_order_is_a_line_with_who_gave_it_and_what_came_of_it() {
    let upstream = Registry::start().await;
    Image::new(5).layers(&[1000]).put(&upstream, "library/app", "latest");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.log");
    let settings = [format!("upstream.\"docker.io\".url={}", upstream.url()), format!("log.audit_file={}", file.display())];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let larder = Process::start(dir.path(), &settings, &[]);
    Process::order(dir.path(), &["pull", "app:latest", "--pin"], &[]).await;
    lines(&file, 1).await;
    Process::order(dir.path(), &["rm", "app:latest", "none:v1"], &[]).await;
    let told = lines(&file, 2).await;
    let by = format!("uid {}", rustix::process::geteuid().as_raw());
    let told: Vec<Value> = told.into_iter().map(|line| without(line, &["time"])).collect();
    assert_eq!(
        told,
        [
            json!({ "event": "order", "by": by, "order": "pull", "what": ["app:latest"], "failed": 0, "end": "complete" }),
            json!({ "event": "order", "by": by, "order": "rm", "what": ["app:latest", "none:v1"], "failed": 2, "end": "complete" }),
        ],
        "it is pinned, and the other is not there"
    );
    // By the listener for operators as well.
    let refresh = format!("http://{}/api/refresh?image=", larder.admin());
    for (image, status) in [("app", 200), ("nowhere", 404)] {
        Client::h1().request(Method::POST, format!("{refresh}{image}"), &[("x-larder", "1")]).await.expect(status);
    }
    let told = lines(&file, 4).await;
    for (line, image, failed) in [(&told[2], "app", 0), (&told[3], "nowhere", 1)] {
        assert!(line["by"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        let refresh = json!({ "event": "order", "order": "refresh", "what": [image], "failed": failed, "end": "complete" });
        assert_eq!(without(line.clone(), &["time", "by"]), refresh);
    }
    larder.terminate();
}

// === the file ===

/// As logrotate does it: the file is moved away, and larder told. Nothing goes to the one that was moved after that.
#[tokio::test]
async fn a_file_that_was_moved_away_is_made_anew_when_larder_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (file, moved) = (dir.path().join("audit.log"), dir.path().join("audit.log.1"));
    fs::write(dir.path().join("larder.toml"), "mirror.well_known = false\n[upstream.\"docker.io\"]\n").unwrap();
    let larder = Process::start(dir.path(), &[&format!("log.audit_file={}", file.display())], &[]);
    get(larder.url("/v2/")).await.expect(200);
    lines(&file, 1).await;
    fs::rename(&file, &moved).unwrap();
    get(larder.url("/v2/")).await.expect(200);
    lines(&moved, 2).await;
    assert!(!file.exists(), "until it is told");
    // Whatever is wrong with the configuration.
    fs::write(dir.path().join("larder.toml"), "nonsense").unwrap();
    larder.hang_up();
    larder.log_when("it has heard", |log| log.contains("the configuration cannot be used")).await;
    get(larder.url("/v2/")).await.expect(200);
    lines(&file, 1).await;
    assert_eq!(lines(&moved, 2).await.len(), 2);
    let ended = larder.terminate();
    assert!(ended.status.success(), "{}", ended.log);
}

#[tokio::test]
async fn another_file_waits_for_the_next_start() {
    let mirror = audited(TestMirror::builder()).start().await;
    let file = mirror.dir().join("audit.log");
    let other = mirror.config_with("log.audit_file = '/elsewhere'");
    let reloaded = mirror.running().reload(|| Ok(other)).unwrap();
    assert_eq!(reloaded.waits, ["log.audit_file"]);
    mirror.get("/v2/").await.expect(200);
    lines(&file, 1).await;
}

#[tokio::test]
async fn a_disk_that_takes_no_line_is_no_clients_trouble() {
    let upstream = Registry::start().await;
    let image = Image::new(6).layers(&[1000]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("log.audit_file = '/dev/full'").start().await;
    let log = Log::from_here();
    for n in 1..=3 {
        mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
        mirror.metric_is("larder_audit_lost_total", n).await;
    }
    log.will_say(&["ERROR", "the audit log cannot be written"]).await;
}

/// It would be waited for until somebody reads it.
#[tokio::test]
async fn a_pipe_that_nobody_reads_is_refused_at_once() {
    let builder = TestMirror::builder();
    let pipe = builder.dir().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let builder = builder.set(&format!("log.audit_file = '{}'", pipe.display()));
    let Ok(Err((why, stopped))) = timeout(PATIENCE, builder.try_start()).await else { panic!("it waits, or it starts") };
    assert!(why.contains("cannot be written: No such device or address"), "{why}");
    let setting = format!("log.audit_file={}", pipe.display());
    let dir = stopped.dir().to_owned();
    let checked = timeout(PATIENCE, Process::order(&dir, &["check"], &[&setting])).await.expect("nor does `larder check` wait");
    let told = checked.stdout.lines().find(|line| line.contains("audit log")).unwrap_or_default();
    assert!(told.starts_with("wrong ") && told.contains("No such device or address"), "{}", checked.stdout);
}

/// Nobody reads on the other side, and the pipe is full.
#[tokio::test]
async fn who_does_not_read_the_audit_log_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let mirror = TestMirror::builder().set(&format!("log.audit_file = '{}'", pipe.display())).start().await;
    let client = Client::h1();
    // Some 64 KiB are in the pipe at most, a line has more than 100 bytes.
    let asked = async {
        for _ in 0..1500 {
            client.get(mirror.url("/v2/")).await.expect(200);
        }
    };
    timeout(PATIENCE, asked).await.expect("they do not wait");
    mirror.metric_is("larder_answers_total{served=\"local\"}", 1500).await;
    assert_eq!(mirror.metric("larder_audit_lost_total"), 0, "there is room for as many, and more");
    drop(reader);
}

#[tokio::test]
async fn what_was_had_before_a_stop_is_in_the_file_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.log");
    let setting = format!("log.audit_file={}", file.display());
    let mut all = String::new();
    for start in 1..=2 {
        let larder = Process::start(dir.path(), &[&setting], &[]);
        for _ in 0..50 {
            get(larder.url("/v2/")).await.expect(200);
        }
        larder.terminate();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), start * 50, "it is appended to");
        assert!(text.starts_with(&all));
        all.clear();
        write!(all, "{text}").unwrap();
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_said_before_anything_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let ended = Process::fail(dir.path(), &["log.audit_file=/nowhere/audit.log"], &[]);
    assert!(!ended.status.success());
    assert!(ended.log.contains("log.audit_file /nowhere/audit.log cannot be written: "), "{}", ended.log);
    let checked =
        Process::plain(dir.path(), &["check", "--set", "log.audit_file=/nowhere/audit.log", "--set", "mirror.offline=true"])
            .await;
    assert!(!checked.status.success() && checked.stdout.contains("/nowhere/audit.log cannot be written"), "{}", checked.stdout);
}
