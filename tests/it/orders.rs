//! What the operator tells a cache to do by larder's commands, beside a running larder and without one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use crate::support::{
    Answer, Client, Image, MultiArch, Process, PutImage, Registry, Setup, TestMirror, assert_booked, get, http, refused, told,
};

const TAG: &str = "/v2/library/app/manifests/latest";

/// The reports of a command, as JSON.
async fn reports(dir: &Path, arguments: &[&str]) -> Vec<Value> {
    let arguments = [arguments, &["--json"]].concat();
    told(dir, &arguments).await.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The names of the images that are here.
async fn names(dir: &Path, patterns: &[&str]) -> Vec<String> {
    let images = reports(dir, &[&["ls"], patterns].concat()).await;
    images.iter().map(|image| image["image"].as_str().unwrap().to_owned()).collect()
}

/// Waits until a larder has logged that it was told to list its images.
async fn heard(larder: &Process) {
    larder.log_when("it was told", |log| log.contains("order=\"ls\"")).await;
}

// === the way in ===

#[tokio::test]
async fn a_command_does_the_same_beside_a_running_larder_and_without_one() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[70_000]).put(&upstream, "library/app", "latest");
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&format!("upstream.\"docker.io\".url={}", upstream.url())], &[]);
    get(larder.url(TAG)).await.expect(200);
    for blob in image.blobs() {
        get(larder.url(&image.blob_path(blob))).await.expect(200);
    }
    let asked = upstream.requests().len();
    larder.until("larder_cache_blobs", |blobs| blobs == 3).await;
    let beside = reports(dir.path(), &["ls"]).await;
    heard(&larder).await;
    assert!(larder.terminate().status.success());
    let alone = reports(dir.path(), &["ls"]).await;
    assert_eq!(beside, alone);
    assert_eq!((alone.len(), &alone[0]["image"]), (1, &"docker.io/library/app:latest".into()));
    assert_eq!(upstream.requests().len(), asked, "to look costs nothing");
    // The index of a stop is as good after a command.
    assert!(dir.path().join("cache/clean").exists());
}

#[tokio::test]
async fn the_socket_is_its_owners_and_no_listener_leads_to_it() {
    let mirror = TestMirror::builder().start().await;
    let socket = mirror.cache_dir().join("socket");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let order = async |url: String| Client::h1().request(Method::POST, url, &[("x-larder", "1")]).await;
    let answers: [Answer; 3] = [
        order(mirror.url("/orders")).await.expect(405),
        order(mirror.url("/v2/orders")).await.expect(405),
        order(mirror.admin_url("/orders")).await.expect(404),
    ];
    assert!(answers.iter().all(|answer| !answer.text().contains("report")));
}

