//! Turns crates of kernels into PTX, and guards what `ptxas` makes of it.

mod arrivals;
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
use clap::{Parser, Subcommand, builder::PossibleValuesParser};

use crate::{
    ptx::Origin,
    target::{EXAMPLES, TARGETS, Target, ZIPSERV, root},
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
    /// Write the PTX (the default)
    Build {
        /// Crates of kernels [default: all]
        #[arg(value_parser = packages())]
        packages: Vec<String>,
    },
    /// Fail when the PTX is not what the sources give
    Check,
    /// Registers, stack, spills and shared memory of each kernel; fails on stack and spills
    Report,
    /// Compare instructions a weight with builder/budget.json; fails above it
    Budget {
        /// Write builder/budget.json instead
        #[arg(long)]
        update: bool,
    },
    /// Fail where a kernel lets bulk copies write to shared memory before its loads have read it
    Arrivals,
    /// Machine code of a kernel, and its instructions by loop and by pipe
    Sass {
        /// Name of the kernel
        kernel: String,
        /// Architecture [default: that of the last target that has the kernel]
        #[arg(long)]
        arch: Option<String>,
    },
    /// PTX of a kernel
    Ptx {
        /// Name of the kernel
        kernel: String,
        /// Architecture [default: that of the last target that has the kernel]
        #[arg(long)]
        arch: Option<String>,
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
    let build_all = Command::Build {
        packages: Vec::new(),
    };
    match Cli::parse().command.unwrap_or(build_all) {
        Command::Build { packages } => build(&packages),
        Command::Check => check::run(),
        Command::Report => ptxas::report(),
        Command::Budget { update } => budget::run(update),
        Command::Arrivals => arrivals::run(),
        Command::Sass { kernel, arch } => show::sass(&kernel, arch.as_deref()),
        Command::Ptx { kernel, arch } => show::ptx(&kernel, arch.as_deref()),
        Command::Finish {
            input,
            arch,
            compiler,
        } => finish(&input, &arch, compiler),
    }
}

/// The names of the crates of kernels.
fn packages() -> PossibleValuesParser {
    [ZIPSERV.name, EXAMPLES.name].into()
}

/// Compiles the targets of these crates and writes their PTX; reports on all if there is a `ptxas`.
fn build(packages: &[String]) -> Result<()> {
    let toolchain = Toolchain::find()?;
    println!("{toolchain}");
    for (target, ptx) in compile_all(&toolchain, packages)? {
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

/// The finished PTX of the targets of these crates, of all if there are none, in their order.
fn compile_all(
    toolchain: &Toolchain,
    packages: &[String],
) -> Result<Vec<(&'static Target, String)>> {
    let mut built: Vec<(&Target, String)> = Vec::new();
    for target in TARGETS {
        let package = target.package;
        if !packages.is_empty() && !packages.iter().any(|name| name == package.name) {
            continue;
        }
        let raw = compile::compile(toolchain, target)?;
        let ptx = finished(target, &raw, toolchain.version.clone())?;
        ensure!(
            !ptx.contains(&*root().to_string_lossy()),
            "{} names this machine's folders",
            target.name()
        );
        if let Some(line) = ptx::panic_path(&ptx) {
            bail!("{} can panic: `{line}`", target.name());
        }
        built.push((target, ptx));
    }
    for (target, _) in &built {
        let package = target.package;
        for launch in package.launches {
            let has = |(other, ptx): &(&Target, String)| {
                other.package.name == package.name && ptx::entry(ptx, launch.name).is_some()
            };
            ensure!(
                built.iter().any(has),
                "KERNELS of {} has {}, but no target has such a kernel",
                package.name,
                launch.name
            );
        }
    }
    Ok(built)
}

/// The compiler's PTX of a target, as the committed file has it.
fn finished(target: &Target, raw: &str, compiler: String) -> Result<String> {
    let package = target.package;
    let origin = Origin {
        compiler,
        source: source::hash(root(), package.folders)?,
    };
    ptx::finish(raw, package.prefix, target.sm, &origin, package.launches)
}

fn finish(input: &Path, arch: &str, compiler: String) -> Result<()> {
    let target = Target::of_arch(arch)?;
    let raw =
        fs::read_to_string(input).with_context(|| format!("cannot read {}", input.display()))?;
    write(target, &finished(target, &raw, compiler)?)
}

fn write(target: &Target, ptx: &str) -> Result<()> {
    let path = target.path();
    fs::create_dir_all(path.parent().expect("the file lies in a folder"))?;
    fs::write(&path, ptx).with_context(|| format!("cannot write {}", path.display()))?;
    println!(
        "wrote {}: {} kernels, {} KB",
        target.name(),
        ptx::entries(ptx).count(),
        ptx.len().div_ceil(1000)
    );
    Ok(())
}
