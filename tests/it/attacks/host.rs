//! What others on the machine may find or leave: the cache directory, files with secrets, the log, core files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{
    Auth, Blobs, CANARY, Client, Fault, Image, Match, Process, PutImage, Registry, Setup, StoppedMirror, TestMirror,
    TokenService, get, noise, partial_file,
};

const SECRET: &[u8] = b"the secret of another file";

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn layer_file(image: &PutImage) -> String {
    let hex = image.layers[0].digest.strip_prefix("sha256:").unwrap();
    format!("blobs/sha256/{}/{hex}", &hex[..2])
}

/// All below `dir`, itself too.
fn walk(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    found.push(dir.to_owned());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() { walk(&path, found) } else { found.push(path) }
    }
}

/// Why it does not start.
async fn refused(mut stopped: StoppedMirror) -> (String, StoppedMirror) {
    loop {
        match stopped.try_start().await {
            Ok(_) => panic!("it starts"),
            // A process that another test starts shares the lock until it is another program.
            Err((error, same)) if error.contains("another larder") => stopped = same,
            Err(refused) => return refused,
        }
    }
}

// === the cache directory ===

#[tokio::test]
async fn what_larder_writes_its_owner_alone_can_read() {
    let registry = Registry::start().await;
    let image = Image::new(1).layers(&[50_000, 3 << 20]).put(&registry, "library/app", "latest");
    registry.on(Match::get(&image.layers[1].digest), Fault::Stall { after: 1 << 20 });
    let mirror = TestMirror::builder().upstream("docker.io", &registry).set("mirror.orphan_fills = 0").start().await;
    mirror.get(&image.tag_path("latest")).await.expect(200);
    mirror.get(&image.blob_path(&image.layers[0])).await.expect(200);
    mirror.kept(&image.layers[0].digest).await;
    let mut broken = mirror.stream(&image.blob_path(&image.layers[1])).await;
    broken.take(100_000).await;
    let cache = mirror.cache_dir();
    let check = |when: &str| {
        let mut found = Vec::new();
        walk(&cache, &mut found);
        assert!(found.len() > 10, "{found:?}");
        for path in found {
            let expected = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode(&path), expected, "{when}: {}", path.display());
        }
    };
    check("while it runs");
    drop(broken);
    registry.release();
    let _stopped = mirror.stop().await;
    check("after its end");
}

#[tokio::test]
async fn a_cache_that_others_can_change_is_refused_in_one_line() {
    let registry = Registry::start().await;
    let start = async || TestMirror::of(&registry).await.stop().await;
    for inner in ["", "blobs", "partial"] {
        let stopped = start().await;
        let dir = stopped.cache_dir().join(inner);
        fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
        let (error, stopped) = refused(stopped).await;
        assert!(error.contains("is writable by everyone; give another one as cache.dir") && !error.contains('\n'), "{error}");
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        stopped.start().await;

        // Nobody but root can give a directory away.
        let stopped = start().await;
        let dir = stopped.cache_dir().join(inner);
        if chown(&dir, Some(12_345), None).is_ok() {
            let (error, _) = refused(stopped).await;
            assert!(error.contains("belongs to user 12345, and larder runs as user ") && !error.contains('\n'), "{error}");
        }
    }
}

