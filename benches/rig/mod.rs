//! What the benches stand on beside `tests/support`: larder as a process of its own, clients that cost next to nothing,
//! and a place for the upstream where the clients do not hold it up.
//!
//! Small machines are shared by all three, so what is measured is larder only as far as the others are cheap. They print
//! what they find and say PASS or FAIL where there is a bar; nobody's tests fail because a machine was busy.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "each bench uses a part of it, prints, and has nothing to do after a failure but fail"
)]

use std::{fmt::Display, fs, process::ExitCode, str::FromStr, sync::LazyLock, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

mod client;
mod disk;
mod process;

pub use self::{
    client::{Arrival, Connection},
    disk::{Sampler, Samples, blobs},
    process::{Larder, Stopped},
};

pub const MIB: f64 = (1 << 20) as f64;
pub const GIB: f64 = (1 << 30) as f64;

/// No bench takes longer.
const LIMIT: Duration = Duration::from_mins(5);

/// Runs a bench on this thread alone.
pub fn run(bench: impl Future<Output = ()>) -> ExitCode {
    println!("load before: {}", load());
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome = runtime.block_on(async { timeout(LIMIT, bench).await });
    println!("load after:  {}", load());
    if outcome.is_err() {
        println!("FAIL: not done after {LIMIT:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs this, and all that it spawns, on a thread beside that of the clients: it is the upstream's.
pub async fn aside<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> T {
    static ASIDE: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"));
    ASIDE.spawn(task).await.expect("it does not panic")
}

/// The `n`-th argument after `cargo bench --bench NAME --`, or this.
pub fn argument<T: FromStr<Err: Display>>(n: usize, otherwise: T) -> T {
    let given = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).nth(n);
    given.map_or(otherwise, |text| text.parse().unwrap_or_else(|error| panic!("{text}: {error}")))
}

pub fn verdict(pass: bool) -> &'static str {
    if pass { "PASS" } else { "FAIL" }
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, f64::max)
}

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