#[tokio::test]
async fn what_is_no_order_is_refused_and_changes_nothing() {
    let mirror = TestMirror::builder().start().await;
    let client = http(|builder| builder.unix_socket(mirror.cache_dir().join("socket")));
    let send = async |path: &str, body: Vec<u8>| {
        let answer = client.post(format!("http://larder{path}")).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    for (path, body, status, says) in [
        ("/", "{}", 404, "takes orders"),
        ("/orders", "", 400, "EOF"),
        ("/orders", "{\"order\":\"drop\"}", 400, "unknown variant `drop`"),
        ("/orders", "{\"order\":\"list\",\"patterns\":[\"\"]}", 400, "is no pattern"),
        ("/orders", "{\"order\":\"pin\",\"images\":[],\"force\":true}", 400, "unknown field `force`"),
    ] {
        let answer = send(path, body.into()).await;
        assert!(answer.0 == status && answer.1.contains(says), "{body}: {answer:?}");
    }
    // It need not be read to its end.
    let large = client.post("http://larder/orders").body(vec![b' '; 17 << 20]).send().await;
    assert!(large.is_err() || large.is_ok_and(|answer| answer.status() == 413));
}

#[tokio::test]
async fn a_socket_that_a_killed_larder_has_left_leads_nobody_astray() {
    let upstream = Registry::start().await;
    Image::new(2).put(&upstream, "library/app", "latest");
    let url = format!("upstream.\"docker.io\".url={}", upstream.url());
    let dir = tempfile::tempdir().unwrap();
    let larder = Process::start(dir.path(), &[&url], &[]);
    get(larder.url(TAG)).await.expect(200);
    larder.until("larder_cache_blobs", |blobs| blobs == 1).await;
    larder.kill();
    assert!(dir.path().join("cache/socket").exists());
    assert_eq!(names(dir.path(), &[]).await.len(), 1);
    let larder = Process::start(dir.path(), &[&url], &[]);
    assert_eq!(names(dir.path(), &[]).await.len(), 1);
    heard(&larder).await;
}

/// A service that did not start because someone had looked at its cache would be one more thing to explain.
#[tokio::test]
async fn commands_and_a_larder_that_starts_do_not_get_in_each_others_way() {
    let dir = tempfile::tempdir().unwrap();
    drop(Process::start(dir.path(), &[], &[]));
    for _ in 0..5 {
        let looking = [(); 4].map(|()| {
            let dir = dir.path().to_owned();
            tokio::spawn(async move { told(&dir, &["ls"]).await })
        });
        let at = dir.path().to_owned();
        let larder = tokio::task::spawn_blocking(move || Process::start(&at, &[], &[])).await.unwrap();
        for looked in looking {
            looked.await.unwrap();
        }
        told(dir.path(), &["ls"]).await;
        let stopping = tokio::task::spawn_blocking(move || larder.terminate());
        told(dir.path(), &["ls"]).await;
        assert!(stopping.await.unwrap().status.success());
    }
}

/// It stops in that moment, or has just begun to answer.
#[tokio::test]
async fn what_a_larder_hangs_up_on_without_a_word_a_command_does_itself() {
    for said in ["", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"] {
        let dir = tempfile::tempdir().unwrap();
        drop(Process::start(dir.path(), &[], &[]));
        let socket = dir.path().join("cache/socket");
        let _ = fs::remove_file(&socket);
        let larder = UnixListener::bind(&socket).unwrap();
        let stops = async {
            // To see whether there is one, and to give it the order.
            drop(larder.accept().await.unwrap());
            let (mut heard, _) = larder.accept().await.unwrap();
            heard.readable().await.unwrap();
            drop(larder);
            assert!(heard.read(&mut [0; 1]).await.unwrap() > 0);
            heard.write_all(said.as_bytes()).await.unwrap();
        };
        tokio::join!(told(dir.path(), &["ls"]), stops);
    }
}

#[tokio::test]
async fn where_there_is_no_cache_a_command_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    for command in [&["ls"][..], &["du"], &["rm", "app"], &["pin", "app"], &["unpin", "app"], &["refresh", "app"]] {
        let why = refused(dir.path(), command).await;
        assert!(why.starts_with("there is no cache in ") && why.contains("--set cache.dir=DIR"), "{why}");
    }
    fs::create_dir(dir.path().join("cache")).unwrap();
    refused(dir.path(), &["ls"]).await;
    assert_eq!(fs::read_dir(dir.path().join("cache")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_directory_with_a_long_name_has_a_socket_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(200));
    fs::create_dir(&deep).unwrap();
    let larder = Process::start(&deep, &[], &[]);
    told(&deep, &["ls"]).await;
    heard(&larder).await;
}

// === refresh ===

#[tokio::test]
async fn larder_refresh_says_of_each_image_whether_it_has_moved() {
    let upstream = Registry::start().await;
    Image::new(6).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(TAG).await.expect(200);
    assert_eq!(told(mirror.dir(), &["refresh", "app"]).await, "docker.io/library/app:latest has not moved\n");
    let moved = Image::new(7).put(&upstream, "library/app", "latest");
    let ended = Process::order(mirror.dir(), &["refresh", "missing", "app:latest"], &[]).await;
    assert_eq!(ended.stdout, format!("docker.io/library/app:latest moved to {}\n", moved.digest));
    assert_eq!((ended.log.as_str(), ended.status.code()), ("larder: missing: not found upstream\n", Some(1)));
    assert_eq!(mirror.get(TAG).await.expect(200).body, moved.manifest);
    let app = format!("app@{}", moved.digest);
    assert_eq!(refused(mirror.dir(), &["refresh", &app]).await, format!("{app}: a digest never moves; name a tag"));
}

// === ls ===

#[tokio::test]
async fn larder_ls_tells_what_is_here_of_each_image() {
    let upstream = Registry::start().await;
    let mirror = TestMirror::builder().upstream("docker.io", &upstream).upstream("quay.io", &upstream).start().await;
    let dir = mirror.dir();
    let empty = Process::order(dir, &["ls"], &[]).await;
    assert_eq!((empty.stdout.as_str(), empty.log.lines().count()), ("", 1));
    assert!(empty.log.starts_with("No image is in the cache yet."), "{}", empty.log);

    let base = vec![7; 50_000];
    let one = Image::new(1).layer(base.clone()).layers(&[10_000]).put(&upstream, "library/one", "v1");
    let two = Image::new(2).layer(base.clone()).put(&upstream, "org/two", "v1");
    upstream.tag("library/one", "latest", &one.digest);
    mirror.pull(&one, "v1").await;
    mirror.get(&one.tag_path("latest")).await.expect(200);
    mirror.pull(&two, "v1").await;
    let index = MultiArch::new(3).put(&upstream, "library/multi", "v1");
    mirror.get(&index.tag_path("v1")).await.expect(200);
    mirror.kept(&index.digest).await;
    mirror.get(&index.images[0].manifest_path()).await.expect(200);
    mirror.kept(&index.images[0].digest).await;
    let untagged = Image::new(4).put_untagged(&upstream, "org/three");
    mirror.get(&format!("/v2/quay.io/org/three/manifests/{}", untagged.digest)).await.expect(200);
    mirror.kept(&untagged.digest).await;

    let images = reports(dir, &["ls"]).await;
    let shown: Vec<_> = images
        .iter()
        .map(|image| {
            let number = |key: &str| image[key].as_u64().unwrap();
            (image["image"].as_str().unwrap(), image["platforms"].to_string(), number("own"), number("shared"), number("missing"))
        })
        .collect();
    let small = |image: &PutImage| (image.manifest.len() + image.config.bytes.len()) as u64;
    let of_index = (index.manifest.len() + index.images[0].manifest.len()) as u64;
    let three = format!("quay.io/org/three@{}", untagged.digest);
    assert_eq!(
        shown,
        [
            ("docker.io/library/multi:v1", "[\"linux/amd64\"]".into(), of_index, 0, 2),
            ("docker.io/library/one:latest", "[\"linux/amd64\"]".into(), small(&one) + 10_000, 50_000, 0),
            ("docker.io/library/one:v1", "[\"linux/amd64\"]".into(), small(&one) + 10_000, 50_000, 0),
            ("docker.io/org/two:v1", "[\"linux/amd64\"]".into(), small(&two), 50_000, 0),
            (&three, "[]".into(), untagged.manifest.len() as u64, 0, 1),
        ]
    );
    assert!(images.iter().all(|image| image["pinned"] == false && image["used"].as_str().unwrap().starts_with("20")));

    for (patterns, found) in [
        (&["one"][..], &["docker.io/library/one:latest", "docker.io/library/one:v1"][..]),
        (&["library/one:v*"], &["docker.io/library/one:v1"]),
        (&["**:v1"], &["docker.io/library/multi:v1", "docker.io/library/one:v1", "docker.io/org/two:v1"]),
        (&["org/*"], &["docker.io/org/two:v1"]),
        (&["quay.io/**", "two"], &[&three]),
        (&["nothing"], &[]),
    ] {
        assert_eq!(names(dir, patterns).await, found, "{patterns:?}");
    }
    let table = told(dir, &["ls", "one"]).await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["IMAGE", "DIGEST", "PLATFORMS", "OWN", "SHARED", "USED", "PINNED"]
    );
    let short = &one.digest["sha256:".len()..][..12];
    assert!(lines[1].starts_with("docker.io/library/one:latest") && lines[1].contains(short), "{table}");
    assert!(lines[1].contains("linux/amd64") && lines[1].contains("48.8 KiB") && lines[1].contains("just now"), "{table}");
    let multi = told(dir, &["ls", "multi"]).await;
    assert!(multi.contains("linux/amd64, 2 missing"), "{multi}");
}

