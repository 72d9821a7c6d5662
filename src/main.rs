//! Starts the program; everything else is in the library.

/// The system's allocator returns large buffers to the kernel and requests them again continually.
#[cfg(all(feature = "jemalloc", unix))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    tollgate::cli::run()
}
