//! Starts the program; everything else is in the library.

/// The system's allocator gives large buffers back and asks for them again all the time.
#[cfg(all(feature = "jemalloc", unix))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    tollgate::cli::run()
}