/// What is looked at would go last, if that counted as a use.
#[tokio::test]
async fn to_look_at_an_image_is_no_use_of_it() {
    let upstream = Registry::start().await;
    let image = Image::new(8).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.pull(&image, "latest").await;
    let before = reports(mirror.dir(), &["ls"]).await;
    mirror.clock().advance(Duration::from_hours(1));
    assert_eq!(reports(mirror.dir(), &["ls"]).await, before);
}

// === rm ===

#[tokio::test]
async fn larder_rm_removes_an_image_and_what_no_other_needs() {
    let upstream = Registry::start().await;
    let base = vec![9; 50_000];
    let one = Image::new(1).layer(base.clone()).layers(&[10_000]).put(&upstream, "library/one", "v1");
    let two = Image::new(2).layer(base.clone()).put(&upstream, "library/two", "v1");
    upstream.tag("library/one", "latest", &one.digest);
    let mirror = TestMirror::of(&upstream).await;
    let dir = mirror.dir();
    mirror.pull(&one, "v1").await;
    mirror.pull(&two, "v1").await;
    mirror.get(&one.tag_path("latest")).await.expect(200);

    let said = told(dir, &["rm", "one:v1"]).await;
    assert!(said.starts_with("docker.io/library/one:v1 is removed (") && said.ends_with("that frees 0 B\n"), "{said}");
    assert!(mirror.holds(&one.digest), "another tag leads to it");
    let said = told(dir, &["rm", "one"]).await;
    assert!(said.ends_with("that frees 20.0 KiB\n"), "{said}");
    let [shared, own] = &one.layers[..] else { unreachable!() };
    let held = [&one.digest, &one.config.digest, &own.digest, &shared.digest].map(|digest| mirror.holds(digest));
    assert_eq!(held, [false, false, false, true]);
    assert_eq!(names(dir, &[]).await, ["docker.io/library/two:v1"]);
    assert_booked(&mirror).await;
    assert!(refused(dir, &["rm", "one"]).await.contains("it is not in the cache"));

    told(dir, &["rm", &format!("two@{}", two.digest)]).await;
    assert_eq!((names(dir, &[]).await.len(), mirror.used()), (0, 0));
    upstream.forget_requests();
    mirror.pull(&one, "v1").await;
    assert_eq!(upstream.count("GET", &shared.digest), 1, "nothing is left of it");
}

