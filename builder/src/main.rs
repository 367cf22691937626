//! Turns `gpu` into PTX, and guards what `ptxas` makes of it.

mod budget;
mod check;
mod compile;
mod ptx;
mod ptxas;
mod sass;
mod show;
mod source;
mod target;
mod toolchain;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use zipserv_gpu::launch::KERNELS;

use crate::{
    ptx::Origin,
    target::{TARGETS, Target, root},
    toolchain::Toolchain,
};

/// Builds and examines zipserv's kernels.
#[derive(Parser)]
#[command(name = "builder")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Write gpu/ptx (the default)
    Build,
    /// Fail when gpu/ptx is not what the sources give
    Check,
    /// Registers, stack, spills and shared memory of each kernel; fails on stack and spills
    Report,
    /// Compare instructions a weight with builder/budget.json; fails above it
    Budget {
        /// Write builder/budget.json instead
        #[arg(long)]
        update: bool,
    },
    /// Machine code of a kernel, with its loops and counts
    Sass {
        /// Name of the kernel
        kernel: String,
        /// Architecture
        #[arg(long, default_value = "90a")]
        arch: String,
    },
    /// PTX of a kernel
    Ptx {
        /// Name of the kernel
        kernel: String,
        /// Architecture
        #[arg(long, default_value = "90a")]
        arch: String,
    },
    /// Complete PTX that another compiler made, see builder/nvvm
    Finish {
        /// The other compiler's PTX
        input: PathBuf,
        /// Architecture
        #[arg(long)]
        arch: String,
        /// Name of the compiler, for the header
        #[arg(long)]
        compiler: String,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Cli::parse().command.unwrap_or(Command::Build) {
        Command::Build => build(),
        Command::Check => check::run(),
        Command::Report => ptxas::report(),
        Command::Budget { update } => budget::run(update),
        Command::Sass { kernel, arch } => show::sass(&kernel, &arch),
        Command::Ptx { kernel, arch } => show::ptx(&kernel, &arch),
        Command::Finish {
            input,
            arch,
            compiler,
        } => finish(&input, &arch, compiler),
    }
}

/// Compiles every target and writes its PTX; reports on it if there is a `ptxas`.
fn build() -> Result<()> {
    let toolchain = Toolchain::find()?;
    println!("{toolchain}");
    let built = compile_all(&toolchain)?;
    for (target, ptx) in TARGETS.iter().zip(built) {
        write(target, &ptx)?;
    }
    match ptxas::find("ptxas") {
        Ok(_) => ptxas::report(),
        Err(reason) => {
            println!("no report: {reason}");
            Ok(())
        }
    }
}

/// The finished PTX of every target, in their order.
fn compile_all(toolchain: &Toolchain) -> Result<Vec<String>> {
    let origin = Origin {
        compiler: toolchain.version.clone(),
        source: source::hash(root())?,
    };
    let mut built = Vec::new();
    for target in TARGETS {
        let raw = compile::compile(toolchain, target)?;
        let ptx = ptx::finish(&raw, target.sm, &origin, KERNELS)?;
        ensure!(
            !ptx.contains(&*root().to_string_lossy()),
            "the PTX for sm_{} names this machine's folders",
            target.sm
        );
        built.push(ptx);
    }
    for launch in KERNELS {
        if !built
            .iter()
            .any(|ptx| ptx::entry(ptx, launch.name).is_some())
        {
            bail!(
                "launch::KERNELS has {}, but no target has such a kernel",
                launch.name
            );
        }
    }
    Ok(built)
}

fn finish(input: &Path, arch: &str, compiler: String) -> Result<()> {
    let target = Target::of_arch(arch)?;
    let raw =
        fs::read_to_string(input).with_context(|| format!("cannot read {}", input.display()))?;
    let origin = Origin {
        compiler,
        source: source::hash(root())?,
    };
    write(target, &ptx::finish(&raw, target.sm, &origin, KERNELS)?)
}

fn write(target: &Target, ptx: &str) -> Result<()> {
    let path = target.path();
    fs::create_dir_all(path.parent().expect("the file lies in a folder"))?;
    fs::write(&path, ptx).with_context(|| format!("cannot write {}", path.display()))?;
    println!(
        "wrote gpu/ptx/zipserv_sm_{}.ptx: {} kernels, {} KB",
        target.sm,
        ptx::entries(ptx).count(),
        ptx.len() / 1000
    );
    Ok(())
}
