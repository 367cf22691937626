//! What is built, and where it lies.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use zipserv_gpu::launch::{KERNELS, Launch};

use crate::{ptx::Origin, source};

/// A crate of kernels.
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// What the names of its PTX files start with.
    pub prefix: &'static str,
    /// Its folder, then those of the crates that it is built on.
    pub folders: &'static [&'static str],
    /// Its kernels.
    pub launches: &'static [Launch],
    /// Whether the crate is told its target, by the `cfg` `zipserv_sm`.
    pub knows_target: bool,
}

/// zipserv's own kernels.
pub const ZIPSERV: Package = Package {
    name: "zipserv-gpu",
    prefix: "zipserv",
    folders: &["gpu"],
    launches: KERNELS,
    knows_target: true,
};

/// Those of `docs/KERNELS.md`.
pub const EXAMPLES: Package = Package {
    name: "example-kernels",
    prefix: "example",
    folders: &["examples/kernels", "gpu"],
    launches: example_kernels::KERNELS,
    knows_target: false,
};

/// One PTX file.
pub struct Target {
    /// The crate that it is made of.
    pub package: &'static Package,
    /// The architecture it is compiled for, as in `sm_80`.
    pub sm: &'static str,
    /// The architectures whose `ptxas` must like it.
    pub archs: &'static [&'static str],
}

const SM_80_ARCHS: &[&str] = &["80", "86", "89", "90", "100", "120"];

/// Every PTX file. Of two for one architecture, the later one is for fewer.
pub const TARGETS: &[Target] = &[
    Target {
        package: &ZIPSERV,
        sm: "80",
        archs: SM_80_ARCHS,
    },
    Target {
        package: &ZIPSERV,
        sm: "90a",
        archs: &["90a"],
    },
    Target {
        package: &EXAMPLES,
        sm: "80",
        archs: SM_80_ARCHS,
    },
];

impl Target {
    /// zipserv's own target that is assembled for `arch`.
    pub fn of_arch(arch: &str) -> Result<&'static Target> {
        let arch = arch.trim_start_matches("sm_");
        let mut own = TARGETS.iter().filter(|t| t.package.name == ZIPSERV.name);
        own.find(|target| target.archs.contains(&arch))
            .with_context(|| no_arch(arch))
    }

    /// The name of its file.
    pub fn file_name(&self) -> String {
        format!("{}_sm_{}.ptx", self.package.prefix, self.sm)
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
            origin.source == source::hash(root(), self.package.folders)?,
            "{} is stale: the sources have changed since it was built.\n\
             `cargo run -p builder -- build {}` renews it.",
            self.name(),
            self.package.name
        );
        Ok((text, origin))
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
    let archs: Vec<_> = TARGETS
        .iter()
        .flat_map(|target| target.archs)
        .copied()
        .collect();
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
