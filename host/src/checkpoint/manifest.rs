use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};

use super::{
    Error, ErrorKind,
    error::At,
    input::Input,
    names::{MANIFEST, MANIFEST_VERSION},
};

/// The file `zipserv.json` of a compressed folder: what the files beside it were in the original one.
#[derive(Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: String,
    /// By the names that they have in the compressed folder.
    pub files: BTreeMap<String, Entry>,
}

/// One file of the original folder.
#[derive(Serialize, Deserialize)]
pub(crate) struct Entry {
    pub name: String,
    /// All of it, if it is not restored from the compressed folder's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl Manifest {
    pub fn new(files: BTreeMap<String, Entry>) -> Self {
        Self {
            version: MANIFEST_VERSION.into(),
            files,
        }
    }

    /// Whether a path is that of a manifest.
    pub fn is_name(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name == MANIFEST)
    }

    /// Reads a manifest, and checks that it names only files beside it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let json = Input::read_text(path)?;
        let manifest: Self = serde_json::from_slice(&json)
            .map_err(ErrorKind::ManifestJson)
            .at(path)?;
        if manifest.version != MANIFEST_VERSION {
            return Err(Error::new(
                path,
                ErrorKind::ManifestVersion(manifest.version),
            ));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let is_plain = |name: &str| {
            let mut parts = Path::new(name).components();
            let first = parts.next();
            // As a path, `a/` and `a/.` are `a` too.
            first == Some(Component::Normal(name.as_ref())) && parts.next().is_none()
        };
        for (stored, entry) in &manifest.files {
            let wrong = |file: &str, why| {
                let file = file.into();
                Err(Error::new(path, ErrorKind::Manifest { file, why }))
            };
            for name in [stored, &entry.name] {
                if !is_plain(name) {
                    return wrong(name, "which is not a file name");
                }
            }
            if !folder.join(stored).is_file() {
                return wrong(stored, "which does not exist");
            }
        }
        Ok(manifest)
    }
}
