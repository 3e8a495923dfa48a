//! larder as its users start it: the program itself, in a process of its own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::secrets::{self, Ports, Written};

/// A running `larder serve`. Dropped, it is killed.
pub struct Process {
    child: Child,
    address: SocketAddr,
    greeting: String,
    log: PathBuf,
    written: Written,
    _searched: Ports,
}

/// How a larder ended that was not to run on.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    /// What it said on stderr: its log, or why it did not start.
    pub log: String,
}

// === impl Process ===

impl Process {
    /// Starts it with a cache in `dir` and waits for its greeting.
    pub fn start(dir: &Path, settings: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::run(command(&[], dir, settings, environment), dir)
    }

    /// The same with limits, as of `prlimit`: `--nofile=64`.
    pub fn start_within(limits: &[&str], dir: &Path, settings: &[&str]) -> Self {
        Self::run(command(limits, dir, settings, &[]), dir)
    }

    /// The same with a log that nobody reads.
    pub fn start_unread(dir: &Path, settings: &[&str]) -> Self {
        let mut command = command(&[], dir, settings, &[]);
        command.stderr(Stdio::piped());
        Self::run(command, dir)
    }

    /// The same as systemd does that has opened this socket for it.
    pub fn start_activated(dir: &Path, socket: OwnedFd, name: &str) -> Self {
        let larder = command(&[], dir, &[], &[("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", name)]);
        let mut shell = Command::new("/bin/sh");
        // The variables name the process that is to have it, and descriptors that are handed over begin at 3.
        shell.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 </dev/null"]).arg(larder.get_program()).args(larder.get_args());
        let environment = larder.get_envs().filter_map(|(name, value)| Some((name, value?)));
        shell.env_clear().envs(environment).current_dir(dir).stdin(socket).stdout(Stdio::piped());
        shell.stderr(File::create(dir.join("log")).expect("a log"));
        Self::run(shell, dir)
    }

    fn run(mut command: Command, dir: &Path) -> Self {
        let written = Written::to(dir);
        let mut child = command.spawn().expect("the program starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut greeting = String::new();
        // It ends with what to tell Docker.
        while !greeting.contains("registry-mirrors") && stdout.read_line(&mut greeting).expect("a line") > 0 {}
        let address = greeting.split("http://").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let log = dir.join("log");
        let Some(address) = address else {
            panic!("larder did not say where it listens: {greeting}{}", fs::read_to_string(log).unwrap_or_default());
        };
        let ports = greeting.split("://").skip(1).filter_map(|rest| rest.split_whitespace().next()?.parse().ok());
        let searched = Ports::of(ports);
        Self { child, address, greeting, log, written, _searched: searched }
    }

    /// Runs a larder that is expected not to start.
    pub fn fail(dir: &Path, settings: &[&str], environment: &[(&str, &str)]) -> Ended {
        let written = Written::to(dir);
        let output = command(&[], dir, settings, environment).output().expect("the program starts");
        written.search();
        let log = fs::read_to_string(dir.join("log")).expect("a log");
        Ended { status: output.status, stdout: String::from_utf8(output.stdout).expect("text"), log }.searched()
    }

    /// Runs a larder that cannot begin to serve, and tells it to stop as soon as it hears that.
    pub fn stop_at_start(dir: &Path, settings: &[&str]) -> Ended {
        let child = command(&[], dir, settings, &[]).spawn().expect("the program starts");
        let (greeting, log, written) = (String::new(), dir.join("log"), Written::to(dir));
        let mut larder = Self { child, address: ([0, 0, 0, 0], 0).into(), greeting, log, written, _searched: Ports::of([]) };
        let deadline = Instant::now() + PATIENCE;
        while !larder.hears(15) {
            assert!(Instant::now() < deadline, "it does not hear signals: {}", larder.log());
            thread::sleep(Duration::from_millis(1));
        }
        larder.tell_to_stop();
        while larder.child.try_wait().expect("it is ours").is_none() {
            assert!(Instant::now() < deadline, "it does not end: {}", larder.log());
            thread::sleep(Duration::from_millis(1));
        }
        larder.wait()
    }

    /// Whether it has a handler for this signal.
    fn hears(&self, signal: u32) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("it catches some");
        u64::from_str_radix(caught.trim(), 16).expect("a number") >> (signal - 1) & 1 == 1
    }

    /// Runs `larder health`.
    pub fn health(arguments: &[&str]) -> Ended {
        let output =
            Command::new(env!("CARGO_BIN_EXE_larder")).arg("health").args(arguments).output().expect("the program starts");
        Ended::of(output)
    }