#[tokio::test]
async fn an_image_of_another_repository_stays_with_all_that_it_has() {
    let upstream = Registry::start().await;
    let image = Image::new(3).layers(&[10_000]).put(&upstream, "library/app", "v1");
    Image::new(3).layers(&[10_000]).put(&upstream, "org/app", "v1");
    let index = MultiArch::new(4).put(&upstream, "library/multi", "v1");
    let mirror = TestMirror::of(&upstream).await;
    let dir = mirror.dir();
    mirror.pull(&image, "v1").await;
    mirror.get("/v2/org/app/manifests/v1").await.expect(200);
    told(dir, &["rm", "app:v1"]).await;
    assert!(mirror.holds(&image.digest) && mirror.holds(&image.layers[0].digest));
    assert_eq!(names(dir, &[]).await, ["docker.io/org/app:v1"]);

    mirror.get(&index.tag_path("v1")).await.expect(200);
    mirror.kept(&index.digest).await;
    for image in &index.images {
        mirror.get(&image.manifest_path()).await.expect(200);
        mirror.kept(&image.digest).await;
    }
    let child = format!("multi@{}", index.images[0].digest);
    assert!(refused(dir, &["rm", &child]).await.contains("a part of another image"));
    told(dir, &["rm", "multi:v1"]).await;
    assert!(!mirror.holds(&index.digest) && !mirror.holds(&index.images[1].digest));
}

/// Who was reading it reads on, and the disk has it back when he is done.
#[tokio::test]
async fn who_reads_a_layer_that_is_removed_gets_all_of_it() {
    let upstream = Registry::start().await;
    let image = Image::new(5).layers(&[8 << 20]).put(&upstream, "library/app", "latest");
    let mirror = TestMirror::of(&upstream).await;
    mirror.pull(&image, "latest").await;
    let mut reading = mirror.stream(&image.blob_path(&image.layers[0])).await;
    reading.take(1000).await;
    told(mirror.dir(), &["rm", "app"]).await;
    let answer = reading.rest().await;
    assert!(answer.complete && answer.body == image.layers[0].bytes[1000..]);
    assert_booked(&mirror).await;
    assert_eq!(mirror.used(), 0);
}

// === du ===

