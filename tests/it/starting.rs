//! The program as an operator meets it: greeting, mistakes, log, signals, sudden ends.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use std::time::{Duration, Instant};

use larder::store::faults::Fault as DiskFault;
use rustix::fs::{CWD, Mode, mkfifoat};

use crate::support::{Fault, Image, Match, PATIENCE, Process, Registry, TestMirror, get, has_secret, head, stream, until};

fn to(registry: &Registry) -> String {
    format!("upstream.\"docker.io\".url={}", registry.url())
}

#[tokio::test]
async fn it_says_where_it_listens_and_what_to_tell_docker() {
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[], &[]);
    let url = larder.url("");
    let lines: Vec<&str> = larder.greeting().lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].contains(&url) && lines[0].contains(dir.path().to_str().unwrap()), "{lines:?}");
    for name in ["docker.io", "ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "mcr.microsoft.com", "public.ecr.aws"] {
        assert!(lines[1].contains(name), "{lines:?}");
    }
    assert!(lines[2].contains("http://127.0.0.1:") && lines[2].starts_with("Metrics: "), "{lines:?}");
    assert!(lines[3].contains(&format!("{{\"registry-mirrors\": [\"{url}\"]}}")), "{lines:?}");
    get(larder.url("/v2/")).await.expect(200);
    let mode = fs::metadata(dir.path().join("cache")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "what is cached may be private");
}

/// What is for its operator has a place of its own; and there is no other, where something might be found.
#[tokio::test]
async fn it_listens_where_it_says_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[], &[]);
    let said = [larder.address(), larder.admin().parse().unwrap()];
    assert_eq!(larder.listens_at(), BTreeSet::from(said));
    assert!(said.iter().all(|address| address.ip().is_loopback()), "{said:?}");
    for path in ["/", "/metrics", "/api/now", "/api/images", "/api/upstreams", "/livez", "/readyz", "/debug/pprof/"] {
        get(larder.url(path)).await.expect(404);
    }
}

/// By both kinds of sockets that systemd may have for it.
#[tokio::test]
async fn systemd_is_told_when_it_listens_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let name = format!("larder-test-{}", std::process::id());
    for (address, named) in [
        (SocketAddr::from_pathname(&path).unwrap(), path.to_str().unwrap().to_owned()),
        (SocketAddr::from_abstract_name(&name).unwrap(), format!("@{name}")),
    ] {
        let systemd = UnixDatagram::bind_addr(&address).unwrap();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        let hears = || {
            let mut said = [0; 100];
            let length = systemd.recv(&mut said).unwrap();
            String::from_utf8(said[..length].to_vec()).unwrap()
        };
        let larder = Process::start(dir.path(), &[], &[("NOTIFY_SOCKET", &named)]);
        assert_eq!(hears(), "READY=1");
        get(larder.url("/v2/")).await.expect(200);
        assert!(larder.terminate().status.success());
        assert_eq!(hears(), "STOPPING=1");
    }
    let larder = Process::start(dir.path(), &[], &[("NOTIFY_SOCKET", "/nowhere")]);
    get(larder.url("/v2/")).await.expect(200);
    assert!(larder.terminate().log.contains("systemd could not be told READY=1"), "it serves all the same");
}

#[tokio::test]
async fn its_health_can_be_asked_for_by_the_program_itself() {
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[], &[]);
    assert_eq!(Process::health(&["--url", &larder.url("")]).status.code(), Some(0));
    let url = larder.url("");
    larder.kill();
    let ended = Process::health(&["--url", &url]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log.starts_with("larder: ") && ended.log.lines().count() == 1, "{}", ended.log);
}

/// A process that does not expect the signal is ended by it, at the first layer that is larger than a limit allows.
#[tokio::test]
async fn a_file_too_large_for_the_limits_of_its_process_does_not_end_it() {
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[], &[]);
    let id = larder.id().to_string();
    assert!(Command::new("kill").args(["-XFSZ", &id]).status().unwrap().success());
    get(larder.url("/v2/")).await.expect(200);
    assert_eq!(larder.terminate().status.code(), Some(0));
}

#[tokio::test]
async fn told_to_stop_it_does_not_wait_for_a_disk_that_hangs() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[3_000_000]).put(&upstream, "library/app", "latest");
    let grace = Duration::from_millis(500);
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).set("server.shutdown_grace = \"500ms\"").start().await;
    mirror.get(&image.manifest_path()).await.expect(200);
    upstream.on(Match::get(&image.layers[0].digest), Fault::Gate { after: 1_000_000 });
    let mut client = mirror.stream(&image.blob_path(&image.layers[0])).await;
    assert_eq!(client.take(500_000).await.len(), 500_000);

    let faults = mirror.faults().clone();
    faults.each(|_, _| true, DiskFault::Hang);
    upstream.release();
    let begun = Instant::now();
    let (_stopped, drained) = mirror.drain().await;
    let took = begun.elapsed();
    assert!(took >= grace && took < grace + Duration::from_secs(2), "{took:?} {drained:?}");
    faults.heal();
}

