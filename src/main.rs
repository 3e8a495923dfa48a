use std::process::ExitCode;

/// glibc's allocator keeps the memory of a crowd of readers after they have left.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Of a page of 2 MiB a few bytes in use keep all: a busy larder took twice the memory, and ever more of it. Where the kernel
    // knows no such pages, there is nothing to be done.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    larder::cli::run()
}
