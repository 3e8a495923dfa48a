//! A cold image by real clients, without a mirror and through larder: registries and their CDNs limit the speed of each connection,
//! and clients open few.
//!
//! `cargo bench --bench image [-- ROUNDS]`; needs skopeo, and for the Docker engine root as well.

#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a bench prints figures, and has files of its own")]

use std::{
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::{Registry, Setup, digest_of, noise};
use tokio::task::spawn_blocking;

use rig::{Larder, median, verdict};

mod rig;
#[path = "../tests/support/mod.rs"]
mod support;

const LAYERS_MIB: [usize; 8] = [256, 128, 64, 32, 8, 4, 2, 1];
const IMAGE: &str = "library/bench";
/// The time through larder to that without it.
const BAR: f64 = 0.5;
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// Something that pulls images, and forgets them.
trait Client {
    fn name(&self) -> &'static str;
    fn pull(&self, from: SocketAddr);
    fn forget(&self, from: SocketAddr);
}

/// Copies to a directory.
struct Skopeo {
    dir: tempfile::TempDir,
}

/// A Docker engine of its own, which unpacks what it pulls.
struct Engine {
    dir: tempfile::TempDir,
    daemon: Child,
}

fn main() -> ExitCode {
    rig::run(compare())
}

async fn compare() {
    let rounds = rig::argument(0, 3);
    println!("an image of {LAYERS_MIB:?} MiB; upstream 30 ms away, 16 MiB/s a connection");
    let setup = Setup { latency: Duration::from_millis(30), bandwidth: Some(16 << 20), ..Setup::default() };
    let upstream = rig::aside(Registry::with(setup)).await;
    put_image(&upstream);
    let mut clients: Vec<Box<dyn Client + Send>> = vec![Box::new(Skopeo::new())];
    match Engine::start() {
        Ok(engine) => clients.push(Box::new(engine)),
        Err(why) => println!("no Docker engine: {why}"),
    }
    for mut client in clients {
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            let larder = Larder::start(&upstream.url(), "").await;
            for (from, times) in [(upstream.address(), &mut direct), (larder.address(), &mut through)] {
                let seconds;
                (client, seconds) = spawn_blocking(move || timed(client, from)).await.expect("it does not panic");
                times.push(seconds);
            }
            let [direct, through] = [&direct, &through].map(|times| times[round - 1]);
            println!(
                "{} {round}: directly {direct:.2} s, through larder {through:.2} s = {:.2} x",
                client.name(),
                through / direct
            );
        }
        let ratio = median(through) / median(direct);
        println!("{}: {} takes {ratio:.2} x the time; the bar is {BAR}", verdict(ratio <= BAR), client.name());
    }
}

fn timed(client: Box<dyn Client + Send>, from: SocketAddr) -> (Box<dyn Client + Send>, f64) {
    let begun = Instant::now();
    client.pull(from);
    let seconds = begun.elapsed().as_secs_f64();
    client.forget(from);
    (client, seconds)
}

/// An image that can be unpacked: a file in each layer.
fn put_image(upstream: &Registry) {
    let (mut layers, mut unpacked) = (Vec::new(), Vec::new());
    for (number, mib) in (1_u64..).zip(LAYERS_MIB) {
        let tar = archive(&format!("file-{number}"), &noise(number, mib << 20));
        unpacked.push(digest_of(&tar));
        // Noise is not smaller for being compressed.
        let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
        gzip.write_all(&tar).expect("into memory");
        let layer = gzip.finish().expect("into memory");
        let (size, digest) = (layer.len(), upstream.put_blob(IMAGE, layer));
        layers.push(json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size }));
    }
    let config =
        json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": unpacked } });
    let config = config.to_string();
    let described = json!({
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "size": config.len(),
        "digest": upstream.put_blob(IMAGE, config),
    });
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": described, "layers": layers });
    upstream.put_manifest(IMAGE, Some("latest"), media_type, manifest.to_string());
}

/// A tar archive with one file (POSIX ustar).
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    // The checksum is made with blanks in its own place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut archive = [&header[..], content].concat();
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

fn must(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn image_at(from: SocketAddr) -> String {
    format!("{from}/{IMAGE}:latest")
}

// === impl Skopeo ===

impl Skopeo {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("image")
    }
}

impl Client for Skopeo {
    fn name(&self) -> &'static str {
        "skopeo copy"
    }

    fn pull(&self, from: SocketAddr) {
        let (image, place) = (format!("docker://{}", image_at(from)), format!("dir:{}", self.place().display()));
        must(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &image, &place]));
    }

    fn forget(&self, _: SocketAddr) {
        fs::remove_dir_all(self.place()).expect("it was just copied");
    }
}

// === impl Engine ===

impl Engine {
    fn start() -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| dir.path().join(name);
        let log = || File::options().create(true).append(true).open(at("log")).expect("a file in the temporary directory");
        // What the machine's own engine is told is not for this one.
        fs::write(at("config"), "{}").expect("a file in the temporary directory");
        let daemon = Command::new("dockerd")
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .args([Path::new("--config-file"), &at("config"), Path::new("--pidfile"), &at("pid")])
            .args([Path::new("--data-root"), &at("data"), Path::new("--exec-root"), &at("exec")])
            .arg("--host")
            .arg(format!("unix://{}", at("socket").display()))
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn();
        let daemon = daemon.map_err(|error| format!("dockerd: {error}"))?;
        let mut engine = Self { dir, daemon };
        let deadline = Instant::now() + STARTS_WITHIN;
        while !engine.docker().arg("version").output().is_ok_and(|output| output.status.success()) {
            if Instant::now() > deadline || engine.daemon.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Err(fs::read_to_string(engine.dir.path().join("log")).unwrap_or_default());
            }
        }
        Ok(engine)
    }

    fn docker(&self) -> Command {
        let mut docker = Command::new("docker");
        docker.arg("--host").arg(format!("unix://{}", self.dir.path().join("socket").display()));
        docker
    }
}

impl Client for Engine {
    fn name(&self) -> &'static str {
        "docker pull"
    }

    fn pull(&self, from: SocketAddr) {
        must(self.docker().args(["pull", "--quiet", &image_at(from)]));
    }

    fn forget(&self, from: SocketAddr) {
        must(self.docker().args(["image", "rm", "--force", &image_at(from)]));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // As its own containerd must end too.
        if self.daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
            let _ = self.daemon.wait();
        }
    }
}