/// The signal was heard, and nobody listened: only `kill -9` ended it.
#[tokio::test]
async fn told_to_stop_while_the_disk_hangs_at_its_start_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    DirBuilder::new().mode(0o700).create(&cache).unwrap();
    // Who opens it to read waits until someone writes.
    mkfifoat(CWD, cache.join("layout"), Mode::RUSR | Mode::WUSR).unwrap();
    let ended = tokio::task::spawn_blocking(move || Process::stop_at_start(dir.path(), &[])).await.unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    assert!(ended.log.contains("stopped before the cache could be used"), "{}", ended.log);
}

/// Who came while the disk hung was let in and left without an answer, when other registries would have had one.
#[tokio::test]
async fn nobody_is_let_in_before_the_disk_has_answered() {
    let upstream = Registry::start().await;
    let image = Image::new(1).put(&upstream, "library/app", "latest");
    // Of this address nobody else takes a port.
    let free = || TcpListener::bind("127.0.77.1:0").unwrap().local_addr().unwrap();
    let (clients, operator) = (free(), free());
    let stopped = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set(&format!("server.listen = \"{clients}\""))
        .set(&format!("admin.listen = \"{operator}\""));
    let faults = stopped.faults().clone();
    faults.each(|_, _| true, DiskFault::Hang);
    let starting = tokio::spawn(stopped.start());
    until("the disk hangs", || faults.hanging() > 0).await;
    for address in [clients, operator] {
        let refused = TcpStream::connect(address).expect_err("it is not ready");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    faults.heal();
    let mirror = starting.await.unwrap();
    assert_eq!((mirror.address(), mirror.admin_address()), (clients, Some(operator)));
    mirror.get(&image.tag_path("latest")).await.expect(200);
}

#[tokio::test]
async fn a_mistake_is_one_line_on_stderr_and_changes_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port_in_use = format!("server.listen={}", taken.local_addr().unwrap());
    let admin_port_in_use = format!("admin.listen={}", taken.local_addr().unwrap());
    for (settings, environment, says) in [
        (&["server.lsten=x"][..], &[][..], "did you mean server.listen?"),
        (&["cache.max_size=lots"], &[], "cache.max_size"),
        (&["cache.max_size=1KiB"], &[], "at least"),
        (&["upstream.\"docker.io\".url=nonsense"], &[], "is no URL"),
        (&["upstream.\"docker.io\".url=ftp://x"], &[], "must begin with https:// or http://"),
        (&["upstream.\"docker.io\".username=bob"], &[], "password_file or password_env is missing"),
        (&["upstream.\"docker.io\".ca_file=/nowhere.pem"], &[], "/nowhere.pem"),
        (&["upstream.\"docker.io\".allow=library/*,a b"], &[], "allow[1]: \"a b\" is no pattern; write one such as library/*"),
        (
            &["upstream.\"quay.io\".aliases=Index.Docker.IO"],
            &[],
            "upstream.\"docker.io\" and upstream.\"quay.io\" both claim the name Index.Docker.IO; take it from one of them",
        ),
        (&["upstream.\"registry-1.docker.io\".url=http://localhost:1"], &[], "both claim the name registry-1.docker.io"),
        (&["upstream.\"quay.io\".hosts=a:1,b", "upstream.\"ghcr.io\".hosts=B"], &[], "both claim the name b"),
        (&["mirror.default_upstream=nowhere"], &[], "nowhere"),
        (&["mirror.keep=nginx,ghrc.io/org/app"], &[], "mirror.keep: ghrc.io/org/app:latest: ghrc.io is not among the upstreams"),
        (&["mirror.keep=Nginx"], &[], "\"Nginx\" is no image such as nginx:1.27"),
        (&["cache.dir=/proc/nowhere"], &[], "give another one as cache.dir"),
        (&[port_in_use.as_str()], &[], "give another address as server.listen"),
        (&[admin_port_in_use.as_str()], &[], "give another address as admin.listen"),
        (&["admin.listen=here"], &[], "admin.listen: \"here\" is no address"),
        (&[], &[("LARDER_CACHE_MAX_SIZ", "1GiB")], "did you mean cache.max_size?"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let ended = Process::fail(dir.path(), settings, environment);
        assert_eq!(ended.status.code(), Some(1), "{settings:?}");
        assert_eq!(ended.log.lines().count(), 1, "{settings:?}: {}", ended.log);
        assert!(ended.log.starts_with("larder: ") && ended.log.contains(says), "{settings:?}: {}", ended.log);
        assert!(!dir.path().join("cache").exists(), "{settings:?} has made a cache");
        assert_eq!(ended.stdout, "");
    }
}

/// Every user of the machine can read the command line of every process.
#[tokio::test]
async fn no_password_is_taken_from_the_command_line() {
    for setting in ["proxy=http://bob:canary-of-proxy@127.0.0.1:1", "url=https://canary-of-token:@127.0.0.1:1/x"] {
        let dir = tempfile::tempdir().unwrap();
        let ended = Process::fail(dir.path(), &[&format!("upstream.\"docker.io\".{setting}")], &[]);
        let key = setting.split('=').next().unwrap();
        let says = format!("larder: --set upstream.\"docker.io\".{key}: every user of this machine can see a password");
        assert!(ended.log.starts_with(&says) && ended.log.lines().count() == 1, "{}", ended.log);
        assert!(!ended.log.contains("canary"), "{}", ended.log);
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = ["upstream.\"docker.io\".username=bob", "upstream.\"docker.io\".password_env=BOBS"];
    let proxy = "http://bob:canary-of-proxy@127.0.0.1:1";
    let larder = Process::start(dir.path(), &settings, &[("BOBS", "canary-of-bob"), ("HTTPS_PROXY", proxy)]);
    let command_line = fs::read(format!("/proc/{}/cmdline", larder.id())).unwrap();
    assert!(!has_secret(&command_line), "{}", String::from_utf8_lossy(&command_line));
}

#[tokio::test]
async fn each_request_is_one_line_in_the_log_without_any_secret() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[70_000]).put(&upstream, "library/alpine", "latest");
    for format in ["text", "json"] {
        let dir = tempfile::tempdir().unwrap();
        let setting = format!("log.format={format}");
        let larder = Process::start(dir.path(), &[&to(&upstream), &setting], &[("SECRET", "canary-secret")]);
        let client = crate::support::Client::h1();
        let secret = [("authorization", "Basic canary-secret"), ("user-agent", "canary-secret")];
        let layer = &image.layers[0];
        for path in [image.tag_path("latest"), image.blob_path(layer), image.blob_path(layer) + "?ns=docker.io&x=canary-secret"] {
            client.get_with(larder.url(&path), &secret).await.expect(200);
        }
        client.get_with(larder.url("/v2/canary-secret%0Aforged/manifests/latest"), &secret).await;
        let log = larder.terminate().log;
        assert!(!log.contains("canary-secret"), "{log}");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("access")).collect();
        assert_eq!(lines.len(), 4, "{log}");
        let has = |line: &str, key: &str, value: &str| {
            if format == "text" {
                return line.contains(&format!("{key}=\"{value}\"")) || line.contains(&format!("{key}={value}"));
            }
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line[key].as_str().map_or_else(|| line[key].to_string(), Into::into) == value
        };
        let [manifest, cold, warm, invalid] = lines[..] else { panic!("{lines:?}") };
        for (key, value) in [("upstream", "docker.io"), ("repository", "library/alpine"), ("method", "GET"), ("status", "200")] {
            assert!(has(manifest, key, value) && has(cold, key, value) && has(warm, key, value), "{key}: {lines:#?}");
        }
        assert!(has(manifest, "reference", "latest") && has(manifest, "served", "miss"), "{manifest}");
        assert!(has(cold, "reference", &layer.digest) && has(cold, "served", "miss") && has(cold, "bytes", "70000"), "{cold}");
        assert!(has(warm, "served", "hit") || has(warm, "served", "joined"), "{warm}");
        assert!(has(invalid, "status", "400"), "{invalid}");
        for key in ["client", "first_ms", "total_ms"] {
            assert!(lines.iter().all(|line| line.contains(key)), "{key}: {lines:#?}");
        }
    }
}

