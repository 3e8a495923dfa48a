//! `larder export` and `larder import`: images are carried from one cache to another, whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use larder::orders::{header, padding};

use crate::support::{
    Image, MultiArch, Process, Registry, TestMirror, archive, assert_booked, assert_sound, assert_whole, blob_path, changed,
    coming, digest_of, entries, files, get, larder, noise, refused, sealed, told, until,
};

async fn pulled(dir: &Path, upstream: &Registry, arguments: &[&str]) {
    let settings = format!("upstream.\"docker.io\".url={}", upstream.url());
    let ended = Process::order(dir, &[&["pull"], arguments].concat(), &[&settings]).await;
    assert!(ended.status.success(), "{}", ended.log);
}

fn damage(cache: &Path, digest: &str) {
    let hex = &digest["sha256:".len()..];
    let file = cache.join("blobs/sha256").join(&hex[..2]).join(hex);
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
}

// === export ===

#[tokio::test]
async fn an_archive_is_a_layout_that_docker_loads_and_always_the_same() {
    let upstream = Registry::start().await;
    let image = Image::new(1).layers(&[70_000, 3_000]).put(&upstream, "library/app", "v1");
    let index = MultiArch::new(2).put(&upstream, "library/multi", "v1");
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pulled(one.path(), &upstream, &["app:v1", "multi:v1", "--platform", "linux/arm64,linux/amd64"]).await;
    for name in ["multi:v1", "app:v1"] {
        pulled(other.path(), &upstream, &[name, "--platform", "all"]).await;
    }
    let said = told(one.path(), &["export", "app:v1", "multi:v1", "-o", "a.tar"]).await;
    told(other.path(), &["export", "--all", "-o", "b.tar"]).await;
    let archive = fs::read(one.path().join("a.tar")).unwrap();
    assert!(archive == fs::read(other.path().join("b.tar")).unwrap(), "the same images give the same bytes");
    let sum = digest_of(&archive);
    assert!(said.contains(&format!("{}  a.tar  ", &sum["sha256:".len()..])), "{said}");

    let all = entries(&archive);
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..3], ["oci-layout", "index.json", "manifest.json"]);
    assert!(names[3..].is_sorted() && names.len() == 3 + 4 + 7);
    let files: BTreeMap<&str, &[u8]> = all.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    for (name, bytes) in all.iter().skip(3) {
        assert_eq!(digest_of(bytes).replace(':', "/"), name["blobs/".len()..]);
    }
    let layout: Value = serde_json::from_slice(files["index.json"]).unwrap();
    assert_eq!(layout["manifests"][1]["digest"], index.digest);
    let called = &layout["manifests"][0]["annotations"];
    assert_eq!(called["io.containerd.image.name"], "docker.io/library/app:v1");
    assert_eq!(called["org.opencontainers.image.ref.name"], "docker.io/library/app:v1");
    let loaded: Value = serde_json::from_slice(files["manifest.json"]).unwrap();
    let app = loaded.as_array().unwrap().iter().find(|image| image["RepoTags"][0] == "docker.io/library/app:v1").unwrap();
    let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    assert_eq!(app["Config"], path(&image.config.digest));
    assert_eq!(app["Layers"], serde_json::json!([path(&image.layers[0].digest), path(&image.layers[1].digest)]));
    assert_eq!(loaded.as_array().unwrap().len(), 2, "of an index that platform which Docker takes to be meant");
}

