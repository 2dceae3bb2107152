//! The `daskade` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    daskade::cli::main()
}
