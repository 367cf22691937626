//! What is built, and where it lies.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One PTX file.
pub struct Target {
    /// The architecture it is compiled for, as in `sm_80`.
    pub sm: &'static str,
    /// The architectures whose `ptxas` must like it.
    pub archs: &'static [&'static str],
}

/// Every PTX file.
pub const TARGETS: &[Target] = &[
    Target {
        sm: "80",
        archs: &["80", "86", "89", "90", "100", "120"],
    },
    Target {
        sm: "90a",
        archs: &["90a"],
    },
];

impl Target {
    /// The target that is assembled for `arch`.
    pub fn of_arch(arch: &str) -> Result<&'static Target> {
        let arch = arch.trim_start_matches("sm_");
        TARGETS
            .iter()
            .find(|target| target.archs.contains(&arch))
            .with_context(|| {
                let archs: Vec<_> = TARGETS.iter().flat_map(|target| target.archs).collect();
                format!("nothing is built for {arch}; there are {archs:?}")
            })
    }

    /// The committed file.
    pub fn path(&self) -> PathBuf {
        root().join(format!("gpu/ptx/zipserv_sm_{}.ptx", self.sm))
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

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the builder lies in the repository")
}

/// Where compilers put what is not committed.
pub fn scratch() -> PathBuf {
    root().join("target/ptx")
}
