//! The command: reads the arguments, chooses a mode, prints the error chain.

use std::process::ExitCode;

use clap::Parser;
use millstream::cli::{self, Arguments};

fn main() -> ExitCode {
    tune_allocator();
    let arguments = Arguments::parse();
    cli::start_logging();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no threads could be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {}", error.chain());
            cli::exit_code(&error).into()
        }
    }
}

/// Has the C library's allocator keep as many arenas as there are cores, and the memory in them. It would have eight times
/// as many, and what one thread allocates and another frees, as messages and batches are, stays in each of them: a tenth
/// of the memory. And each epoch would give back what the next one takes again, a page fault for every 4 KiB.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn tune_allocator() {
    /// What is larger is mapped by itself, and given back at once; it is the most that may be asked for.
    const MAPPED_BYTES: libc::c_int = 32 << 20;
    /// What may be free at the end of the main arena. Others are made of pieces of 64 MiB, which by this never shrink; one
    /// that is free as a whole goes.
    const KEPT_BYTES: libc::c_int = 128 << 20;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let arenas = cores.try_into().unwrap_or(libc::c_int::MAX);
    let options =
        [(libc::M_ARENA_MAX, arenas), (libc::M_MMAP_THRESHOLD, MAPPED_BYTES), (libc::M_TRIM_THRESHOLD, KEPT_BYTES)];
    for (option, value) in options {
        // SAFETY: it is called before there is another thread, and takes two numbers. One that is refused is no harm.
        unsafe { libc::mallopt(option, value) };
    }
}

#[cfg(not(target_env = "gnu"))]
fn tune_allocator() {}
