//! How the files of a compressed folder differ from those of the original.
//!
//! Whoever opens a compressed folder without knowing of zipserv must fail, not find a model with some of its weights.
//! So files of tensors and indexes of shards have other names, and `config.json` names zipserv as its quantization:
//!
//! | original | compressed folder |
//! |---|---|
//! | `NAME.safetensors` | `NAME.zipserv.safetensors` |
//! | `NAME.safetensors.index.json` | `NAME.zipserv.safetensors.index.json`, of stored tensors and files |
//! | `config.json` beside files of tensors | the same, with a `quantization_config` |
//!
//! The last two stand in for originals, which are kept as they were in the folder [`ORIGINALS`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Error, ErrorKind,
    container::Container,
    error::At,
    folder::{Index, Listing},
    input::Input,
    source::Source,
};

/// The folder, in a compressed one, of files that others stand in for.
pub const ORIGINALS: &str = "zipserv-original";
/// What names of files of tensors, and of indexes, end with; and what is put before that.
const TENSORS: &str = ".safetensors";
const INDEX: &str = ".safetensors.index.json";
const MARK: &str = ".zipserv";
const CONFIG: &str = "config.json";
/// What a model's tensors, or their index, are named by default.
const MODEL: &str = "model";
const QUANTIZATION: &str = "quantization_config";

/// The name that a file has in a compressed folder.
pub fn stored_name(path: &Path) -> PathBuf {
    renamed(path, |stem| Some(format!("{stem}{MARK}")))
}

/// The name that a file of a compressed folder had: the same, if it was compressed by a version that kept names.
pub fn original_name(path: &Path) -> PathBuf {
    renamed(path, |stem| stem.strip_suffix(MARK).map(str::to_owned))
}

fn renamed(path: &Path, of_stem: impl Fn(&str) -> Option<String>) -> PathBuf {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("");
    for end in [INDEX, TENSORS] {
        if let Some(stem) = name.strip_suffix(end) {
            return match of_stem(stem) {
                Some(stem) => path.with_file_name(format!("{stem}{end}")),
                None => path.into(),
            };
        }
    }
    path.into()
}

/// Whether a path is that of a kept original, or of their folder.
pub fn is_kept(path: &Path) -> bool {
    path.starts_with(ORIGINALS)
}

/// An error where a folder has names that compressed folders need.
pub fn check_names(root: &Path, listing: &Listing) -> Result<(), Error> {
    let tensors = listing.checkpoints.iter();
    let indexes = listing.indexes.iter().map(|(path, _)| path);
    let taken = tensors
        .chain(indexes)
        .find(|path| original_name(path) != **path);
    let kept = listing.folders.iter().chain(&listing.others);
    match taken.or_else(|| kept.into_iter().find(|path| is_kept(path))) {
        Some(path) => Err(Error::new(root.join(path), ErrorKind::Reserved)),
        None => Ok(()),
    }
}

/// The folder that a compressed one restores to: where the bytes of each of its files are, and its folders. In order.
pub struct Restored {
    /// Names of files of tensors, and where their compressed forms are.
    pub checkpoints: BTreeMap<PathBuf, PathBuf>,
    /// Names of all other files, and where they are.
    pub others: BTreeMap<PathBuf, PathBuf>,
    /// Names of folders.
    pub folders: Vec<PathBuf>,
}

impl Restored {
    pub fn new(listing: &Listing) -> Self {
        let checkpoints = listing.checkpoints.iter();
        let checkpoints = checkpoints.map(|path| (original_name(path), path.clone()));
        let (kept, others): (Vec<_>, Vec<_>) =
            listing.others.iter().partition(|path| is_kept(path));
        let of_kept = |path: &&PathBuf| {
            path.strip_prefix(ORIGINALS)
                .expect("it is kept")
                .to_path_buf()
        };
        let stand_ins: Vec<_> = kept
            .iter()
            .map(|path| stored_name(&of_kept(path)))
            .collect();
        let others = others.into_iter().filter(|path| !stand_ins.contains(path));
        let others = others.map(|path| (path.clone(), path.clone()));
        let kept = kept.iter().map(|path| (of_kept(path), (*path).clone()));
        let folders = listing.folders.iter().filter(|path| !is_kept(path));
        Self {
            checkpoints: checkpoints.collect(),
            others: others.chain(kept).collect(),
            folders: folders.cloned().collect(),
        }
    }
}

