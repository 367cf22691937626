//! What is built, and where it lies.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{MetadataCommand, camino::Utf8PathBuf};
use serde::Deserialize;

use crate::{
    ptx::{self, Origin},
    source,
};

/// A crate of kernels: one whose manifest says so, under `package.metadata.zipserv-kernels`.
#[derive(Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its folder, then those of the crates that it is built on.
    pub folders: Vec<String>,
    /// What the manifest says.
    pub manifest: Manifest,
}

/// What the manifest of a crate of kernels says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// What the names of its PTX files start with.
    pub prefix: String,
    /// Whether the crate is told its target, by the `cfg` `zipserv_sm`.
    #[serde(default)]
    pub knows_target: bool,
    /// Whether its kernels have a budget.
    #[serde(default)]
    pub budget: bool,
    /// Its PTX files.
    targets: Vec<Sm>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sm {
    sm: String,
    archs: Vec<String>,
}

/// One PTX file.
#[derive(Debug)]
pub struct Target {
    /// The crate that it is made of.
    pub package: Arc<Package>,
    /// The architecture it is compiled for, as in `sm_80`.
    pub sm: String,
    /// The architectures whose `ptxas` must like it.
    pub archs: Vec<String>,
}

/// Every PTX file: zipserv's own, then those of other crates of the workspace. Of two of a crate for
/// one architecture, the later one is for fewer.
pub fn targets() -> Result<&'static [Target]> {
    static TARGETS: OnceLock<Vec<Target>> = OnceLock::new();
    if let Some(targets) = TARGETS.get() {
        return Ok(targets);
    }
    let found = find()?;
    Ok(TARGETS.get_or_init(|| found))
}

/// The names of the crates of kernels.
pub fn packages() -> Result<Vec<&'static str>> {
    let mut names: Vec<_> = targets()?.iter().map(|t| &*t.package.name).collect();
    names.dedup();
    Ok(names)
}

/// Asks cargo.
fn find() -> Result<Vec<Target>> {
    const KEY: &str = "zipserv-kernels";
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo tells nothing of the workspace")?;
    let folder = |path: Utf8PathBuf| -> Result<String> {
        let inside = path.strip_prefix(root());
        Ok(inside
            .with_context(|| format!("{path} lies outside the repository"))?
            .to_string())
    };
    let mut targets = Vec::new();
    for package in metadata.packages {
        let Some(value) = package.metadata.get(KEY) else {
            continue;
        };
        let mut manifest = Manifest::deserialize(value)
            .with_context(|| format!("package.metadata.{KEY} of {}", package.name))?;
        let own = package.manifest_path.parent().expect("it lies in a folder");
        let built_on = package.dependencies.iter().filter_map(|on| on.path.clone());
        let folders = [own.to_owned()].into_iter().chain(built_on).map(folder);
        let files = std::mem::take(&mut manifest.targets);
        let package = Arc::new(Package {
            folders: folders.collect::<Result<_>>()?,
            name: package.name.to_string(),
            manifest,
        });
        targets.extend(files.into_iter().map(|Sm { sm, archs }| Target {
            package: Arc::clone(&package),
            sm,
            archs,
        }));
    }
    targets.sort_by_key(|target| target.package.name != ZIPSERV);
    Ok(targets)
}

/// zipserv's own crate of kernels.
pub const ZIPSERV: &str = "zipserv-gpu";

impl Target {
    /// zipserv's own target that is assembled for `arch`.
    pub fn of_arch(arch: &str) -> Result<&'static Target> {
        let arch = arch.trim_start_matches("sm_");
        let targets = targets()?;
        let mut own = targets.iter().filter(|t| t.package.name == ZIPSERV);
        own.find(|target| target.is_for(arch))
            .with_context(|| no_arch(arch))
    }

    /// Whether it is assembled for `arch`.
    pub fn is_for(&self, arch: &str) -> bool {
        self.archs.iter().any(|other| other == arch)
    }

    /// The name of its file, but for the extension.
    pub fn stem(&self) -> String {
        format!("{}_sm_{}", self.package.manifest.prefix, self.sm)
    }

    /// The name of its file.
    pub fn file_name(&self) -> String {
        format!("{}.ptx", self.stem())
    }

    /// The committed file, as a path from the repository.
    pub fn name(&self) -> String {
        format!("{}/ptx/{}", self.package.folders[0], self.file_name())
    }

    /// The committed file.
    pub fn path(&self) -> PathBuf {
        root().join(self.name())
    }

    /// The text of the committed file and where it came from; fails when the sources have changed
    /// since.
    pub fn read_fresh(&self) -> Result<(String, Origin)> {
        let text = self.read()?;
        let origin = Origin::read(&text)?;
        ensure!(
            origin.source == source::hash(root(), &self.package.folders)?,
            "{} is stale: the sources have changed since it was built.\n\
             `cargo run -p builder -- build {}` renews it.",
            self.name(),
            self.package.name
        );
        Ok((text, origin))
    }

    /// Whether its file has a kernel.
    pub fn has(&self, kernel: &str) -> bool {
        self.read()
            .is_ok_and(|text| ptx::entry(&text, kernel).is_some())
    }

    /// The text of the committed file.
    pub fn read(&self) -> Result<String> {
        let path = self.path();
        std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; `cargo run -p builder` writes it",
                path.display()
            )
        })
    }
}

/// What to say of an architecture that no target is for.
pub fn no_arch(arch: &str) -> String {
    let targets = targets().into_iter().flatten();
    let archs: Vec<_> = targets.flat_map(|target| &target.archs).collect();
    format!("nothing is built for {arch}; there are {archs:?}")
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the builder lies in the repository")
}

/// A path as a reader wants it: from the repository, if it lies there.
pub fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(root()).unwrap_or(path).display()
}

/// Where compilers put what is not committed.
pub fn scratch() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    // Compilers run in another folder than the builder.
    std::path::absolute(&target).unwrap_or(target).join("ptx")
}
