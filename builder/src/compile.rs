//! Rust to LLVM's intermediate code, and to PTX with rustc's own NVPTX backend.

use std::{ffi::OsString, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{
    target::{Target, root, scratch},
    toolchain::Toolchain,
};

/// What the compiler has written of a target.
pub struct Compiled(PathBuf);

impl Compiled {
    /// PTX.
    pub fn ptx(&self) -> Result<String> {
        self.read("s")
    }

    /// What the PTX was made from.
    pub fn llvm_ir(&self) -> Result<String> {
        self.read("ll")
    }

    fn read(&self, extension: &str) -> Result<String> {
        let path = self.0.with_extension(extension);
        fs::read_to_string(&path)
            .with_context(|| format!("the compiler left no {}", path.display()))
    }
}

/// Compiles a target.
pub fn compile(toolchain: &Toolchain, target: &Target) -> Result<Compiled> {
    // One folder for each compiler: cargo would take another's leftover for up to date.
    let compiler = toolchain
        .version
        .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let (package, sm) = (&target.package, &target.sm);
    let folder = scratch().join(compiler).join(target.stem());
    let mut remap = OsString::from("--remap-path-prefix=");
    remap.push(root());
    remap.push("=.");
    let mut command = toolchain.cargo();
    if package.manifest.knows_target {
        command.env("RUSTFLAGS", format!("--cfg zipserv_sm=\"{sm}\""));
    }
    let status = command
        .args(["rustc", "--locked", "-p", &package.name, "--release"])
        .args([
            "--crate-type",
            "cdylib",
            "--target",
            "nvptx64-nvidia-cuda",
            "-Zbuild-std=core",
        ])
        .arg("--target-dir")
        .arg(&folder)
        // PTX 8.0, because what sm_80 alone asks for lacks cache hints; rustc warns of the option.
        // The assembly beside the object is the PTX, and `true` stands in for the linker: fat LTO
        // has made one module of everything.
        .args(["--", "--emit=asm,llvm-ir", "-Clinker=true"])
        // Of this crate alone, not of those that it is built on.
        .args(["--cfg", "zipserv_entries"])
        .args([&format!("-Ctarget-cpu=sm_{sm}"), "-Ctarget-feature=+ptx80"])
        .arg(remap)
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .status()
        .context("cannot run the device toolchain's cargo")?;
    ensure!(
        status.success(),
        "compiling {} for sm_{sm} failed, see above",
        package.name
    );
    let name = package.name.replace('-', "_");
    Ok(Compiled(
        folder.join("nvptx64-nvidia-cuda/release/deps").join(name),
    ))
}
