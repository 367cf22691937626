use std::{
    collections::{BTreeMap, HashMap},
    fs,
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
    shown::shown,
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
    /// Lists a folder and the folders in it. Links are followed: a snapshot of a hub's cache is made of
    /// them, but the whole cache is refused. What killed runs have left is no part of it. Indexes of shards must name
    /// shards in the folder.
    pub fn of(root: &Path) -> Result<Self, Error> {
        let mut listing = Self::default();
        refuse_hub_cache(root)?;
        let walk = WalkDir::new(root).min_depth(1).follow_links(true);
        let walk = walk.sort_by_file_name().into_iter();
        for entry in walk.filter_entry(|entry| !is_unfinished(entry.file_name())) {
            let entry = entry.map_err(|error| {
                let path = error.path().unwrap_or(root).to_path_buf();
                Error::new(path, std::io::Error::from(error))
            })?;
            let relative = entry.path().strip_prefix(root).expect("below the root");
            let list = match entry.file_type() {
                kind if kind.is_dir() => {
                    refuse_hub_cache(entry.path())?;
                    &mut listing.folders
                }
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

/// Refuses what has all files of a model twice or more: as blobs, and as links to them in each snapshot.
fn refuse_hub_cache(folder: &Path) -> Result<(), Error> {
    let snapshots = folder.join("snapshots");
    if !folder.join("blobs").is_dir() || !snapshots.is_dir() {
        return Ok(());
    }
    let main = fs::read_to_string(folder.join("refs/main")).ok();
    let main = main.map(|name| snapshots.join(name.trim()));
    let others = fs::read_dir(&snapshots).into_iter().flatten().flatten();
    let mut all: Vec<_> = main
        .into_iter()
        .chain(others.map(|entry| entry.path()))
        .collect();
    all.retain(|path| path.parent() == Some(&snapshots) && path.is_dir());
    let snapshot = all.into_iter().next();
    Err(Error::new(folder, ErrorKind::HubCache { snapshot }))
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

    /// What the index at `path` says that is not so, where the shards have tensors of so many bytes, by the shard's
    /// path and the tensor's name.
    pub fn mistakes(&self, path: &Path, tensors: &HashMap<(&Path, &str), u64>) -> Vec<String> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let places: HashMap<_, _> = tensors.keys().map(|(file, name)| (*name, *file)).collect();
        let (mut absent, mut elsewhere, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (name, shard) in &self.weight_map {
            match tensors.get(&(&*folder.join(shard), &**name)) {
                Some(more) => bytes += more,
                None => match places.get(&**name) {
                    Some(file) => elsewhere.push((name, shard, file)),
                    None => absent.push((name, shard)),
                },
            }
        }
        let tensors = |count| match count {
            1 => "1 tensor".into(),
            count => format!("{count} tensors"),
        };
        let mut said = Vec::new();
        if let [(name, shard), ..] = &*absent {
            let count = tensors(absent.len());
            said.push(format!(
                "names {count} that no file has, such as `{name}` in {shard}"
            ));
        }
        if let [(name, shard, file), ..] = &*elsewhere {
            let (count, file) = (tensors(elsewhere.len()), file.display());
            said.push(format!(
                "names {count} in the wrong file, such as `{name}` in {shard}, which is in {file}"
            ));
        }
        let total = self.rest.get("metadata").and_then(|m| m.get("total_size"));
        // Some write it as a float.
        let total = total.and_then(Value::as_f64);
        if let Some(total) = total.filter(|&total| said.is_empty() && total != bytes as f64) {
            said.push(format!(
                "says total_size {total}, but the tensors that it names have {bytes} bytes"
            ));
        }
        let said = said.into_iter();
        said.map(|said| format!("{} {}", shown(path.display()), shown(said)))
            .collect()
    }
}