/// Docker and podman took what it signs for a layer, and containerd whatever has a name.
#[tokio::test]
async fn a_signature_is_carried_along_and_nobody_is_told_to_unpack_it() {
    let upstream = Registry::start().await;
    let image = Image::new(3).layers(&[7_000]).put(&upstream, "library/app", "v1");
    let tag = format!("sha256-{}.sig", &image.digest["sha256:".len()..]);
    let payload = br#"{"critical":{}}"#;
    let config =
        json!({ "architecture": "", "os": "", "rootfs": { "type": "layers", "diff_ids": [digest_of(payload)] } }).to_string();
    let of = |media_type: &str, bytes: &[u8]| {
        let digest = upstream.put_blob("library/app", bytes.to_vec());
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    };
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let signature = json!({ "schemaVersion": 2, "mediaType": media_type,
        "config": of("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [of("application/vnd.dev.cosign.simplesigning.v1+json", payload)] });
    let signature = signature.to_string();
    let signed = upstream.put_manifest("library/app", Some(&tag), media_type, signature.clone());
    let dir = tempfile::tempdir().unwrap();
    pulled(dir.path(), &upstream, &["app:v1", "--referrers"]).await;
    told(dir.path(), &["export", "app:v1", "-o", "bundle.tar"]).await;
    let all = entries(&fs::read(dir.path().join("bundle.tar")).unwrap());
    let [index, loaded] = [1, 2].map(|n: usize| serde_json::from_slice::<Value>(&all[n].1).unwrap());
    let described = index["manifests"].as_array().unwrap().iter().find(|described| described["digest"] == signed).unwrap();
    assert_eq!(described["annotations"], json!({ "larder.name": format!("docker.io/library/app:{tag}") }));
    assert_eq!((loaded.as_array().unwrap().len(), &loaded[0]["RepoTags"]), (1, &json!(["docker.io/library/app:v1"])));
    let inside = tempfile::tempdir().unwrap();
    told(inside.path(), &["import", dir.path().join("bundle.tar").to_str().unwrap()]).await;
    let larder = sealed(inside.path());
    assert_eq!(get(larder.url(&image.tag_path(&tag))).await.expect(200).body, signature);
}

#[tokio::test]
async fn an_index_leaves_as_it_was_also_where_a_part_of_it_is_here() {
    let upstream = Registry::start().await;
    let index = MultiArch::new(3).put(&upstream, "library/multi", "v1");
    let dir = tempfile::tempdir().unwrap();
    pulled(dir.path(), &upstream, &["multi:v1", "--platform", "linux/arm64"]).await;
    let said = told(dir.path(), &["export", "multi:v1", "-o", "bundle.tar"]).await;
    assert!(said.contains(", without linux/amd64, which is not here"), "{said}");
    let all = entries(&fs::read(dir.path().join("bundle.tar")).unwrap());
    let bytes = |digest: &str| all.iter().find(|(name, _)| name.ends_with(&digest[7..])).map(|(_, bytes)| bytes.clone());
    assert_eq!(bytes(&index.digest).unwrap(), index.manifest);
    assert_eq!([bytes(&index.images[0].digest).is_some(), bytes(&index.images[1].digest).is_some()], [false, true]);
}

#[tokio::test]
async fn it_goes_to_a_pipe_to_a_directory_and_to_several_files_all_the_same() {
    let upstream = Registry::start().await;
    let image = Image::new(4).layers(&[300_000]).put(&upstream, "library/app", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    let dir = mirror.dir().to_path_buf();
    told(&dir, &["export", "app:v1", "-o", "bundle.tar"]).await;
    let archive = fs::read(dir.join("bundle.tar")).unwrap();
    let said = told(&dir, &["export", "app:v1", "-o", "split.tar", "--split", "100KiB"]).await;
    let parts: Vec<Vec<u8>> = (0..4).filter_map(|n| fs::read(dir.join(format!("split.tar.{n:03}"))).ok()).collect();
    assert!(parts.len() == 3 + usize::from(archive.len() > 300 << 10) && parts[0].len() == 100 << 10, "{said}");
    assert!(parts.concat() == archive);
    fs::create_dir(dir.join("layout")).unwrap();
    told(&dir, &["export", "app:v1", "-o", "layout"]).await;
    for (name, bytes) in entries(&archive) {
        assert!(fs::read(dir.join("layout").join(name)).unwrap() == bytes);
    }
    let said = refused(&dir, &["export", "app:v1", "-o", "layout"]).await;
    assert_eq!(said, "layout: the directory is not empty");
    let program = env!("CARGO_BIN_EXE_larder");
    let cache = format!("cache.dir={}", dir.join("cache").display());
    let piped = tokio::process::Command::new(program).args(["export", "app:v1", "-o", "-", "--set", &cache]).output().await;
    let piped = piped.unwrap();
    assert!(piped.stdout == archive, "{}", String::from_utf8_lossy(&piped.stderr));
    assert!(mirror.holds(&image.digest));
}

#[tokio::test]
async fn what_is_damaged_or_not_here_is_told_of_and_no_file_appears() {
    let upstream = Registry::start().await;
    let image = Image::new(5).layers(&[70_000, 3_000]).put(&upstream, "library/app", "v1");
    let other = Image::new(6).layers(&[70_000]).put(&upstream, "library/other", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    mirror.get(&other.tag_path("v1")).await.expect(200);
    mirror.kept(&other.digest).await;
    let dir = mirror.dir().to_path_buf();
    damage(&mirror.cache_dir(), &image.layers[0].digest);
    let said = refused(&dir, &["export", "app:v1", "-o", "bundle.tar"]).await;
    assert!(said.starts_with(&format!("{}: it is damaged; ", image.layers[0].digest)), "{said}");
    assert!(!mirror.holds(&image.layers[0].digest), "it is set aside");
    let ended = Process::order(&dir, &["export", "none:v1", "other:v1", "-o", "bundle.tar"], &[]).await;
    for line in [
        "none:v1: it is not in the cache; ",
        "is not here; `larder pull docker.io/library/other:v1` brings it",
        "there is nothing to export",
    ] {
        assert!(ended.log.contains(line), "{line}: {}", ended.log);
    }
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("bundle")), "{left:?}");
}

// === import ===

#[tokio::test]
async fn what_was_exported_is_served_where_nobody_can_be_asked() {
    let upstream = Registry::start().await;
    let image = Image::new(10).layers(&[70_000, 3_000]).put(&upstream, "library/app", "v1");
    let index = MultiArch::new(11).put(&upstream, "library/multi", "v1");
    let hex = &image.digest["sha256:".len()..];
    let signature = Image::new(12).layers(&[700]).put(&upstream, "library/app", &format!("sha256-{hex}.sig"));
    let outside = tempfile::tempdir().unwrap();
    pulled(outside.path(), &upstream, &["app:v1", "multi:v1", "--platform", "linux/arm64,linux/amd64", "--referrers"]).await;
    told(outside.path(), &["export", "app:v1", "multi:v1", "-o", "bundle.tar"]).await;
    told(outside.path(), &["export", "app:v1", "multi:v1", "-o", "split.tar", "--split", "50KiB"]).await;
    fs::create_dir(outside.path().join("layout")).unwrap();
    told(outside.path(), &["export", "app:v1", "multi:v1", "-o", "layout"]).await;
    for from in ["bundle.tar", "split.tar", "split.tar.000", "layout"] {
        let from = outside.path().join(from);
        let inside = tempfile::tempdir().unwrap();
        let said = told(inside.path(), &["import", from.to_str().unwrap()]).await;
        assert!(said.contains("docker.io/library/app:v1  ") && said.lines().all(|line| line.ends_with(", pinned")), "{said}");
        let larder = sealed(inside.path());
        assert_eq!(get(larder.url(&image.tag_path("v1"))).await.expect(200).body, image.manifest);
        assert_eq!(get(larder.url(&index.tag_path("v1"))).await.expect(200).body, index.manifest);
        for image in index.images.iter().chain([&image, &signature]) {
            assert_whole(&larder, image).await;
        }
        assert_eq!(get(larder.url(&signature.tag_path(&format!("sha256-{hex}.sig")))).await.expect(200).body, signature.manifest);
        // Beside a running larder, and for nothing.
        let said = told(inside.path(), &["import", from.to_str().unwrap(), "--no-pin"]).await;
        assert!(said.lines().count() == 3 && said.lines().all(|line| line.ends_with("was here already")), "{said}");
        assert_sound(&inside.path().join("cache"));
    }
}

/// What an archive only names was taken as there, so that one from elsewhere gave a repository what another had brought.
#[tokio::test]
async fn an_archive_gives_a_repository_nothing_that_it_does_not_bring() {
    let upstream = Registry::start().await;
    let image = Image::new(17).layers(&[5_000]).put(&upstream, "corp/secret", "v1");
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("corp/secret:v1", &[]).await.failed, []);
    let dir = mirror.dir().to_path_buf();
    let index = json!({ "manifests": [{ "digest": image.digest, "mediaType": image.media_type }] }).to_string();
    let [manifest, config, layer] =
        [&image.digest, &image.config.digest, &image.layers[0].digest].map(|digest| blob_path(digest));
    let rest = [("index.json", index.as_bytes()), (&manifest, &image.manifest), (&config, &image.config.bytes)];
    fs::write(dir.join("rest.tar"), archive(&rest)).unwrap();
    fs::write(dir.join("whole.tar"), archive(&[&rest[..], &[(&layer, &image.layers[0].bytes)]].concat())).unwrap();
    let of_others = format!("/v2/pub/x/blobs/{}", image.layers[0].digest);

    let said = refused(&dir, &["import", "rest.tar", "--as", "pub/x:v1"]).await;
    let why = format!("{} is not in the archive, and not here for docker.io/pub/x", image.layers[0].digest);
    assert!(said.ends_with(&why), "{said}");
    mirror.get(&of_others).await.expect(404);
    // Its own need not be brought again.
    told(&dir, &["import", "rest.tar", "--as", "corp/secret:v2"]).await;
    mirror.get("/v2/corp/secret/manifests/v2").await.expect(200);
    told(&dir, &["import", "whole.tar", "--as", "pub/x:v1"]).await;
    assert_eq!(mirror.get(&of_others).await.expect(200).body, image.layers[0].bytes);
    assert_booked(&mirror).await;
}

/// What refers to another's image was read from the list that was here, where the archive did no more than name that.
#[tokio::test]
async fn an_archive_tells_a_repository_nothing_of_a_list_that_it_does_not_bring() {
    const LIST: &str = "application/vnd.oci.image.index.v1+json";
    let upstream = Registry::start().await;
    let tag = format!("sha256-{}", "ab".repeat(32));
    let signature = Image::new(18).put(&upstream, "library/app", "v1");
    let list_of = |digest: &str| {
        let manifests = json!([{ "mediaType": signature.media_type, "digest": digest, "size": 1 }]);
        json!({ "schemaVersion": 2, "mediaType": LIST, "manifests": manifests }).to_string()
    };
    let of_secret = digest_of(b"who signs what");
    let (own, secret) = (list_of(&signature.digest), list_of(&of_secret));
    upstream.put_manifest("corp/secret", Some(&tag), LIST, secret.clone());
    let mirror = TestMirror::of(&upstream).await;
    mirror.get(&format!("/v2/corp/secret/manifests/{tag}")).await.expect(200);
    let dir = mirror.dir().to_path_buf();
    let named = |list: &str| {
        let name = json!({ "io.containerd.image.name": format!("pub/x:{tag}") });
        json!({ "manifests": [{ "digest": digest_of(list.as_bytes()), "mediaType": LIST, "annotations": name }] }).to_string()
    };
    let path_of = |list: &str| blob_path(&digest_of(list.as_bytes()));
    let of_signature = signature.blobs().map(|blob| (blob_path(&blob.digest), blob.bytes.to_vec()));
    let mut files = vec![("index.json".to_owned(), named(&own).into_bytes()), (path_of(&own), own.clone().into_bytes())];
    files.extend(of_signature.chain([(blob_path(&signature.digest), signature.manifest.to_vec())]));
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (&**path, &bytes[..])).collect();
    fs::write(dir.join("own.tar"), archive(&files)).unwrap();
    let index = named(&secret);
    let index = ("index.json", index.as_bytes());
    fs::write(dir.join("secret.tar"), archive(&[index])).unwrap();
    fs::write(dir.join("both.tar"), archive(&[index, (&path_of(&secret), secret.as_bytes())])).unwrap();
    let listed = async || {
        let list = mirror.get(&format!("/v2/pub/x/manifests/{tag}")).await.expect(200);
        let list = String::from_utf8(list.body.to_vec()).unwrap();
        [&signature.digest, &of_secret].map(|digest| list.contains(digest))
    };
    told(&dir, &["import", "own.tar"]).await;
    refused(&dir, &["import", "secret.tar"]).await;
    assert_eq!(listed().await, [true, false]);
    told(&dir, &["import", "both.tar"]).await;
    assert_eq!(listed().await, [true, true], "what is brought is added");
}

#[tokio::test]
async fn beside_a_running_larder_that_one_takes_it_in() {
    let upstream = Registry::start().await;
    let image = Image::new(13).layers(&[3_000_000, 3_000]).put(&upstream, "library/app", "v1");
    let outside = tempfile::tempdir().unwrap();
    pulled(outside.path(), &upstream, &["app:v1"]).await;
    told(outside.path(), &["export", "app:v1", "-o", "bundle.tar"]).await;
    let mirror = TestMirror::builder().set("mirror.offline = true").start().await;
    let dir = mirror.dir().to_path_buf();
    let bundle = outside.path().join("bundle.tar");
    let said = told(&dir, &["import", bundle.to_str().unwrap(), "--json"]).await;
    let bytes = image.manifest.len() + image.blobs().map(|blob| blob.bytes.len()).sum::<usize>();
    let report: Value = serde_json::from_str(&said).unwrap();
    let whole = json!({ "report": "imported", "image": "docker.io/library/app:v1", "digest": image.digest, "added": 4,
                        "bytes": bytes, "present": 0, "absent": 0, "pinned": true });
    assert_eq!(report, whole);
    assert_eq!(mirror.get(&image.tag_path("v1")).await.expect(200).body, image.manifest);
    assert_booked(&mirror).await;
}

#[tokio::test]
async fn what_podman_saves_for_docker_gets_a_manifest_and_the_storage_of_a_registry_its_names() {
    let upstream = Registry::start().await;
    let image = Image::new(14).layers(&[5_000, 600]).put(&upstream, "library/app", "v1");
    let name = |digest: &str, ending: &str| format!("{}{ending}", &digest[7..]);
    let config = name(&image.config.digest, ".json");
    let layers: Vec<String> = image.layers.iter().map(|layer| name(&layer.digest, ".tar")).collect();
    let listed = json!([{ "Config": config, "RepoTags": ["localhost/x:1"], "Layers": layers }]).to_string();
    let blobs = archive(&[(&layers[0], &image.layers[0].bytes), (&layers[1], &image.layers[1].bytes)]);
    // It writes one for each layer, for a Docker that is older than the digests of layers.
    let link = changed("a1b2/layer.tar", 0, |header| {
        header[156] = b'2';
        let to = format!("../{}", layers[0]);
        header[157..157 + to.len()].copy_from_slice(to.as_bytes());
    });
    let rest = archive(&[(&config, &image.config.bytes), ("manifest.json", listed.as_bytes())]);
    let saved = [&blobs[..blobs.len() - 1024], &link, &rest].concat();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("saved.tar"), &saved).unwrap();
    let said = refused(dir.path(), &["import", "saved.tar"]).await;
    assert!(said.starts_with("localhost/x:1: localhost is not among the upstreams"), "{said}");
    assert_eq!(files(&dir.path().join("cache/blobs")).len(), 0, "nothing is left");
    told(dir.path(), &["import", "saved.tar", "--as", "mine/app:v1"]).await;
    let larder = sealed(dir.path());
    let manifest = get(larder.url("/v2/mine/app/manifests/v1")).await.expect(200).json();
    assert_eq!(manifest["layers"][1]["digest"], image.layers[1].digest);
    let layer = get(larder.url(&format!("/v2/mine/app/blobs/{}", image.layers[0].digest))).await.expect(200);
    assert!(layer.body == image.layers[0].bytes);
    larder.terminate();

    let storage = tempfile::tempdir().unwrap();
    let root = storage.path().join("docker/registry/v2");
    let put = |path: String, bytes: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let data = |digest: &str| format!("blobs/sha256/{}/{}/data", &digest[7..9], &digest[7..]);
    put(data(&image.digest), &image.manifest);
    image.blobs().for_each(|blob| put(data(&blob.digest), &blob.bytes));
    put("repositories/org/app/_manifests/tags/v7/current/link".into(), image.digest.as_bytes());
    put(format!("repositories/org/app/_manifests/revisions/sha256/{}/link", &image.digest[7..]), image.digest.as_bytes());
    put("repositories/org/app/_uploads/1/data".into(), &noise(1, 100));
    let said = told(dir.path(), &["import", storage.path().to_str().unwrap(), "--as", "quay.io"]).await;
    assert!(said.starts_with("quay.io/org/app:v7  ") && said.contains("1 parts, 3 were here already"), "{said}");
}

