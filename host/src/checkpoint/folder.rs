use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::Error as _};
use serde_json::{Map, Value};
use walkdir::WalkDir;

use super::{
    Error, ErrorKind,
    error::At,
    input::Input,
    names::{INDEX_SUFFIX, is_checkpoint, is_unfinished},
};

/// What is in a checkpoint folder, with paths relative to it.
#[derive(Default)]
pub(crate) struct Listing {
    pub folders: Vec<PathBuf>,
    /// The `.safetensors` files.
    pub checkpoints: Vec<PathBuf>,
    /// All other files.
    pub others: Vec<PathBuf>,
    /// The indexes of shards among them.
    pub indexes: Vec<(PathBuf, Index)>,
}

impl Listing {
    /// Lists a folder and the folders in it. Links are followed: a download cache is made of
    /// them. What killed runs have left is no part of it. Indexes of shards must name shards in
    /// the folder.
    pub fn of(root: &Path) -> Result<Self, Error> {
        let mut listing = Self::default();
        let walk = WalkDir::new(root).min_depth(1).follow_links(true);
        let walk = walk.sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|entry| !is_unfinished(entry.file_name())) {
            let entry = entry.map_err(|error| {
                let path = error.path().unwrap_or(root).to_path_buf();
                Error::new(path, std::io::Error::from(error))
            })?;
            let relative = entry.path().strip_prefix(root).expect("below the root");
            let list = match entry.file_type() {
                kind if kind.is_dir() => &mut listing.folders,
                kind if !kind.is_file() => {
                    return Err(Error::new(entry.path(), ErrorKind::FileType));
                }
                _ if is_checkpoint(entry.file_name()) => &mut listing.checkpoints,
                _ => &mut listing.others,
            };
            list.push(relative.into());
        }
        if listing.checkpoints.is_empty() {
            return Err(Error::new(root, ErrorKind::NoCheckpoint));
        }
        for path in &listing.others {
            if Index::is_name(path) {
                let index = Index::open(&root.join(path))?;
                listing.indexes.push((path.clone(), index));
            }
        }
        Ok(listing)
    }
}

/// An index of shards: which file has which tensor.
#[derive(Serialize, Deserialize)]
pub(crate) struct Index {
    /// What else is in it.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
    /// Names of files in the index's folder, by the names of tensors.
    pub weight_map: BTreeMap<String, String>,
    /// All of it, as it stands in the file.
    #[serde(skip)]
    pub text: String,
}

impl Index {
    pub fn is_name(path: &Path) -> bool {
        path.to_string_lossy().ends_with(INDEX_SUFFIX)
    }

    /// Reads an index, and checks that it names only files beside it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let json = Input::read_text(path)?;
        let index = String::from_utf8(json).map_err(serde_json::Error::custom);
        let index = index.and_then(|text| {
            let index: Self = serde_json::from_str(&text)?;
            Ok(Self { text, ..index })
        });
        let index = index.map_err(ErrorKind::IndexJson).at(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for (tensor, shard) in &index.weight_map {
            let plain = |part| matches!(part, Component::Normal(_));
            let is_plain = !shard.is_empty() && Path::new(shard).components().all(plain);
            if is_plain && folder.join(shard).is_file() {
                continue;
            }
            let (tensor, shard) = (tensor.clone(), shard.clone());
            let kind = match is_plain {
                false => ErrorKind::IndexPath { tensor, shard },
                true => ErrorKind::IndexShard { tensor, shard },
            };
            return Err(Error::new(path, kind));
        }
        Ok(index)
    }
}
