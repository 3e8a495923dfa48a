//! What this process has of the machine, as the kernel tells it in `/proc` (proc(5)).

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::metrics::ProcessGauges;

/// `None` where the kernel does not tell: no descriptor is left to ask it with.
#[expect(clippy::disallowed_methods, reason = "nothing of it is on a disk")]
pub(super) fn ours() -> Option<ProcessGauges> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // That of the directory itself is among them.
    let open_fds = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    let started = Stat::parse(&stat)?;
    let [since_boot, cpu] = [ClockId::Boottime, ClockId::ProcessCPUTime].map(seconds);
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let runs = since_boot.saturating_sub(ticks(started.start));
    Some(ProcessGauges {
        cpu_seconds: cpu.as_secs_f64(),
        resident_bytes: started.resident_pages * page_size() as u64,
        virtual_bytes: started.virtual_bytes,
        open_fds: open_fds as u64,
        max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        threads: started.threads,
        start_seconds: since_1970.saturating_sub(runs).as_secs_f64(),
    })
}

/// `/proc/self/stat`
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    threads: u64,
    /// After the machine, in ticks.
    start: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

// === impl Stat ===

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name, in parentheses, may have any of them in it. The field behind it is the third.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self { threads: field(20)?, start: field(22)?, virtual_bytes: field(23)?, resident_pages: field(24)? })
    }
}

fn ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000) / clock_ticks_per_second().max(1))
}

fn seconds(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let text = "71 (a) b (c) R 1 71 71 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 9 0 4242 8192000 300 18446744073709551615 1";
        let stat = Stat { threads: 9, start: 4242, virtual_bytes: 8_192_000, resident_pages: 300 };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("71 (larder) R 1"), None);
    }

    #[test]
    fn what_the_kernel_tells_is_of_this_process() {
        let before = ours().unwrap();
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(before.start_seconds);
        assert!(began.elapsed().unwrap() < Duration::from_hours(24), "{before:?}");
        assert!(before.resident_bytes > 1 << 20 && before.virtual_bytes > before.resident_bytes, "{before:?}");
        assert!(before.threads >= 1 && before.open_fds >= 3 && before.max_fds > before.open_fds, "{before:?}");
        let mut sum = 0_u64;
        while ours().unwrap().cpu_seconds <= before.cpu_seconds {
            sum = std::hint::black_box(sum + 1);
        }
    }
}
