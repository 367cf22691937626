//! The small files of a folder.

use std::{fs, io::Read, path::Path};

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The largest tokenizers have some 40 MB.
const MAX_BYTES: u64 = 256 << 20;

/// The text of a file that is not to be long.
pub fn read(path: &Path) -> Result<String> {
    let io = |source| Error::Io {
        path: path.into(),
        source,
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(io)?;
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(io)?;
    match text.len() as u64 > MAX_BYTES {
        true => Err(wrong(path, format!("longer than {MAX_BYTES} bytes"))),
        false => Ok(text),
    }
}

/// What JSON text of a file says; an error names the key.
pub fn parse<T: DeserializeOwned>(path: &Path, json: &str) -> Result<T> {
    let mut json = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let key = error.path().to_string();
        let what = error.into_inner();
        match key.as_str() {
            "." => wrong(path, what),
            key => wrong(path, format!("{key}: {what}")),
        }
    })
}

/// An error about a file.
pub fn wrong(path: &Path, reason: impl ToString) -> Error {
    Error::File {
        path: path.into(),
        reason: reason.to_string(),
    }
}