/// What stands in for a file beside files of tensors, if it needs that: its text, with the place of zipserv.
///
/// A `config.json` that is no JSON object, or has a quantization of its own, is left alone: the names of the files of
/// tensors alone must do then.
pub fn config(root: &Path, path: &Path, listing: &Listing) -> Result<Option<String>, Error> {
    let beside = |file: &PathBuf| file.parent() == path.parent();
    if path.file_name().is_none_or(|name| name != CONFIG) || !listing.checkpoints.iter().any(beside)
    {
        return Ok(None);
    }
    let named = root.join(path);
    let Ok(text) = String::from_utf8(Input::open(&named)?.to_vec()) else {
        return Ok(None);
    };
    let Ok(config) = serde_json::from_str::<Map<String, Value>>(&text) else {
        return Ok(None);
    };
    if config.contains_key(QUANTIZATION) {
        tracing::warn!(
            "{}: has a {QUANTIZATION} already, and keeps it",
            named.display()
        );
        return Ok(None);
    }
    let end = text.rfind('}').expect("it is an object");
    let before = text[..end].trim_end();
    let comma = if config.is_empty() { "" } else { "," };
    let weights = weights(path, listing)
        .map(|name| format!(",\n    \"weights\": \"{name}\""))
        .unwrap_or_default();
    Ok(Some(format!(
        "{before}{comma}\n  \"{QUANTIZATION}\": {{\n    \"quant_method\": \"zipserv\"{weights}\n  }}\n{}",
        &text[end..]
    )))
}

/// What a loader of models is to open, in the folder of a `config.json`: the file of all tensors, or an index.
///
/// Loaders choose by name, and the new ones are not theirs.
fn weights(config: &Path, listing: &Listing) -> Option<String> {
    let file = config.with_file_name(format!("{MODEL}{TENSORS}"));
    let index = config.with_file_name(format!("{MODEL}{INDEX}"));
    let chosen = if listing.checkpoints.contains(&file) {
        file
    } else if listing.indexes.iter().any(|(path, _)| *path == index) {
        index
    } else {
        return None;
    };
    Some(
        stored_name(Path::new(chosen.file_name()?))
            .to_str()?
            .to_owned(),
    )
}

/// What stands in for an index of shards, in a folder whose compressed files are there.
pub fn index(folder: &Path, index: &Index) -> Result<String, Error> {
    #[derive(Serialize)]
    struct Stored {
        metadata: Metadata,
        weight_map: BTreeMap<String, String>,
    }
    #[derive(Serialize)]
    struct Metadata {
        total_size: u64,
    }
    let mut stored = Stored {
        metadata: Metadata { total_size: 0 },
        weight_map: BTreeMap::new(),
    };
    let mut shards: Vec<_> = index.weight_map.values().collect();
    shards.sort_unstable();
    shards.dedup();
    for shard in shards {
        let name = stored_name(Path::new(shard));
        let path = folder.join(&name);
        let container = Container::open(&path)?;
        let tensors = container.header().tensors.iter().enumerate();
        for (tensor, _) in
            tensors.filter(|(_, tensor)| index.weight_map.get(&tensor.name) == Some(shard))
        {
            let name = name.to_str().expect("the index has it in UTF-8");
            stored.metadata.total_size += container.storage(tensor).0;
            let tensor = container.stored_name(tensor).to_owned();
            stored.weight_map.insert(tensor, name.to_owned());
        }
    }
    let text = serde_json::to_string_pretty(&stored);
    text.map(|text| text + "\n")
        .map_err(ErrorKind::IndexJson)
        .at(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (original, stored) in [
            ("model.safetensors", "model.zipserv.safetensors"),
            (
                "a/b-00001-of-00002.safetensors",
                "a/b-00001-of-00002.zipserv.safetensors",
            ),
            (
                "model.safetensors.index.json",
                "model.zipserv.safetensors.index.json",
            ),
            ("tokenizer.json", "tokenizer.json"),
        ] {
            assert_eq!(stored_name(Path::new(original)), Path::new(stored));
            assert_eq!(original_name(Path::new(stored)), Path::new(original));
            assert_eq!(original_name(Path::new(original)), Path::new(original));
        }
    }
}
