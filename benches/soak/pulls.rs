//! The clients: whole images, ranges, HEADs, those who leave, those who read slowly, herds.

use std::{rc::Rc, time::Duration};

use futures_util::future::join_all;
use http::Method;
use tokio::time::{sleep, timeout};

use crate::{
    support::{self, Content, PutImage},
    world::{Dice, Place, World, is_liar},
};

/// What a client wants of a blob or a manifest, and how it goes about it.
struct Wish<'a> {
    path: String,
    /// All of it, as it should be.
    bytes: &'a [u8],
    range: Option<Range>,
    pace: Pace,
}

#[derive(Clone, Copy)]
struct Range {
    first: usize,
    /// The last byte; `None`: up to the end.
    last: Option<usize>,
}

#[derive(Clone, Copy)]
enum Pace {
    Fast,
    /// Waits so long after each piece.
    Slow(Duration),
    /// Leaves after so many bytes.
    Leaves(usize),
}

/// Longer than larder tries in vain, with all its repetitions.
const PATIENCE: Duration = Duration::from_mins(1);

/// Pulls one thing after the other until the world stops.
pub(crate) async fn client(world: Rc<World>, n: u64) {
    let mut dice = world.dice(n);
    let http = if n % 3 == 2 { support::http(reqwest::ClientBuilder::http2_prior_knowledge) } else { support::http(one_by_one) };
    while !world.is_stopping() {
        let Some(larder) = world.larder() else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let image = dice.pick_early(&world.images);
        let blob = dice.pick(&image.layers);
        match dice.below(100) {
            0..45 => whole(&world, &http, larder, image).await,
            45..62 => ranges(&world, &http, larder, image, blob, &mut dice).await,
            62..72 => head(&world, &http, larder, image, blob).await,
            72..84 => {
                let left = Pace::Leaves(dice.index(blob.bytes.len()));
                let _ = get(&world, &http, larder, Wish { pace: left, ..Wish::blob(image, blob) }).await;
                world.count("pulls: left in the middle");
            }
            84..90 => {
                let slow = Pace::Slow(Duration::from_millis(1 + dice.below(8)));
                let _ = get(&world, &http, larder, Wish { pace: slow, ..Wish::blob(image, blob) }).await;
                world.count("pulls: slow");
            }
            _ => {
                join_all((0..6).map(|_| get(&world, &http, larder, Wish::blob(image, blob)))).await;
                world.count("pulls: six at once");
            }
        }
    }
}

/// Everything, with the upstream in health: nothing may be missing now.
pub(crate) async fn all(world: &World) {
    let (http, larder) = (support::http(one_by_one), world.larder().expect("it runs"));
    for image in &world.images {
        for blob in image.blobs() {
            well(world, &http, larder, Wish::blob(image, blob)).await;
        }
        well(world, &http, larder, Wish::of(image.manifest_path(), &image.manifest)).await;
    }
}

async fn well(world: &World, http: &reqwest::Client, larder: Place, wish: Wish<'_>) {
    let path = wish.path.clone();
    if let Err(why) = get(world, http, larder, wish).await {
        world.found(format!("{path} is not to be had though all is well: {why}"));
    }
}

async fn whole(world: &World, http: &reqwest::Client, larder: Place, image: &PutImage) {
    if get(world, http, larder, Wish::of(image.tag_path("latest"), &image.manifest)).await.is_ok() {
        let blobs = image.blobs().map(|blob| get(world, http, larder, Wish::blob(image, blob)));
        let came = join_all(blobs).await.into_iter().all(|came| came.is_ok());
        world.count(if came { "images: whole" } else { "images: not whole" });
    } else {
        world.count("images: no manifest");
    }
}

/// Of one blob, some at once, as parallel fetchers ask. Not of a liar: what lies within a cold blob nobody can verify.
async fn ranges(world: &World, http: &reqwest::Client, larder: Place, image: &PutImage, blob: &Content, dice: &mut Dice) {
    if is_liar(image) {
        return;
    }
    let size = blob.bytes.len();
    let mut range = || {
        let first = dice.index(size);
        Range { first, last: (dice.below(2) == 0).then(|| first + dice.index(size - first)) }
    };
    let wishes = [(); 4].map(|()| Wish { range: Some(range()), ..Wish::blob(image, blob) });
    join_all(wishes.map(|wish| get(world, http, larder, wish))).await;
    world.count("pulls: ranges, four at once");
}

