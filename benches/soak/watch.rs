//! larder seen from outside: its metrics, its memory, descriptors and threads, and the files in its cache.

#![expect(clippy::disallowed_methods, reason = "it looks at what larder leaves on the disk")]

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Pid;
use tokio::time::sleep;

use crate::{
    rig::{Larder, MIB},
    support::digest_of,
    world::World,
};

/// One life of larder.
pub(crate) struct Watch {
    begun: Instant,
    /// Before the first client.
    first: Gauges,
    seen: Vec<Sample>,
}

/// What must be back at its start when nobody asks for anything.
#[derive(Clone, Debug, Default)]
struct Gauges {
    metrics: BTreeMap<String, i64>,
    descriptors: usize,
    threads: usize,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Duration,
    memory: u64,
    descriptors: usize,
    threads: usize,
}

/// What a life came to.
pub(crate) struct Rest {
    length: Duration,
    peak: u64,
    memory: Slope,
    descriptors: Slope,
    threads: Slope,
    gauges: String,
}

/// Of a line through all samples, by least squares.
struct Slope {
    first: f64,
    last: f64,
    an_hour: f64,
    /// The standard error of it, as far as what comes and goes makes it uncertain.
    error: f64,
}

/// Those that tell of something that is under way, by the beginning of their names.
const RETURNING: [&str; 5] = [
    "larder_cache_bytes{for=\"reserved\"}",
    "larder_cache_bytes{for=\"leaving\"}",
    "larder_connections",
    "larder_body_buffer",
    "larder_fills_running",
];
/// Memory is spent in the first moments of a life, on buffers and on what is remembered of each repository.
const WARM_UP: f64 = 0.25;
/// In a shorter life the load itself rises and falls by as much as a leak would; what is left at rest is judged in every life.
const TELLS_FROM: Duration = Duration::from_mins(3);
/// Of the time, for the error of a slope.
const PARTS: usize = 12;
const RETURNS_WITHIN: Duration = Duration::from_secs(10);

// === impl Watch ===

impl Watch {
    pub(crate) async fn begin(larder: &Larder) -> Self {
        Self { begun: Instant::now(), first: Gauges::of(larder).await, seen: Vec::new() }
    }

    pub(crate) fn look(&mut self, larder: &Larder) {
        let (memory, threads) = status(larder.pid());
        let descriptors = descriptors(larder.pid());
        self.seen.push(Sample { at: self.begun.elapsed(), memory, descriptors, threads });
    }

    /// With no client left and no upstream: waits until every gauge is back.
    pub(crate) async fn end(self, larder: &Larder, world: &World) -> Rest {
        let begun = Instant::now();
        let mut last = Gauges::of(larder).await;
        while !last.is_back_at(&self.first) && begun.elapsed() < RETURNS_WITHIN {
            sleep(Duration::from_millis(100)).await;
            last = Gauges::of(larder).await;
        }
        world.hold(last.is_back_at(&self.first), || format!("not back at its start: {last:?}, {:?}", self.first));
        let counted =
            ["committed", "partial", "quarantined"].map(|what| last.get(&format!("larder_cache_bytes{{for=\"{what}\"}}")));
        let (counted, lie) = (counted.iter().sum::<i64>(), taken(&larder.cache_dir()));
        world.hold(counted == lie, || format!("{counted} bytes are counted and {lie} lie there"));
        for torn in torn(&larder.cache_dir()) {
            world.found(format!("a torn blob is visible: {torn}"));
        }

        let length = self.begun.elapsed();
        let warm: Vec<Sample> =
            self.seen.into_iter().filter(|sample| sample.at.as_secs_f64() > length.as_secs_f64() * WARM_UP).collect();
        let slope = |of: fn(&Sample) -> f64| {
            let points: Vec<_> = warm.iter().map(|sample| (sample.at.as_secs_f64(), of(sample))).collect();
            Slope::of(&points)
        };
        let memory = slope(|sample| sample.memory as f64 / MIB);
        let descriptors = slope(|sample| sample.descriptors as f64);
        let threads = slope(|sample| sample.threads as f64);
        if length >= TELLS_FROM {
            world.hold(memory.growth() < 8.0, || format!("memory grows: {memory}"));
            world.hold(descriptors.growth() < 25.0, || format!("descriptors grow: {descriptors}"));
            world.hold(threads.growth() < 8.0, || format!("threads grow: {threads}"));
        }
        let shown = RETURNING.map(|name| format!("{name} {} -> {}", self.first.get(name), last.get(name)));
        let gauges = format!(
            "{}, descriptors {} -> {}, threads {} -> {}",
            shown.join(", "),
            self.first.descriptors,
            last.descriptors,
            self.first.threads,
            last.threads
        );
        Rest { length, peak: larder.peak_memory(), memory, descriptors, threads, gauges }
    }
}

