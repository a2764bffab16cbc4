//! The command: reads the arguments, chooses a mode, prints the error chain.

use std::process::ExitCode;

use clap::Parser;
use millstream::cli::{self, Arguments};

fn main() -> ExitCode {
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
