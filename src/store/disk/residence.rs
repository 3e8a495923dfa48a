//! Which bytes of a file are in memory.

use std::fs;
use std::os::fd::AsRawFd as _;

/// `struct cachestat_range`
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat`, in pages.
#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// The same number wherever Linux gives new system calls one number.
const CACHESTAT: libc::c_long = 451;

/// Whether the page cache has a page for each of these bytes; `None` if the kernel cannot tell: Linux learned it in 6.5, and a
/// filter of system calls may not know it.
pub(super) fn has_pages(file: &fs::File, offset: u64, length: usize) -> Option<bool> {
    let page = rustix::param::page_size() as u64;
    let end = offset.saturating_add(length as u64);
    let pages = end.div_ceil(page) - offset / page;
    Some(count(file, &Range { offset, length: length as u64 })?.cached >= pages)
}

#[expect(unsafe_code, reason = "no library has this call yet")]
fn count(file: &fs::File, range: &Range) -> Option<Counts> {
    let mut counts = Counts::default();
    // SAFETY: both are what the call reads and writes, and live longer than it does.
    let answer = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const *range, &raw mut counts, 0) };
    (answer == 0).then_some(counts)
}
