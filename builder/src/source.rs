//! A hash of everything that PTX is made from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Raise this when the compiler's options or [`crate::ptx::finish`] change what they make.
const RECIPE: u32 = 1;

/// SHA-256 over the recipe and, of each crate's folder, `Cargo.toml` and the files of `src`, in
/// hexadecimal.
///
/// Each file counts with its path and length; line endings do not matter.
pub fn hash(root: &Path, crates: &[impl AsRef<Path>]) -> Result<String> {
    let mut files = Vec::new();
    for folder in crates.iter().map(AsRef::as_ref) {
        files.push(folder.join("Cargo.toml"));
        list(root, &folder.join("src"), &mut files)?;
    }
    files.sort();
    let mut sha = Sha256::new();
    sha.update(RECIPE.to_le_bytes());
    for file in files {
        let text = fs::read_to_string(root.join(&file))
            .with_context(|| format!("cannot read {}", file.display()))?
            .replace("\r\n", "\n");
        let name = file.to_string_lossy().replace('\\', "/");
        sha.update(format!("{name}\n{}\n{text}", text.len()));
    }
    Ok(sha
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Adds the files under `folder` to `files`, as paths from `root`.
fn list(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(root.join(folder))
        .with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_ignores_line_endings_but_not_names() {
        let root = std::env::temp_dir().join(format!("zipserv-source-{}", std::process::id()));
        let with = |name: &str, text: &str| {
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(root.join("gpu/src/arch")).unwrap();
            fs::write(root.join("gpu/Cargo.toml"), "[package]\n").unwrap();
            fs::write(root.join("gpu/src/arch").join(name), text).unwrap();
            hash(&root, &["gpu"]).unwrap()
        };
        let unix = with("mma.rs", "a\nb\n");
        assert_eq!(unix.len(), 64);
        assert_eq!(unix, with("mma.rs", "a\r\nb\r\n"));
        assert_ne!(unix, with("mma.rs", "a\nc\n"));
        assert_ne!(unix, with("copy.rs", "a\nb\n"));
        fs::remove_dir_all(&root).unwrap();
    }
}
