//! `larder import` of an archive of 2 GiB, by a command alone and beside a larder that serves: against `openssl dgst -sha256` and `dd
//! conv=fsync` on the same file, of which the slower is the measure; and the memory that is nobody's but its own.
//!
//! `cargo bench --bench import [-- SIZE TURNS]`

#![expect(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench prints figures, and has nothing to do after a failure but fail"
)]

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use larder::orders::{header, padding};
use serde_json::json;
use support::{digest_of, noise};

use rig::{GIB, Larder, MIB, median, verdict};

mod rig;
#[path = "../tests/support/mod.rs"]
mod support;

const LAYER: usize = 256 << 20;
/// At least so fast as a part of the slower of the two, and in so much memory.
const FAST: f64 = 0.8;
const SMALL: f64 = 64.0;
const SAMPLED: Duration = Duration::from_millis(2);

/// Who does it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Openssl,
    Dd,
    Alone,
    Beside,
}

/// Seconds, and the most anonymous memory of any process of larder's, in MiB.
struct Turn {
    seconds: f64,
    memory: f64,
}

fn main() -> ExitCode {
    let size = rig::argument(0, ByteSize::gib(2)).as_u64();
    let turns = rig::argument(1, 3);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let archive = dir.path().join("bundle.tar");
    let size = write_archive(&archive, usize::try_from(size).expect("fits into memory"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut measured = [By::Openssl, By::Dd, By::Alone, By::Beside].map(|by| (by, Vec::new()));
    for _ in 0..turns {
        for (by, turns) in &mut measured {
            turns.push(runtime.block_on(by.turn(&archive, dir.path())));
        }
    }
    let speed = |turns: &[Turn]| size as f64 / GIB / median(turns.iter().map(|turn| turn.seconds));
    let measure = measured[..2].iter().map(|(_, turns)| speed(turns)).fold(f64::INFINITY, f64::min);
    println!("{} in {turns} turns, medians:", ByteSize(size));
    let mut well = true;
    for (by, turns) in &measured {
        let (speed, memory) = (speed(turns), rig::largest(turns.iter().map(|turn| turn.memory)));
        print!("{:28} {speed:5.2} GiB/s", by.name());
        if matches!(by, By::Alone | By::Beside) {
            let (is_fast, is_small) = (speed >= FAST * measure, memory < SMALL);
            well &= is_fast && is_small;
            print!(
                ", {:.2} x the slower: {}; {memory:.1} MiB of anonymous memory: {}",
                speed / measure,
                verdict(is_fast),
                verdict(is_small)
            );
        }
        println!();
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One image of layers that nothing compresses. Returns how large the archive is.
fn write_archive(at: &Path, size: usize) -> u64 {
    let mut archive = BufWriter::with_capacity(1 << 20, File::create(at).expect("a file"));
    let mut put = |path: &str, bytes: &[u8]| {
        let padding = vec![0; padding(bytes.len() as u64)];
        for part in [&header(path, bytes.len() as u64)[..], bytes, &padding] {
            archive.write_all(part).expect("there is room");
        }
    };
    let described = |bytes: &[u8]| {
        let digest = digest_of(bytes);
        (
            format!("blobs/{}", digest.replace(':', "/")),
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest, "size": bytes.len() }),
        )
    };
    let mut layers = Vec::new();
    for n in 0..size.div_ceil(LAYER) {
        let layer = noise(n as u64, LAYER.min(size - n * LAYER));
        let (path, layer_described) = described(&layer);
        put(&path, &layer);
        layers.push(layer_described);
    }
    let config = json!({ "architecture": "amd64", "os": "linux" }).to_string();
    let (path, mut config_described) = described(config.as_bytes());
    put(&path, config.as_bytes());
    config_described["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": config_described, "layers": layers }).to_string();
    let (path, mut manifest_described) = described(manifest.as_bytes());
    put(&path, manifest.as_bytes());
    manifest_described["mediaType"] = media_type.into();
    manifest_described["annotations"] = json!({ "io.containerd.image.name": "docker.io/library/large:v1" });
    put("index.json", json!({ "schemaVersion": 2, "manifests": [manifest_described] }).to_string().as_bytes());
    archive.write_all(&[0; 1024]).expect("there is room");
    archive.into_inner().expect("there is room").sync_all().expect("there is room");
    fs::metadata(at).expect("it is there").len()
}

/// Waits for a command and looks meanwhile how much memory it has, and this other process.
fn watched(mut command: Child, beside: Option<u32>) -> Turn {
    let (begun, mut memory) = (Instant::now(), 0);
    while command.try_wait().expect("a child").is_none() {
        let processes = beside.into_iter().chain([command.id()]);
        memory = processes.map(anonymous).fold(memory, u64::max);
        thread::sleep(SAMPLED);
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert!(command.wait().expect("a child").success(), "it fails");
    Turn { seconds, memory: memory as f64 * 1024.0 / MIB }
}

/// In KiB; 0 for a process that has ended.
fn anonymous(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    anonymous.and_then(|kib| kib.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

// === impl By ===

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Openssl => "openssl dgst -sha256",
            Self::Dd => "dd bs=1M conv=fsync",
            Self::Alone => "larder import",
            Self::Beside => "… beside a larder that serves",
        }
    }

    async fn turn(self, archive: &Path, dir: &Path) -> Turn {
        let (copy, cache) = (dir.join("copy"), dir.join("cache"));
        // What was written before is not to be written during this.
        rustix::fs::sync();
        let larder =
            if self == Self::Beside { Some(Larder::start("http://127.0.0.1:1", "mirror.offline = true").await) } else { None };
        let mut command = match self {
            Self::Openssl => Command::new("openssl"),
            Self::Dd => Command::new("dd"),
            Self::Alone | Self::Beside => Command::new(env!("CARGO_BIN_EXE_larder")),
        };
        match self {
            Self::Openssl => command.args(["dgst", "-sha256"]).arg(archive),
            Self::Dd => command.args(["bs=1M", "conv=fsync"]).args([argument("if", archive), argument("of", &copy)]),
            Self::Alone => command.arg("import").arg(archive).args(["--set", &argument("cache.dir", &cache)]),
            Self::Beside => {
                let cache = larder.as_ref().map(Larder::cache_dir).unwrap_or_default();
                command.arg("import").arg(archive).args(["--set", &argument("cache.dir", &cache)])
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it is installed");
        let beside = larder.as_ref().map(|larder| larder.pid().as_raw_pid().unsigned_abs());
        let turn = watched(child, beside);
        drop(larder);
        let _ = fs::remove_file(copy);
        let _ = fs::remove_dir_all(cache);
        turn
    }
}

fn argument(key: &str, path: &Path) -> String {
    format!("{key}={}", path.display())
}