#[tokio::test]
async fn an_archive_that_would_do_harm_is_refused_in_a_line_and_leaves_nothing() {
    let upstream = Registry::start().await;
    let image = Image::new(15).layers(&[5_000]).put(&upstream, "library/app", "v1");
    let path = blob_path(&image.layers[0].digest);
    let blob = (&*path, &image.layers[0].bytes[..]);
    let good = archive(&[blob]);
    let good = &good[..good.len() - 1024];
    let after = |more: Vec<u8>| [good, &more, &[0; 1024]].concat();
    let of_kind = |kind: u8| after(changed("x", 0, |header| header[156] = kind));
    let link = |kind: u8, path: &str, to: &str| {
        after(changed(path, 0, |header| {
            header[156] = kind;
            header[157..157 + to.len()].copy_from_slice(to.as_bytes());
        }))
    };
    let pax_before = |text: &str, next: Vec<u8>| {
        let mut entry = changed("pax", text.len() as u64, |header| header[156] = b'x');
        entry.extend_from_slice(text.as_bytes());
        entry.resize(entry.len() + padding(text.len() as u64), 0);
        after([entry, next].concat())
    };
    let pax = |text: &str| pax_before(text, header("x", 0));
    let other = blob_path(&digest_of(b"other"));
    let index =
        |digest: &str| json!({ "manifests": [{ "digest": digest, "annotations": { "io.containerd.image.name": "a:1" } }] });
    let indexed = |digest: &str| archive(&[blob, ("index.json", index(digest).to_string().as_bytes())]);
    let mut many = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let entry = changed("d", 0, |header| header[156] = b'5');
    (0..200_001).for_each(|_| many.write_all(&entry).unwrap());
    let mut torn = good.to_vec();
    torn[600] ^= 1;
    for (bytes, says) in [
        (after(header("../etc/passwd", 0)), "\"../etc/passwd\" is a path that leads out of it"),
        (after(header("a/../../b", 0)), "is a path that leads out of it"),
        (after(header("/etc/passwd", 0)), "\"/etc/passwd\" is a path that leads out of it"),
        (pax("18 path=../../a/b\n"), "\"../../a/b\" is a path that leads out of it"),
        (link(b'1', "x", "/etc/passwd"), "\"x\" is a link that leads out of it"),
        (link(b'1', "a/x", "../etc/passwd"), "\"a/x\" is a link that leads out of it"),
        (link(b'2', "x", "../etc/passwd"), "\"x\" is a link that leads out of it"),
        (link(b'2', "a/x", "b/../../../etc/passwd"), "\"a/x\" is a link that leads out of it"),
        (of_kind(b'3'), "\"x\" is no regular file"),
        (of_kind(b'6'), "\"x\" is no regular file"),
        (of_kind(b'S'), "\"x\" is a sparse file"),
        (pax("22 GNU.sparse.major=1\n"), "it has a sparse file"),
        (pax("99 path=x\n"), "what it says of a file cannot be read"),
        (pax("11 size=-9\n"), "a file in it has no size"),
        (pax("29 size=18446744073709551616\n"), "a file in it has no size"),
        (pax("13 size=9999\n"), "it ends in the middle"),
        (pax_before("12 size=512\n", header("x", 1024)), "\"x\" has two sizes"),
        (pax_before("13 size=1024\n", header("x", 512)), "\"x\" has two sizes"),
        (after(changed("x", 1 << 30, |header| header[156] = b'x')), "what it says of a file is larger than 65536 bytes"),
        (after(header("zeros", 1 << 40)), "\"zeros\" is of no use and large"),
        (after(header(&other, 1 << 40)), "the blob is larger than the cache"),
        (after(header("index.json", 1 << 40)), "\"index.json\" is larger than 16777216 bytes"),
        (after(good.to_vec()), "\" twice"),
        (archive(&[blob, (&other, b"wrong")]), "its bytes are not those that its name promises"),
        ([torn, vec![0; 1024]].concat(), "its bytes are not those that its name promises"),
        (good.to_vec(), "it ends in the middle"),
        (good[..700].to_vec(), "it ends in the middle"),
        (vec![], "it ends in the middle"),
        (noise(3, 4_000).to_vec(), "it is no tar archive, or a damaged one"),
        (after(vec![]), "it has no image: no index.json, no manifest.json, no repositories, no docker/registry/v2"),
        (archive(&[blob, ("index.json", b"{")]), "its index.json is no JSON"),
        (indexed(&digest_of(b"none")), "is not in the archive, and not here"),
        (indexed(&image.layers[0].digest), "it is no JSON object"),
        (many.finish().unwrap(), "it has more than 200000 entries"),
    ] {
        let alone = tempfile::tempdir().unwrap();
        fs::write(alone.path().join("bad.tar"), &bytes).unwrap();
        let said = refused(alone.path(), &["import", "bad.tar"]).await;
        assert!(said.contains(says), "{says}: {said}");
        for left in ["blobs", "partial", "quarantine"] {
            assert_eq!(files(&alone.path().join("cache").join(left)).len(), 0, "{says}");
        }
        let records = fs::read_to_string(alone.path().join("cache/records")).unwrap_or_default();
        assert!(records.lines().all(|line| line.starts_with("larder records") || line.starts_with("tally")), "{says}: {records}");
    }
    // Beside a running larder: it takes back its own, and nothing that was there.
    let mirror = TestMirror::of(&upstream).await;
    assert_eq!(mirror.warm("app:v1", &[]).await.failed, []);
    let dir = mirror.dir().to_path_buf();
    let more = blob_path(&digest_of(b"more"));
    let large = noise(9, 4 << 20);
    fs::write(dir.join("bad.tar"), archive(&[blob, (&more, b"more"), (&other, b"wrong"), (&other, &large)])).unwrap();
    let said = refused(&dir, &["import", "bad.tar"]).await;
    assert!(said.ends_with("its bytes are not those that its name promises"), "{said}");
    assert!(image.blobs().all(|blob| mirror.holds(&blob.digest)) && !mirror.holds(&digest_of(b"more")));
    assert_booked(&mirror).await;
}

