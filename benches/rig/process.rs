//! The larder under test: the real binary, optimized, in a process of its own.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// A larder that serves. Dropped, it is killed and its cache removed.
pub struct Larder {
    address: SocketAddr,
    admin: SocketAddr,
    process: Process,
    stopped: Stopped,
}

/// A cache directory and a configuration, while no larder runs on them.
pub struct Stopped {
    dir: TempDir,
}

struct Process(Child);

const STARTS_WITHIN: Duration = Duration::from_secs(10);
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// `USER_HZ`, in which the kernel tells times to user space on every architecture in use.
const TICKS_PER_SECOND: f64 = 100.0;

// === impl Larder ===

impl Larder {
    /// An empty cache before this registry as Docker Hub; `options` are further lines of the configuration, with dotted keys.
    pub async fn start(upstream: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = dir.path().join("cache").display().to_string();
        let config = format!(
            "server.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\ncache.dir = {cache:?}\nupstream.\"docker.io\".url = {upstream:?}\n{options}\n"
        );
        fs::write(dir.path().join("larder.toml"), config).expect("a file in the temporary directory");
        Stopped { dir }.start().await
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it shows its metrics.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    pub fn cache_dir(&self) -> PathBuf {
        self.stopped.dir.path().join("cache")
    }

    /// Processor seconds so far, of all threads, in user space and in the kernel.
    pub fn processor_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_pid())).expect("larder runs");
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let times = fields.split_ascii_whitespace().skip(11).take(2);
        times.map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / TICKS_PER_SECOND
    }

    /// The largest resident memory so far, in KiB.
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// What it has of memory now that is no file's, in KiB.
    pub fn anonymous_memory(&self) -> u64 {
        self.memory("RssAnon:")
    }

    fn memory(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_pid())).expect("larder runs");
        let found = status.lines().find_map(|line| line.strip_prefix(what)).expect("the kernel tells it");
        found.trim_end_matches("kB").trim().parse().expect("a number")
    }

    /// What it said on stderr, in this life and those before.
    pub fn log(&self) -> String {
        self.stopped.log()
    }

    /// SIGTERM, as service managers stop it.
    pub async fn stop(mut self) -> Stopped {
        kill_process(self.pid(), Signal::TERM).expect("larder runs");
        let ended = timeout(STOPS_WITHIN, async {
            while self.process.0.try_wait().expect("a child").is_none() {
                sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(ended.await.is_ok(), "larder does not stop in {STOPS_WITHIN:?}");
        self.stopped
    }

    /// SIGKILL, as the kernel ends it when memory is short.
    pub fn kill(self) -> Stopped {
        drop(self.process);
        self.stopped
    }
}

// === impl Stopped ===

impl Stopped {
    pub async fn start(self) -> Larder {
        let dir = self.dir.path();
        let log = File::options().create(true).append(true).open(dir.join("log")).expect("a file in the temporary directory");
        // The environment could name a proxy, or options.
        let child = Command::new(env!("CARGO_BIN_EXE_larder"))
            .env_clear()
            .arg("serve")
            .arg("--config")
            .arg(dir.join("larder.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("larder is built");
        let mut process = Process(child);
        let mut greeting = BufReader::new(process.0.stdout.take().expect("a pipe"));
        let lines = tokio::task::spawn_blocking(move || {
            let mut lines = String::new();
            // It ends with what to tell Docker.
            while !lines.contains("registry-mirrors") && greeting.read_line(&mut lines)? > 0 {}
            std::io::Result::Ok((lines, greeting))
        });
        let lines = timeout(STARTS_WITHIN, lines).await.map(|lines| lines.expect("it does not panic"));
        let Ok(Ok((lines, mut greeting))) = lines else { panic!("no greeting in {STARTS_WITHIN:?}: {}", self.log()) };
        let mut addresses = lines.split("http://").skip(1).map_while(|rest| rest.split_whitespace().next()?.parse().ok());
        let (Some(address), Some(admin)) = (addresses.next(), addresses.next()) else {
            panic!("larder does not start: {lines}{}", self.log());
        };
        // Read on, as a pipe without a reader would end it.
        std::thread::spawn(move || std::io::copy(&mut greeting, &mut std::io::sink()));
        Larder { address, admin, process, stopped: self }
    }

    pub fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// What it is started with.
    pub fn config(&self) -> String {
        fs::read_to_string(self.dir.path().join("larder.toml")).expect("it was started with it")
    }

    /// What it said on stderr, in all its lives.
    pub fn log(&self) -> String {
        read_or_empty(&self.dir.path().join("log"))
    }
}

fn read_or_empty(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

// === impl Process ===

impl Process {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
