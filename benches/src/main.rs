//! The program `zipserv-bench`: measures the kernels on the GPU at hand, and shows what was measured.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run(std::env::args_os())
}