async fn head(world: &World, http: &reqwest::Client, larder: Place, image: &PutImage, blob: &Content) {
    let path = image.blob_path(blob);
    let asked = timeout(PATIENCE, http.request(Method::HEAD, larder.url(&path)).send()).await;
    world.count("pulls: HEAD");
    match asked {
        Ok(Ok(answer)) if answer.status() == 200 => {
            let length = answer.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
            world.hold(length == Some(blob.bytes.len()), || format!("HEAD {path}: {length:?} of {}", blob.bytes.len()));
        }
        Ok(Ok(answer)) => refused(world, &path, answer.status().as_u16()),
        Ok(Err(error)) => no_answer(world, larder, &path, &error),
        Err(_) => world.found(format!("HEAD {path}: no answer in {PATIENCE:?}")),
    }
}

/// What came and ended well must be right. If not all of it came: why.
async fn get(world: &World, http: &reqwest::Client, larder: Place, wish: Wish<'_>) -> Result<(), String> {
    let Wish { path, bytes, range, pace } = wish;
    let mut request = http.get(larder.url(&path));
    if let Some(Range { first, last }) = range {
        request = request.header("range", format!("bytes={first}-{}", last.map_or(String::new(), |last| last.to_string())));
    }
    let mut answer = match timeout(PATIENCE, request.send()).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            no_answer(world, larder, &path, &error);
            return Err(error.to_string());
        }
        Err(_) => {
            world.found(format!("{path}: no answer in {PATIENCE:?}"));
            return Err("no answer".into());
        }
    };
    let expected = match (answer.status().as_u16(), range) {
        (200, _) => bytes,
        (206, Some(Range { first, last })) => &bytes[first..=last.unwrap_or(bytes.len() - 1)],
        (status, _) => {
            refused(world, &path, status);
            return Err(format!("{status} {}", answer.text().await.unwrap_or_default()));
        }
    };
    let is_hit =
        answer.headers().get("cache-status").is_some_and(|status| status.to_str().is_ok_and(|text| text.contains("hit")));
    let (mut came, mut right) = (0, true);
    loop {
        match timeout(PATIENCE, answer.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                right &= expected.get(came..came + chunk.len()) == Some(&chunk[..]);
                came += chunk.len();
                world.add("bytes to clients", chunk.len() as u64);
                match pace {
                    Pace::Leaves(after) if came > after => return Err("left".into()),
                    Pace::Slow(wait) => sleep(wait).await,
                    _ => {}
                }
            }
            Ok(Ok(None)) => {
                world.count("answers: whole");
                world.hold(right && came == expected.len(), || {
                    format!("{path} {:?}: {came} bytes that are wrong and end well", range.map(|range| range.first))
                });
                return Ok(());
            }
            Ok(Err(_)) => {
                world.count(if is_hit { "answers: hits that ended short" } else { "answers: ended short" });
                world.hold(!is_hit || !larder.is_still_here(world), || format!("{path}: a hit ended short after {came} bytes"));
                return Err(format!("ended short after {came} bytes"));
            }
            Err(_) => {
                world.found(format!("{path}: silent for {PATIENCE:?} after {came} bytes"));
                return Err("silent".into());
            }
        }
    }
}

/// The upstream was in trouble, or larder had too much to do: all else would be an answer that means something else.
fn refused(world: &World, path: &str, status: u16) {
    world.count(&format!("answers: {status}"));
    world.hold(matches!(status, 429 | 502..=504), || format!("{path}: {status}"));
}

fn no_answer(world: &World, larder: Place, path: &str, error: &reqwest::Error) {
    if !larder.is_still_here(world) {
        world.count("answers: none, as larder was killed or stopped");
    } else if format!("{error:?}").contains("Reset(") {
        // Over HTTP/2 a stream that ends short is reset, and a client may learn of that before it looks at the headers.
        world.count("answers: ended short");
    } else {
        world.found(format!("{path}: no answer: {error:?}"));
    }
}

/// A connection for each request, so that each error is larder's own.
fn one_by_one(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    builder.http1_only().pool_max_idle_per_host(0)
}

// === impl Wish ===

impl<'a> Wish<'a> {
    fn of(path: String, bytes: &'a [u8]) -> Self {
        Self { path, bytes, range: None, pace: Pace::Fast }
    }

    fn blob(image: &PutImage, blob: &'a Content) -> Self {
        Self::of(image.blob_path(blob), &blob.bytes)
    }
}
