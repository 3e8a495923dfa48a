//! Every place of a pull, and everything that can go wrong there: nothing wrong ever ends cleanly, everyone is told the same,
//! and once the upstream is well again the pull is right.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};

use crate::support::{Auth, Blobs, Client, Fault, Image, Log, Match, PutImage, Registry, Setup, TestMirror, digest_of, noise};

const REPOSITORY: &str = "library/app";
const TOKEN: Auth = Auth::Bearer { user: None, expires_in: Some(300) };
const LAYER: usize = 300_000;
const TAIL: usize = 16 << 10;
/// Who pulls at the same moment.
const CLIENTS: usize = 3;
/// How many pulls with a fault run beside each other: they mostly wait.
const BESIDE: usize = 16;

/// One place where one thing goes wrong.
struct Row {
    place: Place,
    faults: Vec<Fault>,
    /// Once, or whenever it is asked.
    always: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Token,
    Manifest,
    Config,
    /// Where the registry says in which storage the layer is.
    Redirect,
    Layer,
}

/// What a client was given of one thing.
struct Given {
    status: u16,
    complete: bool,
    body: Bytes,
}

// === the table ===

fn rows() -> Vec<Row> {
    let all = [Place::Token, Place::Manifest, Place::Config, Place::Redirect, Place::Layer];
    all.into_iter().flat_map(|place| [rows_of(place, false), rows_of(place, true)]).flatten().collect()
}

fn rows_of(place: Place, always: bool) -> Vec<Row> {
    let mut faults: Vec<Vec<Fault>> =
        [500, 502, 503, 504, 429, 404, 403, 400].into_iter().map(|code| vec![Fault::status(code)]).collect();
    faults.extend([
        vec![Fault::Hang],
        vec![Fault::Reset { after: 0 }],
        vec![Fault::Cut { after: 0 }],
        vec![Fault::Stall { after: 0 }],
    ]);
    if matches!(place, Place::Manifest | Place::Config | Place::Layer) {
        faults.push(vec![Fault::ContentEncoding("br")]);
        faults.push(vec![Fault::WrongBody(noise(7, 100))]);
        faults.push(vec![Fault::Status { code: 200, headers: Vec::new(), body: Bytes::from_static(b"<html>log in</html>") }]);
        let middle = if place == Place::Layer { LAYER / 2 } else { 100 };
        let offsets = match (place, always) {
            (_, true) => vec![middle],
            (Place::Layer, false) => vec![1, TAIL, LAYER / 2, LAYER - TAIL - 1, LAYER - TAIL, LAYER - 1],
            (_, false) => vec![1, middle],
        };
        for after in offsets {
            faults.push(vec![Fault::Cut { after }]);
            faults.push(vec![Fault::Reset { after }]);
            faults.push(vec![Fault::Stall { after }]);
            faults.push(vec![Fault::Corrupt { at: after }]);
            faults.push(vec![Fault::NoLength, Fault::Cut { after }]);
        }
    }
    if place == Place::Layer {
        let lie = |range: &str, len| Fault::answer(206, &[("content-range", range)], noise(8, len));
        faults.push(vec![lie("bytes 100-199/300000", 100)]);
        faults.push(vec![lie("bytes 0-99/300000", 100)]);
        faults.push(vec![lie("bytes 0-299999/300000", LAYER)]);
        faults.push(vec![Fault::answer(206, &[], noise(8, 100))]);
        faults.push(vec![Fault::status(416)]);
        faults.push(vec![Fault::IgnoreRange, Fault::Cut { after: 100_000 }]);
        faults.push(vec![Fault::WrongBody(noise(8, LAYER + 1))]);
        faults.push(vec![Fault::WrongBody(noise(8, LAYER - 1)), Fault::NoLength]);
    }
    faults.into_iter().map(|faults| Row { place, faults, always }).collect()
}

impl Row {
    fn which(&self, image: &PutImage) -> Match {
        let which = match self.place {
            Place::Token => Match::token(),
            Place::Manifest => Match::get("/manifests/"),
            Place::Config => Match::storage(&image.config.digest),
            Place::Redirect => Match::get(&image.layers[0].digest),
            Place::Layer => Match::storage(&image.layers[0].digest),
        };
        if self.always { which } else { which.times(1) }
    }

    /// Whether it changes bytes, so that those that came before the end may be wrong.
    fn is_wrong(&self) -> bool {
        let wrong =
            |fault: &Fault| matches!(fault, Fault::Corrupt { .. } | Fault::WrongBody(_) | Fault::Status { code: 200 | 206, .. });
        self.faults.iter().any(wrong)
    }

    fn name(&self) -> String {
        let mut faults = format!("{:?}", self.faults);
        faults.truncate(120);
        format!("{:?} {} {faults}", self.place, if self.always { "always" } else { "once" })
    }
}

// === a pull ===

