//! Finds a compiler of device code: cargo, rustc and the sources of `core`.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    target::root,
    tools::{APT, COMPILER, RUST},
};

/// Names a cargo to use instead of those found; its rustc lies beside it.
pub const CARGO_VARIABLE: &str = "ZIPSERV_DEVICE_CARGO";

/// A usable compiler.
pub struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// Release, build and LLVM: compilers of equal versions write equal PTX.
    pub version: String,
}

impl Toolchain {
    /// The environment's toolchain. Or else, of rustup's and the system's, the compiler of the
    /// committed PTX, and any of its release where that is not there. Installs nothing.
    pub fn find() -> Result<Self> {
        if let Some(cargo) = env::var_os(CARGO_VARIABLE) {
            return Self::probe(Path::new(&cargo))
                .with_context(|| format!("{CARGO_VARIABLE} does not help"));
        }
        let (mut found, mut reasons) = (Vec::new(), Vec::new());
        let system = |folder| Ok(Path::new(folder).join("cargo"));
        for (place, cargo) in [
            ("rustup", rustup_cargo()),
            ("/usr/local/bin", system("/usr/local/bin")),
            ("/usr/bin", system("/usr/bin")),
        ] {
            match cargo.and_then(|cargo| Self::probe_pinned(&cargo)) {
                Ok(toolchain) => found.push(toolchain),
                Err(reason) => reasons.push(format!("{place}: {reason:#}")),
            }
        }
        found.sort_by_key(|toolchain| !toolchain.writes_the_committed_ptx());
        found.into_iter().next().with_context(|| {
            format!(
                "no compiler for device code.\n  {CARGO_VARIABLE}: not set\n  {}\n{}\n\
                 Where other bytes than the committed ones will do, another Rust {RUST} with the sources of its library is enough:\n  \
                 rustup toolchain install {RUST} --profile minimal --component rust-src\n\
                 or set {CARGO_VARIABLE} to the cargo of a toolchain that has them.",
                reasons.join("\n  "),
                install()
            )
        })
    }

    /// Whether equal sources give equal bytes here.
    pub fn writes_the_committed_ptx(&self) -> bool {
        self.version == COMPILER
    }

    /// Accepts `cargo` if it is of the pinned release line.
    fn probe_pinned(cargo: &Path) -> Result<Self> {
        let toolchain = Self::probe(cargo)?;
        let line = RUST.trim_end_matches(|c: char| c != '.');
        ensure!(
            toolchain.version.starts_with(&format!("rustc {line}")),
            "{}, where {RUST} is wanted",
            toolchain.version
        );
        Ok(toolchain)
    }

    /// Accepts `cargo` if it runs and has a rustc and the sources of `core`.
    fn probe(cargo: &Path) -> Result<Self> {
        ensure!(cargo.is_file(), "there is no {}", cargo.display());
        let rustc = cargo.with_file_name("rustc");
        ensure!(rustc.is_file(), "there is no {}", rustc.display());
        let version = version(&output(&rustc, &["-vV"])?)?;
        let sysroot = output(&rustc, &["--print", "sysroot"])?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        ensure!(
            core.is_dir(),
            "{version} lacks the sources of its library (rust-src)"
        );
        Ok(Self {
            cargo: cargo.to_owned(),
            rustc,
            version,
        })
    }

    /// A command that runs this cargo in the repository.
    pub fn cargo(&self) -> Command {
        let mut command = clean(&self.cargo);
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, self.cargo.display())
    }
}

/// A command without what the cargo and rustup that started the builder left in the environment.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let foreign = text.starts_with("CARGO") || text.starts_with("RUST");
        if foreign && !["CARGO_HOME", "RUSTUP_HOME"].contains(&text.as_ref()) {
            command.env_remove(&name);
        }
    }
    command
}

fn output(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = clean(program)
        .env("RUSTUP_AUTO_INSTALL", "0")
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} {arguments:?}: {}",
        program.display(),
        error.trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// How to get the compiler of the committed PTX.
pub fn install() -> String {
    format!(
        "The committed PTX is made with {COMPILER}. On Debian 12, as root,\n  {APT}\ninstalls it."
    )
}

/// The cargo of rustup's pinned toolchain, if it is installed.
fn rustup_cargo() -> Result<PathBuf> {
    let rustup = Path::new("rustup");
    let installed = output(rustup, &["toolchain", "list"])?;
    let prefix = format!("{RUST}-");
    ensure!(
        installed.lines().any(|line| line.starts_with(&prefix)),
        "toolchain {RUST} is not installed"
    );
    let cargo = output(rustup, &["which", "--toolchain", RUST, "cargo"])?;
    Ok(PathBuf::from(cargo.trim()))
}

/// Release and LLVM from `rustc -vV`.
fn version(verbose: &str) -> Result<String> {
    let release = verbose
        .lines()
        .next()
        .context("rustc -vV printed nothing")?;
    let llvm = verbose
        .lines()
        .find(|line| line.starts_with("LLVM version"))
        .context("rustc -vV names no LLVM")?;
    Ok(format!("{release}, {}", llvm.replace(" version:", "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_names_release_and_llvm() {
        let verbose = "rustc 1.96.0 (abc 2026-05-25)\nbinary: rustc\nLLVM version: 22.1.8\n";
        assert_eq!(
            version(verbose).unwrap(),
            "rustc 1.96.0 (abc 2026-05-25), LLVM 22.1.8"
        );
        assert!(version("rustc 1.96.0\n").is_err());
    }

    #[test]
    fn a_missing_cargo_is_named() {
        let error = Toolchain::probe(Path::new("/nonexistent/cargo"))
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "there is no /nonexistent/cargo");
    }

    #[test]
    fn a_toolchain_is_found_or_asked_for() {
        match Toolchain::find() {
            Ok(toolchain) => assert!(toolchain.version.starts_with("rustc ")),
            Err(reason) => assert!(format!("{reason:#}").contains(CARGO_VARIABLE)),
        }
    }
}
