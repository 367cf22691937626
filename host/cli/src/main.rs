//! The program `zipserv`; `lib.rs` has it all, for packages that bring it along.

fn main() -> std::process::ExitCode {
    zipserv_cli::run(std::env::args_os())
}
