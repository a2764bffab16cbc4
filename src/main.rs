//! The command: reads the arguments, chooses a mode, prints the error chain.

use std::process::ExitCode;

use clap::Parser;
use millstream::cli::{self, Arguments};

fn main() -> ExitCode {
    limit_arenas();
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

/// Has the C library's allocator keep as many arenas as there are cores. It would keep eight times as many, and what one
/// thread allocates and another frees, as messages and batches are, stays in each of them: a tenth of the memory.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn limit_arenas() {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // SAFETY: it is called before there is another thread, and takes two numbers. A limit that is refused is no harm.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, cores.try_into().unwrap_or(libc::c_int::MAX)) };
}

#[cfg(not(target_env = "gnu"))]
fn limit_arenas() {}