#[tokio::test]
async fn larder_du_tells_for_what_the_disk_is_taken_and_what_goes_first() {
    let upstream = Registry::start().await;
    let base = vec![5; 50_000];
    let one = Image::new(1).layer(base.clone()).layers(&[10_000]).put(&upstream, "library/one", "v1");
    let two = Image::new(2).layer(base).put(&upstream, "library/two", "v1");
    let mirror = TestMirror::of(&upstream).await;
    let dir = mirror.dir();
    assert!(told(dir, &["du"]).await.starts_with("On the disk 0 B of 1"));
    mirror.pull(&one, "v1").await;
    mirror.pull(&two, "v1").await;
    told(dir, &["pin", "two:v1"]).await;
    let usage = &reports(dir, &["du"]).await[0];
    let size = |image: &PutImage| (image.manifest.len() + image.blobs().map(|blob| blob.bytes.len()).sum::<usize>()) as u64;
    let repository = |image: &PutImage, name: &str| serde_json::json!({ "upstream": "docker.io", "repository": name, "images": 1, "bytes": size(image), "own": size(image) - 50_000 });
    assert_eq!(usage["repositories"], serde_json::json!([repository(&one, "library/one"), repository(&two, "library/two")]));
    assert_eq!((usage["used"].as_u64(), usage["pinned"].as_u64()), (Some(mirror.used()), Some(15 * 4096)));
    assert_eq!(usage["evictable"].as_u64(), Some(mirror.used() - 15 * 4096));
    let next: Vec<&str> = usage["next_to_leave"].as_array().unwrap().iter().filter_map(|next| next["digest"].as_str()).collect();
    assert_eq!(next, [&one.digest, &one.config.digest, &one.layers[1].digest]);
    assert_eq!(usage["next_to_leave"][0]["of"], "docker.io/library/one:v1");
    let table = told(dir, &["du"]).await;
    assert!(table.contains("docker.io  library/one") && table.contains("First to go:"), "{table}");
}

// === explain ===

#[tokio::test]
async fn larder_explain_says_what_would_be_done_and_does_not_do_it() {
    let upstream = Registry::with(Setup { budget: Some(100), ..Setup::default() }).await;
    let image = Image::new(1).layers(&[10_000]).put(&upstream, "library/app", "v1");
    let mirror = TestMirror::of(&upstream).await;
    let dir = mirror.dir().to_owned();
    let explain = async |image: &str| reports(&dir, &["explain", image]).await.remove(0);
    let of = |report: &Value| (report["from"].as_str().unwrap().to_owned(), report["here"].as_u64(), report["missing"].as_u64());
    let told = explain("app:v1").await;
    assert_eq!(of(&told), ("upstream".into(), Some(0), Some(0)));
    assert_eq!(told["cost"][0], "one GET of a manifest, which counts as a pull");
    assert_eq!(upstream.requests().len(), 0);

    mirror.get(&image.tag_path("v1")).await.expect(200);
    mirror.kept(&image.digest).await;
    let told = explain("app:v1").await;
    assert_eq!(
        (of(&told), &told["cost"]),
        (("cache".into(), Some(1), Some(2)), &serde_json::json!(["2 blobs or manifests that are not here"]))
    );
    assert_eq!(told["upstream"], serde_json::json!(["anonymous has 99 of 100 pulls in 6h left at docker.io"]));
    mirror.pull(&image, "v1").await;
    let told = explain("app:v1").await;
    assert_eq!((of(&told), &told["cost"]), (("cache".into(), Some(3), Some(0)), &serde_json::json!([])));

    mirror.clock().advance(Duration::from_mins(2));
    upstream.forget_requests();
    let told = explain("app:v1").await;
    assert_eq!(
        (of(&told).0.as_str(), &told["cost"][0]),
        ("cache once asked", &"one HEAD, which is free where pulls are counted".into())
    );
    assert!(told["why"].as_str().unwrap().contains("2m"), "{told}");
    let told = explain(&format!("org/other@{}", image.digest)).await;
    assert!(of(&told).0 == "cache once asked" && told["why"].as_str().unwrap().contains("has not said"), "{told}");
    assert_eq!(upstream.requests().len(), 0);
    mirror.get("/v2/library/none/manifests/v1").await.expect(404);
    let told = explain("none:v1").await;
    assert!(of(&told).0 == "nowhere" && told["why"].as_str().unwrap().contains("not found upstream"), "{told}");
    assert!(
        refused(&dir, &["explain", "evil.example/x"]).await.contains("it is refused: evil.example is not among the upstreams")
    );

    let mirror = mirror.stop().await.set("mirror.offline = true").start().await;
    let told = explain("app:v1").await;
    assert!(of(&told).0 == "cache" && told["why"].as_str().unwrap().contains("does not expire"), "{told}");
    let text = self::told(&dir, &["explain", "app:v2"]).await;
    assert!(
        text.starts_with("docker.io/library/app:v2\n  served    not at all: ") && text.contains("  costs     nothing\n"),
        "{text}"
    );
    drop(mirror);
}
