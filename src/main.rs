use std::process::ExitCode;

/// glibc's allocator keeps the memory of a crowd of readers after they have left.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    larder::cli::run()
}
