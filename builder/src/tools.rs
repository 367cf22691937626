//! What this repository does not hold: the versions that its files are made with, how to install
//! them, and where they are.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The release of Rust for device code.
pub const RUST: &str = "1.96.0";
/// The compiler of the committed PTX, as [`crate::toolchain::Toolchain::version`] has it: the same
/// release with another LLVM writes other bytes.
pub const COMPILER: &str =
    "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball), LLVM 22.1.8";
/// Installs [`COMPILER`] on Debian 12.
pub const APT: &str = "apt-get install -y --no-install-recommends rustc-web cargo-web rust-web-src";

/// A package of PyPI, and its version.
type Package = (&'static str, &'static str);

// `budget.json` is counted with the first two.
const PTXAS: Package = ("nvidia-cuda-nvcc", "13.0.88");
const NVDISASM: Package = ("nvidia-cuda-nvdisasm", "13.5.37");
const NVVM: Package = ("nvidia-nvvm", "13.5.37");

/// Names a folder that holds CUDA's binary tools and libraries, looked at before all others.
const FOLDER_VARIABLE: &str = "ZIPSERV_CUDA_BIN";

/// Prints the commands that install everything, as a shell runs them.
pub fn print() {
    println!("# Debian 12, as root: the compiler of the committed PTX.");
    println!("apt-get update\n{APT}");
    println!(
        "# In a Python environment: ptxas and nvdisasm, whose machine code is counted; libNVVM."
    );
    println!("{}", pip());
}

/// Installs CUDA's tools in a Python environment.
pub fn pip() -> String {
    let packages = [PTXAS, NVDISASM, NVVM].map(|(name, version)| format!("{name}=={version}"));
    format!("pip install {}", packages.join(" "))
}

/// Finds one of CUDA's binary tools, or libNVVM.
pub fn find(tool: &str) -> Result<PathBuf> {
    folders()
        .into_iter()
        .map(|folder| folder.join(tool))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{tool} was not found. In a Python environment,\n  {}\n\
                 or install a CUDA toolkit and put it on PATH, or set CUDA_HOME, or set {FOLDER_VARIABLE} \
                 to the folder that holds {tool}.",
                pip()
            )
        })
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = env::var_os(FOLDER_VARIABLE)
        .map(Into::into)
        .into_iter()
        .collect();
    if let Some(path) = env::var_os("PATH") {
        folders.extend(env::split_paths(&path));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os);
    for home in homes.map(PathBuf::from).chain(["/usr/local/cuda".into()]) {
        folders.extend([home.join("bin"), home.join("nvvm/lib64")]);
    }
    // The wheels of PyPI: lib/python3.x/site-packages/nvidia/{cu13,cuda_nvcc}/{bin,lib}.
    for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(env::var_os)
    {
        for python in children(&Path::new(&environment).join("lib")) {
            for package in children(&python.join("site-packages/nvidia")) {
                folders.extend([package.join("bin"), package.join("lib")]);
            }
        }
    }
    folders
}

fn children(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

/// The release of a tool, as `13.0.88`.
pub fn version(tool: &str) -> Result<String> {
    let output = run(Command::new(find(tool)?).arg("--version"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.split_whitespace();
    let mut versions = words.filter_map(|word| word.strip_prefix('V'));
    let version = versions.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    Ok(version
        .with_context(|| format!("{tool} names no version"))?
        .to_owned())
}

/// The tools that machine code is made and read with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    ptxas: String,
    nvdisasm: String,
}

impl Versions {
    /// Those found here.
    pub fn here() -> Result<Self> {
        Ok(Self {
            ptxas: version("ptxas")?,
            nvdisasm: version("nvdisasm")?,
        })
    }

    /// Those that [`pip`] installs.
    pub fn pinned() -> Self {
        Self {
            ptxas: PTXAS.1.into(),
            nvdisasm: NVDISASM.1.into(),
        }
    }

    /// Whether these are `wanted`; says what that means, or fails, where they are not.
    pub fn are(&self, wanted: &Self, otherwise: &str, strict: bool) -> Result<bool> {
        if self == wanted {
            return Ok(true);
        }
        let reason = format!(
            "{otherwise} {wanted}; here are {self}. In a Python environment,\n  {}",
            pip()
        );
        if strict {
            bail!(reason);
        }
        println!("{reason}");
        Ok(false)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ptxas {} and nvdisasm {}", self.ptxas, self.nvdisasm)
    }
}

/// Runs a tool, and fails with what it said when it fails.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_tools_are_told_and_fail_where_they_must_not_be() {
        let pinned = Versions::pinned();
        let other = Versions {
            ptxas: "13.5.37".into(),
            ..pinned.clone()
        };
        assert!(pinned.are(&pinned, "of", true).unwrap());
        assert!(!other.are(&pinned, "of", false).unwrap());
        let error = other.are(&pinned, "of", true).unwrap_err().to_string();
        for part in ["of ptxas 13.0.88", "here are ptxas 13.5.37", &pip()] {
            assert!(error.contains(part), "{error}");
        }
    }
}