// === impl Gauges ===

impl Gauges {
    async fn of(larder: &Larder) -> Self {
        let (_, threads) = status(larder.pid());
        let page = crate::support::get(format!("http://{}/metrics", larder.admin())).await.expect(200).text();
        let metrics = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self { metrics: metrics.collect(), descriptors: descriptors(larder.pid()), threads }
    }

    /// What is not on the page has never been.
    fn get(&self, name: &str) -> i64 {
        self.metrics.get(name).copied().unwrap_or_default()
    }

    fn is_back_at(&self, first: &Self) -> bool {
        let back = RETURNING.iter().all(|name| self.get(name) <= first.get(name));
        // Some files stay open to be read again, and threads stay for more work; neither for each pull.
        back && self.descriptors <= first.descriptors + 200 && self.threads <= first.threads + 64
    }
}

// === impl Slope ===

impl Slope {
    /// `points`: when, in seconds, and what.
    fn of(points: &[(f64, f64)]) -> Self {
        // Samples that are close to each other say the same; means over a part of the time say something of their own.
        let parts: Vec<(f64, f64)> = points.chunks(points.len().div_ceil(PARTS).max(1)).map(mean).collect();
        let (x, y) = mean(&parts);
        let (above, below) = parts
            .iter()
            .fold((0.0, 0.0), |(above, below), part| (above + (part.0 - x) * (part.1 - y), below + (part.0 - x).powi(2)));
        let a_second = if below > 0.0 { above / below } else { 0.0 };
        let at = |point: Option<&(f64, f64)>| point.map_or(y, |point| y + (point.0 - x) * a_second);
        let off: f64 = parts.iter().map(|part| (part.1 - at(Some(part))).powi(2)).sum();
        let error = (off / (parts.len() as f64 - 2.0).max(1.0) / below.max(1.0)).sqrt();
        Self { first: at(points.first()), last: at(points.last()), an_hour: a_second * 3_600.0, error: error * 3_600.0 }
    }

    /// What is sure of it, in the time that was looked at: the rest may be what comes and goes.
    fn growth(&self) -> f64 {
        if self.an_hour > 2.0 * self.error { (self.last - self.first) * (1.0 - 2.0 * self.error / self.an_hour) } else { 0.0 }
    }
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len().max(1) as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    (x / n, y / n)
}

impl fmt::Display for Slope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} -> {:.1}, {:+.1} (± {:.1}) an hour", self.first, self.last, self.an_hour, self.error)
    }
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { length, peak, memory, descriptors, threads, gauges } = self;
        writeln!(f, "the last life, {:.0} s long, of which the first quarter does not count:", length.as_secs_f64())?;
        writeln!(f, "memory: {memory} MiB; at most {:.1} MiB", *peak as f64 / 1024.0)?;
        writeln!(f, "descriptors: {descriptors}")?;
        writeln!(f, "threads: {threads}")?;
        write!(f, "at its begin -> at its end: {gauges}")
    }
}

// === from /proc and from the disk ===

/// Resident memory in bytes, and threads.
fn status(process: Pid) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_pid())).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim_end_matches("kB").trim().parse().unwrap_or_default()
    };
    (field("VmRSS") * 1024, usize::try_from(field("Threads")).expect("few"))
}

fn descriptors(process: Pid) -> usize {
    fs::read_dir(format!("/proc/{}/fd", process.as_raw_pid())).map_or(0, Iterator::count)
}

/// The files under blobs/ that do not hash to their names.
pub(crate) fn torn(cache: &Path) -> Vec<String> {
    let mut torn = Vec::new();
    for shard in fs::read_dir(cache.join("blobs/sha256")).into_iter().flatten().flatten() {
        for file in fs::read_dir(shard.path()).into_iter().flatten().flatten() {
            let name = format!("sha256:{}", file.file_name().to_string_lossy());
            // One that is evicted at this moment is none.
            if fs::read(file.path()).is_ok_and(|bytes| digest_of(&bytes) != name) {
                torn.push(name);
            }
        }
    }
    torn
}

/// What the files take that larder counts.
fn taken(cache: &Path) -> i64 {
    use std::os::unix::fs::MetadataExt as _;

    let mut bytes = 0;
    let mut below = vec![cache.join("blobs"), cache.join("partial"), cache.join("quarantine")];
    while let Some(dir) = below.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => below.push(entry.path()),
                Ok(meta) => bytes += meta.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    i64::try_from(bytes).expect("a disk of this world")
}