    /// Runs a command beside what else the test does; what it says goes to a file.
    pub fn watching(dir: &Path, arguments: &[&str], said: &Path) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(arguments).env_clear().current_dir(dir).stdin(Stdio::null()).stdout(File::create(said).expect("a file"));
        command.args(["--set", &format!("cache.dir={}", dir.join("cache").display())]);
        command.spawn().expect("the program starts")
    }

    /// Runs a command that is for no cache.
    pub async fn plain(dir: &Path, arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(arguments).env_clear().current_dir(dir).stdin(Stdio::null());
        Ended::of_command(command).await
    }

    /// Runs one of larder's commands on the cache in `dir`, while the registries of the test go on answering.
    pub async fn order(dir: &Path, arguments: &[&str], settings: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(arguments).env_clear().current_dir(dir).stdin(Stdio::null());
        command.args(["--set", &format!("cache.dir={}", dir.join("cache").display())]);
        settings.iter().for_each(|setting| _ = command.args(["--set", setting]));
        let written = Written::to(dir);
        let ended = Ended::of_command(command).await;
        written.search();
        ended
    }

    /// Where it listens for its operator.
    pub fn admin(&self) -> &str {
        let line = self.greeting.lines().find(|line| line.starts_with("Metrics")).expect("it says where");
        line.split("http://").nth(1).expect("an address")
    }

    /// Where it speaks TLS first.
    pub fn tls_address(&self) -> SocketAddr {
        let address = self.greeting.split("https://").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        address.expect("it speaks TLS")
    }

    /// The lines that an operator sees first.
    pub fn greeting(&self) -> &str {
        &self.greeting
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How much memory it has, in bytes.
    pub fn memory(&self) -> u64 {
        self.memory_in("VmRSS:")
    }

    /// The most that it has had since [`forget_peak`](Self::forget_peak).
    pub fn peak(&self) -> u64 {
        self.memory_in("VmHWM:")
    }

    /// Where that is not allowed, the most is still that of all its time.
    pub fn forget_peak(&self) {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.id()), "5");
    }

    fn memory_in(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let memory = status.lines().find_map(|words| words.strip_prefix(line)).expect("it has memory");
        memory.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).expect("it runs").count()
    }

    /// Where it can be connected to over the network.
    pub fn listens_at(&self) -> BTreeSet<SocketAddr> {
        const LISTENS: &str = "0A";
        let fds = fs::read_dir(format!("/proc/{}/fd", self.id())).expect("it runs").flatten();
        let own: Vec<PathBuf> = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
        let address = |text: &str| {
            let (host, port) = text.split_once(':').expect("an address");
            // In words of four bytes, each as it is in memory.
            let words = host.as_bytes().chunks(8).map(|word| std::str::from_utf8(word).expect("hex"));
            let bytes: Vec<u8> = words.flat_map(|word| u32::from_str_radix(word, 16).expect("hex").to_ne_bytes()).collect();
            let ip = match <[u8; 4]>::try_from(&bytes[..]) {
                Ok(four) => IpAddr::from(four),
                Err(_) => <[u8; 16]>::try_from(&bytes[..]).expect("sixteen").into(),
            };
            SocketAddr::new(ip, u16::from_str_radix(port, 16).expect("hex"))
        };
        let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/net/{table}")).expect("there is TCP"));
        let sockets =
            tables.iter().flat_map(|table| table.lines().skip(1)).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let listening = sockets.filter(|fields| fields[3] == LISTENS && own.contains(&format!("socket:[{}]", fields[9]).into()));
        listening.map(|fields| address(fields[1])).collect()
    }

    /// The value of a metric, with its labels as they are written; 0 if it has none yet.
    pub async fn metric(&self, name: &str) -> u64 {
        let page = super::get(format!("http://{}/metrics", self.admin())).await.expect(200).text();
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or_default()
    }

    /// Waits until a metric has come to a value that will do.
    pub async fn until(&self, name: &str, will_do: impl Fn(u64) -> bool) {
        let comes = async {
            while !will_do(self.metric(name).await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let came = tokio::time::timeout(PATIENCE, comes).await;
        assert!(came.is_ok(), "{name} is {} and stays so", self.metric(name).await);
    }

    /// As `kill -9` does.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop, as a service manager does, and waits.
    pub fn terminate(self) -> Ended {
        self.tell_to_stop();
        self.wait()
    }

    pub fn tell_to_stop(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
    }

    /// Has it read its configuration anew.
    pub fn hang_up(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &id]).status().expect("kill runs").success());
    }

    pub fn wait(mut self) -> Ended {
        let status = self.child.wait().expect("it ends");
        Ended { status, stdout: self.greeting.clone(), log: self.log() }
    }

    /// The log, once this is so of it: it is written behind what it tells of.
    pub async fn log_when(&self, what: &str, so: impl Fn(&str) -> bool) -> String {
        super::until(what, || so(&self.log())).await;
        self.log()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        secrets::search("what it prints", self.greeting.as_bytes());
        secrets::search("the log", &fs::read(&self.log).unwrap_or_default());
        self.written.search();
        secrets::tell();
    }
}

// === impl Ended ===

impl Ended {
    async fn of_command(mut command: Command) -> Self {
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it does not panic");
        Self::of(output.expect("the program starts"))
    }

    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { status: output.status, stdout: text(output.stdout), log: text(output.stderr) }.searched()
    }

    /// Fails the test if a secret is in what it said.
    fn searched(self) -> Self {
        secrets::search("what it prints", self.stdout.as_bytes());
        secrets::search("the log", self.log.as_bytes());
        secrets::tell();
        self
    }
}

fn command(limits: &[&str], dir: &Path, settings: &[&str], environment: &[(&str, &str)]) -> Command {
    let program = env!("CARGO_BIN_EXE_larder");
    let mut command = Command::new(if limits.is_empty() { program } else { "/usr/bin/prlimit" });
    if !limits.is_empty() {
        command.args(limits).arg(program);
    }
    command.arg("serve").env_clear().envs(environment.iter().copied()).current_dir(dir);
    command.args([
        "--set",
        "server.listen=127.0.0.1:0",
        "--set",
        "admin.listen=127.0.0.1:0",
        "--set",
        &format!("cache.dir={}", dir.join("cache").display()),
        // How full this machine's disk is decides nothing.
        "--set",
        "cache.min_free=0%",
    ]);
    settings.iter().for_each(|setting| _ = command.args(["--set", setting]));
    if dir.join("larder.toml").exists() {
        command.arg("--config").arg(dir.join("larder.toml"));
    }
    // A file, so that it can be read at any time.
    let log = File::create(dir.join("log")).expect("a log");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command
}