// === death ===

#[tokio::test]
async fn an_import_that_is_killed_has_named_nothing_and_the_next_one_is_whole() {
    let upstream = Registry::start().await;
    let image = Image::new(20).layers(&[3_000_000, 3_000_000]).put(&upstream, "library/app", "v1");
    let outside = tempfile::tempdir().unwrap();
    pulled(outside.path(), &upstream, &["app:v1"]).await;
    told(outside.path(), &["export", "app:v1", "-o", "bundle.tar"]).await;
    let bundle = fs::read(outside.path().join("bundle.tar")).unwrap();
    let inside = tempfile::tempdir().unwrap();
    // The second is in the middle when the first is here.
    let mut layers: Vec<&str> = image.layers.iter().map(|layer| &*layer.digest).collect();
    layers.sort_unstable();
    for sent in [2_500_000, 5_500_000] {
        let mut killed = larder(inside.path(), &["import", "-"]).spawn().unwrap();
        let mut stdin = killed.stdin.take().unwrap();
        stdin.write_all(&bundle[..sent]).unwrap();
        let layer = layers[usize::from(sent > 3_000_000)];
        let cache = inside.path().join("cache");
        coming(&cache, layer, 1_000_000).await;
        let blobs = || files(&cache.join("blobs")).len();
        until("the first is kept", || sent < 3_000_000 || blobs() > 0).await;
        killed.kill().unwrap();
        killed.wait().unwrap();
        let records = fs::read_to_string(inside.path().join("cache/records")).unwrap_or_default();
        assert!(!records.contains("library/app"), "{records}");
        assert_sound(&inside.path().join("cache"));
    }
    let said = told(inside.path(), &["import", outside.path().join("bundle.tar").to_str().unwrap()]).await;
    assert!(said.contains(" parts, 1 were here already") || said.contains(" parts, 2 were here already"), "{said}");
    let larder = sealed(inside.path());
    assert_whole(&larder, &image).await;
}

#[tokio::test]
async fn an_export_that_is_killed_leaves_no_archive_that_looks_whole() {
    let upstream = Registry::start().await;
    Image::new(21).layers(&[30_000_000]).put(&upstream, "library/app", "v1");
    let dir = tempfile::tempdir().unwrap();
    pulled(dir.path(), &upstream, &["app:v1"]).await;
    told(dir.path(), &["export", "app:v1", "-o", "whole.tar"]).await;
    let whole = fs::read(dir.path().join("whole.tar")).unwrap();
    let mut killed = larder(dir.path(), &["export", "app:v1", "-o", "bundle.tar"]).spawn().unwrap();
    // On a slow machine it may have come to its end meanwhile.
    until("something is written", || ["bundle.tar", ".bundle.tar.partial"].iter().any(|name| dir.path().join(name).exists()))
        .await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    if let Ok(bytes) = fs::read(dir.path().join("bundle.tar")) {
        assert!(bytes == whole, "it has its name only when it is whole");
    }
    told(dir.path(), &["export", "app:v1", "-o", "bundle.tar"]).await;
    assert!(fs::read(dir.path().join("bundle.tar")).unwrap() == whole && !dir.path().join(".bundle.tar.partial").exists());
}