/// The manifest by tag and by digest, the configuration and the layer, as one client asks for them: all, whatever becomes of
/// the first.
async fn pull(mirror: &TestMirror, image: &PutImage) -> Vec<Given> {
    let blobs = [&image.config, &image.layers[0]].map(|blob| image.blob_path(blob));
    let paths = [image.tag_path("latest"), image.manifest_path()].into_iter().chain(blobs);
    let mut given = Vec::new();
    for path in paths {
        let answer = Client::h1().try_get(mirror.url(&path)).await;
        let closed = |_| Given { status: 0, complete: false, body: Bytes::new() };
        given.push(answer.map_or_else(closed, |answer| Given {
            status: answer.status,
            complete: answer.complete,
            body: answer.body,
        }));
    }
    given
}

fn right(image: &PutImage) -> [&Bytes; 4] {
    [&image.manifest, &image.manifest, &image.config.bytes, &image.layers[0].bytes]
}

/// All files of the cache that are visible hash to their names, and none is on its way.
fn check_disk(cache: &Path, name: &str) {
    let mut dirs = vec![cache.join("blobs")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let digest = digest_of(&fs::read(&path).unwrap());
                let hex = digest.strip_prefix("sha256:").unwrap();
                assert!(path.file_name().unwrap().to_string_lossy().ends_with(hex), "{name}: {} is {digest}", path.display());
            }
        }
    }
    assert_eq!(fs::read_dir(cache.join("partial")).unwrap().count(), 0, "{name}: something is left on its way");
}

/// `seed`: its own, so that what the log says of it can be told from what it says of others.
async fn check(seed: u64, row: Row) {
    let (name, log) = (row.name(), Log::from_here());
    let upstream = Registry::with(Setup { auth: TOKEN, blobs: Blobs::REDIRECTED, ..Setup::default() }).await;
    let image = Image::new(seed).layers(&[LAYER]).put(&upstream, REPOSITORY, "latest");
    upstream.on(row.which(&image), row.faults.clone());
    let mirror = TestMirror::builder()
        .upstream("docker.io", &upstream)
        .set("upstream.\"docker.io\".header_timeout = \"1s\"")
        .set("upstream.\"docker.io\".idle_timeout = \"500ms\"")
        .start()
        .await;

    let pulls = join_all((0..CLIENTS).map(|_| pull(&mirror, &image))).await;
    for given in &pulls {
        // What a tag points to, the upstream alone knows: there is no digest to hold it to.
        let by_digest = usize::from(row.place == Place::Manifest && row.is_wrong());
        for (given, right) in given.iter().zip(right(&image)).skip(by_digest) {
            let Given { status, complete, body } = given;
            match (status, complete) {
                // I1: what ends cleanly is right.
                (200, true) => assert!(body == right, "{name}: {} wrong bytes ended cleanly", body.len()),
                (0 | 200, false) if row.is_wrong() => assert!(body.len() < right.len(), "{name}"),
                (0 | 200, false) => assert!(body.len() < right.len() && right.starts_with(body), "{name}: invented bytes"),
                (403 | 404 | 429 | 502..=504, true) => {}
                _ => panic!("{name}: {status}, complete: {complete}"),
            }
        }
    }
    // I6: everyone is told the same. After a fault that is over the next one may be luckier.
    if row.always {
        for given in &pulls[1..] {
            let told = |pull: &[Given]| pull.iter().map(|given| (given.status, given.complete)).collect::<Vec<_>>();
            assert_eq!(told(given), told(&pulls[0]), "{name}");
        }
    } else {
        // I4: nothing is fetched twice, but for what was wrong or could not be gone on with.
        let total: usize = right(&image).into_iter().map(Bytes::len).sum();
        assert!(upstream.bytes_sent() <= 2 * total as u64 + 10_000, "{name}: {} bytes", upstream.bytes_sent());
    }
    if row.always && matches!(row.faults[..], [Fault::Corrupt { .. }]) {
        let digest = match row.place {
            Place::Config => &image.config.digest,
            Place::Layer => &image.layers[0].digest,
            _ => &image.digest,
        };
        log.will_say(&["ERROR", &format!("digest={digest} found=sha256:")]).await;
    }
    let gets = upstream.count("GET", "/manifests/");
    assert!(gets <= 3 * (CLIENTS + 1), "{name}: {gets} GETs of a manifest");

    upstream.heal();
    upstream.release();
    mirror.clock().advance(Duration::from_mins(11));
    for (given, right) in pull(&mirror, &image).await.into_iter().zip(right(&image)) {
        assert_eq!((given.status, given.complete), (200, true), "{name}: after its end");
        assert!(given.body == right, "{name}: after its end");
    }
    let stopped = mirror.stop().await;
    check_disk(&stopped.cache_dir(), &name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_at_whatever_place_of_a_pull_no_client_gets_a_wrong_byte_and_the_next_pull_is_right() {
    let rows = rows();
    let number = rows.len();
    assert!(number > 150, "only {number} rows");
    let all = stream::iter(rows.into_iter().zip(1..)).for_each_concurrent(BESIDE, |(row, seed)| async move {
        tokio::spawn(check(seed, row)).await.unwrap();
    });
    all.await;
}