#[tokio::test]
async fn told_to_stop_it_lets_answers_end_and_exits_cleanly() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[3 << 20]).put(&upstream, "library/alpine", "latest");
    let layer = &image.layers[0];
    upstream.on(Match::get(&layer.digest), Fault::Gate { after: 1 << 20 });
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&to(&upstream)], &[]);
    let reading = stream(larder.url(&image.blob_path(layer))).await;
    upstream.held(1).await;
    let stopping = tokio::task::spawn_blocking(move || larder.terminate());
    upstream.release();
    let answer = reading.rest().await;
    assert!(answer.complete);
    assert_eq!(answer.body, layer.bytes);
    let ended = stopping.await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    assert!(dir.path().join("cache/clean").exists());
}

#[tokio::test]
async fn killed_in_mid_fill_it_serves_right_bytes_after_the_next_start() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[4 << 20]).put(&upstream, "library/alpine", "latest");
    let layer = &image.layers[0];
    for after in [0, 1, 100_000, 2 << 20, (4 << 20) - 1] {
        upstream.heal();
        upstream.on(Match::get(&layer.digest).times(1), Fault::Gate { after });
        let dir = tempfile::tempdir().unwrap();
        let larder = Process::start(dir.path(), &[&to(&upstream)], &[]);
        let url = larder.url(&image.blob_path(layer));
        let asking = tokio::spawn(async move { stream(url).await.rest().await });
        upstream.held(1).await;
        larder.kill();
        assert!(!asking.await.is_ok_and(|answer| answer.complete), "killed at {after}");
        upstream.release();
        let larder = Process::start(dir.path(), &[&to(&upstream)], &[]);
        let answer = get(larder.url(&image.blob_path(layer))).await.expect(200);
        assert_eq!(answer.body, layer.bytes, "killed at {after}");
        head(larder.url(&image.blob_path(layer))).await.expect(200);
    }
}