#[tokio::test]
async fn no_symbolic_link_in_the_cache_is_followed() {
    let registry = Registry::start().await;
    let image = Image::new(2).layers(&[SECRET.len()]).put(&registry, "library/app", "latest");
    let (layer, path) = (&image.layers[0], image.blob_path(&image.layers[0]));
    let file = layer_file(&image);
    for indexed in [true, false] {
        let mirror = TestMirror::of(&registry).await;
        mirror.get(&path).await.expect(200);
        mirror.kept(&layer.digest).await;
        let mut stopped = mirror.stop().await;
        if !indexed {
            fs::remove_file(stopped.cache_dir().join("index")).unwrap();
            stopped = stopped.into_killed();
        }
        // What it leads to is of the same size.
        let (outside, link) = (stopped.dir().join("outside"), stopped.cache_dir().join(&file));
        fs::remove_file(&link).unwrap();
        fs::write(&outside, SECRET).unwrap();
        symlink(&outside, &link).unwrap();
        let mirror = stopped.start().await;
        for _ in 0..3 {
            assert_eq!(mirror.get(&path).await.expect(200).body, layer.bytes, "indexed: {indexed}");
        }
        let _stopped = mirror.stop().await;
        assert_eq!(fs::read(&outside).unwrap(), SECRET, "what it leads to is as it was");
    }
    let shard = Path::new(&file).parent().unwrap().to_str().unwrap().to_owned();
    for dir in ["blobs", "partial", "blobs/sha256", &shard] {
        let mirror = TestMirror::of(&registry).await;
        mirror.get(&path).await.expect(200);
        mirror.kept(&layer.digest).await;
        let stopped = mirror.stop().await;
        let (outside, link) = (stopped.dir().join("outside"), stopped.cache_dir().join(dir));
        fs::rename(&link, &outside).unwrap();
        symlink(&outside, &link).unwrap();
        let (error, _) = refused(stopped).await;
        assert!(error.contains("is a symbolic link, and larder follows none there") && !error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn nothing_is_written_to_what_a_symbolic_link_leads_to() {
    let registry = Registry::start().await;
    let image = Image::new(3).layers(&[300_000]).put(&registry, "library/app", "latest");
    let partial = partial_file(Path::new(""), &image.layers[0].digest);
    let partial = partial.to_str().unwrap();
    for link in [partial, "records.new", "index.new", "records", "index", "probe", "layout.new", "clean", "lock"] {
        let stopped = TestMirror::of(&registry).await.stop().await;
        let (outside, link) = (stopped.dir().join("outside"), stopped.cache_dir().join(link));
        fs::write(&outside, SECRET).unwrap();
        let _ = fs::remove_file(&link);
        symlink(&outside, &link).unwrap();
        let started = stopped.try_start().await;
        let _stopped = match started {
            Ok(mirror) => {
                mirror.get(&image.tag_path("latest")).await.expect(200);
                let layer = &image.layers[0];
                assert_eq!(mirror.get(&image.blob_path(layer)).await.expect(200).body, layer.bytes, "{}", link.display());
                mirror.probe().await;
                mirror.upkeep().await;
                mirror.stop().await
            }
            Err((error, stopped)) => {
                assert!(!error.contains('\n'), "{error}");
                stopped
            }
        };
        assert_eq!(fs::read(&outside).unwrap(), SECRET, "{}", link.display());
    }
}

/// As `nothing_is_written_to_what_a_symbolic_link_leads_to`, with directories and under a larder that runs.
#[tokio::test]
async fn nothing_is_written_where_a_directory_has_become_a_symbolic_link() {
    let registry = Registry::start().await;
    let before = Image::new(3).layers(&[300_000]).put(&registry, "library/app", "before");
    for (n, dir) in ["partial", "blobs", "blobs/sha256", "the shard", "quarantine"].into_iter().enumerate() {
        let after = Image::new(10 + n as u64).layers(&[300_000]).put(&registry, "library/app", &format!("after-{n}"));
        let mirror = TestMirror::of(&registry).await;
        mirror.pull(&before, "before").await;
        let (file, layer) = (layer_file(&after), &after.layers[0]);
        let dir = if dir == "the shard" { Path::new(&file).parent().unwrap() } else { Path::new(dir) };
        let (link, outside) = (mirror.cache_dir().join(dir), mirror.dir().join("outside"));
        fs::create_dir_all(&link).unwrap();
        fs::rename(&link, &outside).unwrap();
        symlink(&outside, &link).unwrap();
        let there = || {
            let mut found = Vec::new();
            walk(&outside, &mut found);
            found
        };
        let was_there = there();
        for _ in 0..2 {
            let answer = mirror.get(&after.blob_path(layer)).await.expect(200);
            assert_eq!(answer.body, layer.bytes, "{}", dir.display());
        }
        mirror.get(&after.tag_path(&format!("after-{n}"))).await.expect(200);
        mirror.get(&before.blob_path(&before.layers[0])).await.expect(200);
        mirror.upkeep().await;
        // What is damaged is moved away or removed, but not from there.
        fs::write(mirror.cache_dir().join(layer_file(&before)), noise(99, 300_000)).unwrap();
        mirror.clock().advance(Duration::from_hours(15 * 24));
        assert_eq!(mirror.scrub().await.damaged, 1, "{}", dir.display());
        let _stopped = mirror.stop().await;
        assert_eq!(there(), was_there, "{}", dir.display());
    }
}

// === secrets ===

#[tokio::test]
async fn a_password_that_every_user_can_read_is_told_of_and_used() {
    let auth = Auth::Basic { user: "bob", password: "canary-of-bob" };
    let registry = Registry::with(Setup { auth, ..Setup::default() }).await;
    let image = Image::new(4).put(&registry, "library/app", "latest");
    for (mode, told) in [(0o600, 0), (0o640, 0), (0o644, 1), (0o444, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        fs::write(&file, "canary-of-bob\n").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let url = format!("upstream.\"docker.io\".url={}", registry.url());
        let password = format!("upstream.\"docker.io\".password_file={}", file.display());
        let larder = Process::start(dir.path(), &[&url, "upstream.\"docker.io\".username=bob", &password], &[]);
        get(larder.url(&image.tag_path("latest"))).await.expect(200);
        let log = larder.terminate().log;
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("can be read by every user of this machine")).collect();
        assert_eq!(lines.len(), told, "{mode:o}: {log}");
        assert!(lines.iter().all(|line| line.contains("password_file") && line.contains("chmod 600")), "{lines:?}");
    }
}

/// Libraries tell of URLs and headers at these levels. What they hold here are a password, tokens and signatures.
#[tokio::test]
async fn at_no_level_a_secret_is_in_the_log() {
    let service = TokenService { logins: vec![("bob", "canary-of-bob")], anonymous: false, ..TokenService::default() };
    let setup = Setup { auth: Auth::Tokens(service), blobs: Blobs::REDIRECTED, ..Setup::default() };
    for (format, level) in [("text", "trace"), ("json", "trace"), ("text", "trace,hyper=trace,h2=trace,reqwest=trace")] {
        let registry = Registry::with(setup.clone()).await;
        let image = Image::new(5).layers(&[70_000]).put(&registry, "library/app", "latest");
        let dir = tempfile::tempdir().unwrap();
        let settings = [
            format!("upstream.\"docker.io\".url={}", registry.url()),
            "upstream.\"docker.io\".username=bob".into(),
            "upstream.\"docker.io\".password_env=BOBS".into(),
            format!("upstream.\"docker.io\".token_hosts={}", registry.token_url().replace("http://", "")),
            format!("log.format={format}"),
            "log.level=trace".into(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let larder = Process::start(dir.path(), &settings, &[("BOBS", "canary-of-bob"), ("RUST_LOG", level)]);
        let shown =
            [("authorization", "Bearer canary-of-a-client"), ("cookie", "canary-of-a-client"), ("x-y", "canary-of-a-client")];
        for client in [Client::h1(), Client::h2()] {
            client.get_with(larder.url(&image.tag_path("latest")), &shown).await.expect(200);
            client.get_with(larder.url(&image.blob_path(&image.layers[0])), &shown).await.expect(200);
            client.get_with(larder.url("/v2/library/absent/manifests/latest?x=canary-of-a-client"), &shown).await;
        }
        registry.expire_tokens();
        registry.expire_signatures();
        get(larder.url(&image.blob_path(&image.config))).await.expect(200);
        assert!(registry.requests().iter().any(|request| request.query.contains(CANARY)), "a signature was used");
        let log = larder.terminate().log;
        assert!(log.contains("access"), "{log}");
        assert!(!crate::support::has_secret(log.as_bytes()), "{log}");
    }
}

#[tokio::test]
async fn no_core_file_holds_what_larder_knows() {
    let aborted = |mut child: std::process::Child| {
        assert!(Command::new("kill").args(["-ABRT", &child.id().to_string()]).status().unwrap().success());
        child.wait().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut other = Command::new("/usr/bin/prlimit");
    other.args(["--core=unlimited", "sleep", "100"]).current_dir(dir.path()).stdout(Stdio::null());
    let other = other.spawn().unwrap();
    // Until it is no longer prlimit that runs, its limit is perhaps not yet there.
    while !fs::read_to_string(format!("/proc/{}/comm", other.id())).unwrap().starts_with("sleep") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if !aborted(other).core_dumped() {
        eprintln!("not shown: no program leaves a core file here; see /proc/sys/kernel/core_pattern");
        return;
    }
    let registry = Registry::start().await;
    let url = format!("upstream.\"docker.io\".url={}", registry.url());
    let larder = Process::start_within(&["--core=unlimited"], dir.path(), &[&url]);
    assert!(Command::new("kill").args(["-ABRT", &larder.id().to_string()]).status().unwrap().success());
    let status = larder.wait().status;
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}

// === the log ===

#[tokio::test]
async fn nobody_writes_lines_of_the_log_but_larder() {
    const FORGED: &str = "\r\n2026-01-01T00:00:00Z ERROR larder: forged \u{1b}[31mred\u{7}\u{9b}31m\u{202e}";
    let registry = Registry::start().await;
    let image = |body: String| registry.put_manifest("library/app", None, "application/vnd.oci.image.manifest.v1+json", body);
    let escaped = serde_json::to_string(FORGED).unwrap();
    let manifests = [
        image(format!(r#"{{"mediaType":{escaped},"layers":[]}}"#)),
        image(format!(r#"{{"layers":{escaped}}}"#)),
        image(format!(r#"{{"layers":[{{"digest":{escaped}}}],{escaped}:1,"config":7}}"#)),
        image(format!("{{{FORGED}}}")),
    ];
    registry.on(
        Match::get("/v2/library/realm/"),
        Fault::answer(401, &[("www-authenticate", "Bearer realm=\"http://x%1b%0d%0aforged/\",service=\"x\"")], ""),
    );
    registry.on(Match::get("/v2/library/location/"), Fault::answer(307, &[("location", "http://x%0d%0aforged\\/")], ""));
    let digest = registry.put_blob("library/app", noise(6, 1000));
    for format in ["text", "json"] {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            [format!("upstream.\"docker.io\".url={}", registry.url()), format!("log.format={format}"), "log.level=trace".into()];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let larder = Process::start(dir.path(), &settings, &[]);
        let forged = percent_encoding::percent_encode(FORGED.as_bytes(), percent_encoding::NON_ALPHANUMERIC).to_string();
        let mut paths: Vec<String> = manifests.iter().map(|digest| format!("/v2/library/app/manifests/{digest}")).collect();
        paths.extend([
            format!("/v2/library/{forged}/manifests/latest"),
            format!("/v2/library/app/manifests/{forged}"),
            format!("/v2/library/app/blobs/sha256:{forged}"),
            format!("/v2/library/app/blobs/{digest}?ns={forged}"),
            format!("/{forged}/v2/library/app/blobs/{digest}"),
            format!("/v2/{forged}.example/library/app/blobs/{digest}"),
            format!("/v2/library/app/tags/list?last={forged}&n=1"),
            "/v2/library/realm/manifests/latest".into(),
            "/v2/library/location/manifests/latest".into(),
        ]);
        for path in &paths {
            let headers = [("user-agent", "forged\u{9}"), ("via", "1.1 forged (forged)"), ("accept", "forged")];
            let answer = crate::support::get_with(larder.url(path), &headers).await;
            assert!(answer.body.iter().all(|byte| !byte.is_ascii_control()), "{path}: {}", answer.text());
        }
        let log = larder.terminate().log;
        let control = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
        for line in log.lines() {
            assert!(!line.contains(control), "{line:?}");
            assert!(!line.starts_with("2026-01-01"), "{line}");
            let begins = if format == "json" { line.starts_with("{\"timestamp\":") } else { line.starts_with("20") };
            assert!(begins, "{line}");
        }
        assert_eq!(log.lines().filter(|line| line.contains("access")).count(), paths.len(), "{log}");
    }
}
