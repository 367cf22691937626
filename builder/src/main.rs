//! Turns crates of kernels into PTX, and guards what `ptxas` makes of it.

mod arrivals;
mod budget;
mod check;
mod compile;
mod diff;
mod nvvm;
mod ptxas;
mod sass;
mod show;
mod toolchain;
mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use builder::{ptx, source, target};
use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser};

use crate::{
    nvvm::Nvvm,
    ptx::{Launch, Origin},
    target::{Target, packages, root, scratch, shown, targets},
    toolchain::Toolchain,
};

/// Builds and examines zipserv's kernels.
#[derive(Parser)]
#[command(name = "builder", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    how: How,
    #[command(subcommand)]
    command: Option<Command>,
}

/// How to build.
#[derive(Args)]
struct How {
    /// The part of the compiler that makes PTX of LLVM's intermediate code
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// Folder for the files [default: rustc's: the committed files; nvvm's: target/ptx/nvvm]
    #[arg(short, long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// What makes PTX of LLVM's intermediate code.
#[derive(Clone, Copy, Default, PartialEq, ValueEnum)]
enum Backend {
    /// rustc's own, which the committed files are made with
    #[default]
    Rustc,
    /// NVIDIA's libNVVM
    Nvvm,
}

#[derive(Subcommand)]
enum Command {
    /// Write the PTX (the default)
    Build {
        /// Crates of kernels [default: all]
        #[arg(value_parser = parser())]
        packages: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Print the commands that install the compiler and CUDA's tools
    Tools,
    /// Fail when the PTX is not what the sources give
    Check {
        /// Fail also where bytes cannot be compared, or a file is of another compiler
        #[arg(long)]
        strict: bool,
    },
    /// Registers, stack, spills and shared memory of each kernel; fails on stack and spills
    Report {
        /// Name of the only kernel to look at [default: all]
        kernel: Option<String>,
    },
    /// Registers, instructions on the hot path and machine code of each kernel against another revision's
    Diff {
        /// The revision, as git names it
        #[arg(default_value = "HEAD")]
        revision: String,
    },
    /// Compare instructions a weight with builder/budget.json; fails above it
    Budget {
        /// Name of the only kernel to look at [default: all]
        #[arg(conflicts_with = "update")]
        kernel: Option<String>,
        /// Fail also where another ptxas or nvdisasm makes them incomparable
        #[arg(long, conflicts_with = "update")]
        strict: bool,
        /// Write builder/budget.json instead
        #[arg(long)]
        update: bool,
    },
    /// Fail where a kernel lets bulk copies write to shared memory before its loads have read it
    Arrivals {
        /// Fail also where another ptxas or nvdisasm is found
        #[arg(long)]
        strict: bool,
    },
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
    let Cli { how, command } = Cli::parse();
    let packages = Vec::new();
    match command.unwrap_or(Command::Build { packages, how }) {
        Command::Build { packages, how } => build(&packages, how),
        Command::Tools => {
            tools::print();
            Ok(())
        }
        Command::Check { strict } => check::run(strict),
        Command::Report { kernel } => {
            known(kernel.as_deref())?;
            ptxas::report(&committed()?, kernel.as_deref())
        }
        Command::Diff { revision } => diff::run(&revision),
        Command::Budget { update: true, .. } => budget::update(),
        Command::Budget { strict, kernel, .. } => {
            known(kernel.as_deref())?;
            budget::run(strict, kernel.as_deref())
        }
        Command::Arrivals { strict } => arrivals::run(strict),
        Command::Sass { kernel, arch } => show::sass(&kernel, arch.as_deref()),
        Command::Ptx { kernel, arch } => show::ptx(&kernel, arch.as_deref()),
        Command::Finish {
            input,
            arch,
            compiler,
        } => finish(&input, &arch, compiler),
    }
}

/// Fails where there is no such kernel, and says which there are.
fn known(kernel: Option<&str>) -> Result<()> {
    kernel.map_or(Ok(()), |kernel| show::find(kernel, None).map(|_| ()))
}

/// Every committed file.
fn committed() -> Result<Vec<(&'static Target, PathBuf)>> {
    let targets = targets()?.iter();
    Ok(targets.map(|target| (target, target.path())).collect())
}

/// The names of the crates of kernels; any where cargo does not tell.
fn parser() -> PossibleValuesParser {
    packages().unwrap_or_default().into()
}

/// Compiles the targets of these crates, writes their PTX, and reports on it if there is a `ptxas`,
/// which libNVVM's PTX must pass.
fn build(packages: &[String], How { backend, out }: How) -> Result<()> {
    let toolchain = Toolchain::find()?;
    println!("{toolchain}");
    let (nvvm, out) = match backend {
        Backend::Rustc => (None, out),
        Backend::Nvvm => {
            let nvvm = Nvvm::load()?;
            println!("{nvvm}");
            (Some(nvvm), out.or_else(|| Some(scratch().join("nvvm"))))
        }
    };
    let mut written = Vec::new();
    for (target, ptx) in compile_all(&toolchain, nvvm.as_ref(), packages)? {
        let path = match &out {
            Some(folder) => folder.join(target.file_name()),
            None => target.path(),
        };
        write(&path, &ptx)?;
        written.push((target, path));
    }
    match tools::find("ptxas") {
        Ok(_) => ptxas::report(&written, None),
        // What libNVVM made is nothing until `ptxas` took it.
        Err(reason) if nvvm.is_some() => Err(reason),
        Err(reason) => {
            println!("no report: {reason}");
            Ok(())
        }
    }
}

/// The finished PTX of the targets of these crates, of all if there are none, in their order; by
/// libNVVM if there is one.
fn compile_all(
    toolchain: &Toolchain,
    nvvm: Option<&Nvvm>,
    packages: &[String],
) -> Result<Vec<(&'static Target, String)>> {
    let mut built: Vec<(&Target, String)> = Vec::new();
    for target in targets()? {
        let package = &target.package;
        if !packages.is_empty() && !packages.iter().any(|name| *name == package.name) {
            continue;
        }
        let code = compile::compile(toolchain, target)?;
        let raw = code.ptx()?;
        let (launches, version) = (Launch::of(&raw), &toolchain.version);
        let ptx = match nvvm {
            None => finished(target, &raw, version.clone(), &launches)?,
            Some(nvvm) => {
                let (raw, nvvm) = nvvm.ptx(&code.llvm_ir()?, &target.sm)?;
                let compiler = format!("{nvvm}, of the code of {version}");
                finished(target, &raw, compiler, &launches)?
            }
        };
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
    Ok(built)
}

/// The compiler's PTX of a target, as the committed file has it.
fn finished(target: &Target, raw: &str, compiler: String, launches: &[Launch]) -> Result<String> {
    let package = &target.package;
    let origin = Origin {
        compiler,
        source: source::hash(root(), &package.folders)?,
    };
    ptx::finish(raw, &package.manifest.prefix, &target.sm, &origin, launches)
}

fn finish(input: &Path, arch: &str, compiler: String) -> Result<()> {
    let target = Target::of_arch(arch)?;
    let raw =
        fs::read_to_string(input).with_context(|| format!("cannot read {}", input.display()))?;
    // That compiler's `kernel!` writes no launches; the committed file has them.
    let launches = Launch::of(&target.read()?);
    write(
        &target.path(),
        &finished(target, &raw, compiler, &launches)?,
    )
}

fn write(path: &Path, ptx: &str) -> Result<()> {
    fs::create_dir_all(path.parent().expect("the file lies in a folder"))?;
    fs::write(path, ptx).with_context(|| format!("cannot write {}", path.display()))?;
    println!(
        "wrote {}: {} kernels, {} KB",
        shown(path),
        ptx::entries(ptx).count(),
        ptx.len().div_ceil(1000)
    );
    Ok(())
}
