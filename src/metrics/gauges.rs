//! What is at this moment: looked up when someone reads the page.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::Metrics;

/// What an account may still fetch from an upstream that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetGauges {
    pub limit: u64,
    pub remaining: u64,
    pub window_seconds: u64,
    /// Until there is a budget again, where there is none now.
    pub reset_seconds: Option<u64>,
}

/// What the cache takes of the disk, in bytes, by what it is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheGauges {
    /// What it may take, all together.
    pub budget: u64,
    /// Verified blobs.
    pub committed: u64,
    /// Those of them that are not evicted.
    pub pinned: u64,
    /// Files on their way in that nobody is filling.
    pub partial: u64,
    /// Promised to those that are being filled.
    pub reserved: u64,
    /// Found damaged and set aside.
    pub quarantined: u64,
    /// Removed, or about to be, and not off the disk yet: somebody reads them.
    pub leaving: u64,
    pub blobs: u64,
    /// How long ago the blob was last used that nobody has used for longest; 0 where there is none.
    pub oldest_use_seconds: u64,
    /// True while the disk fails and what is missing goes past the cache.
    pub degraded: bool,
}

/// The file system that holds the cache, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskGauges {
    pub free: u64,
    pub size: u64,
    /// What the cache leaves free.
    pub floor: u64,
}

/// What is being fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillGauges {
    pub running: u64,
    /// Who waits for it, or reads it.
    pub clients: u64,
}

/// What the process has of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProcessGauges {
    /// Of all processors, since it began.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub open_fds: u64,
    pub max_fds: u64,
    pub threads: u64,
    /// Since the epoch.
    pub start_seconds: f64,
}

/// The same as metrics.
#[derive(Default)]
pub(super) struct Process {
    pub(super) cpu: Counter<f64, AtomicU64>,
    pub(super) resident: Gauge,
    pub(super) virtual_memory: Gauge,
    pub(super) open_fds: Gauge,
    pub(super) max_fds: Gauge,
    pub(super) threads: Gauge,
    pub(super) start: Gauge<f64, AtomicU64>,
}

// === impl Metrics ===

impl Metrics {
    /// Replaces what is shown of who is left alone, in seconds.
    pub fn set_cool_downs<'a>(&self, cool_downs: impl Iterator<Item = (&'a str, u64)>) {
        self.0.upstream_cool_down.clear();
        for (upstream, seconds) in cool_downs {
            self.0.upstream_cool_down.get_or_create(&[("upstream", upstream.into())]).set(signed(seconds));
        }
    }

    /// Replaces what is shown of all budgets, by upstream and account.
    pub fn set_budgets<'a>(&self, budgets: impl Iterator<Item = (&'a str, &'a str, BudgetGauges)>) {
        let families = [&self.0.budget_limit, &self.0.budget_remaining, &self.0.budget_window, &self.0.budget_reset];
        families.iter().for_each(|family| family.clear());
        for (upstream, account, budget) in budgets {
            let BudgetGauges { limit, remaining, window_seconds, reset_seconds } = budget;
            let labels = [("upstream", upstream.to_owned()), ("account", account.to_owned())];
            let values = [Some(limit), Some(remaining), Some(window_seconds), reset_seconds];
            for (family, value) in families.iter().zip(values) {
                value.iter().for_each(|value| _ = family.get_or_create(&labels).set(signed(*value)));
            }
        }
    }

    /// Replaces what is shown of the fills under way.
    pub fn set_fills(&self, FillGauges { running, clients }: FillGauges) {
        self.0.fills_running.set(signed(running));
        self.0.fill_clients.set(signed(clients));
    }

    /// Replaces what is shown of the cache.
    pub fn set_cache(&self, cache: CacheGauges) {
        let CacheGauges { committed, partial, reserved, quarantined, leaving, .. } = cache;
        let bytes = [
            ("committed", committed),
            ("partial", partial),
            ("reserved", reserved),
            ("quarantined", quarantined),
            ("leaving", leaving),
        ];
        for (what, bytes) in bytes {
            self.0.cache_bytes.get_or_create(&[("for", what.into())]).set(signed(bytes));
        }
        let CacheGauges { budget, pinned, blobs, oldest_use_seconds, degraded, .. } = cache;
        self.0.cache_max.set(signed(budget));
        self.0.cache_pinned.set(signed(pinned));
        self.0.cache_blobs.set(signed(blobs));
        self.0.cache_oldest.set(signed(oldest_use_seconds));
        self.0.cache_state.set(i64::from(degraded));
    }

    /// Replaces what is shown of the file system.
    pub fn set_disk(&self, DiskGauges { free, size, floor }: DiskGauges) {
        self.0.disk_free.set(signed(free));
        self.0.disk_size.set(signed(size));
        self.0.disk_floor.set(signed(floor));
    }

    /// Replaces what is shown of the process.
    pub fn set_process(&self, process: ProcessGauges) {
        let ProcessGauges { cpu_seconds, resident_bytes, virtual_bytes, open_fds, max_fds, threads, start_seconds } = process;
        let of = &self.0.process;
        // It is the kernel that counts. What it tells never falls.
        of.cpu.inner().store(cpu_seconds.to_bits(), std::sync::atomic::Ordering::Relaxed);
        of.resident.set(signed(resident_bytes));
        of.virtual_memory.set(signed(virtual_bytes));
        of.open_fds.set(signed(open_fds));
        of.max_fds.set(signed(max_fds));
        of.threads.set(signed(threads));
        of.start.set(start_seconds);
    }
}

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
