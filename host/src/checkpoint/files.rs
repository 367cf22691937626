use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use serde::de::IgnoredAny;
use serde_json::Value;

use super::{
    Error, ErrorKind,
    error::At,
    folder::{Index, Listing},
    input::Input,
    manifest::{Entry, Manifest},
    names::{CONFIG, MANIFEST, QUANT_KEY, QUANT_METHOD, stored_name},
    report::{FileReport, TensorReport},
    shown::shown,
};

/// What the files of a folder become, with paths relative to it.
#[derive(Default)]
pub(crate) struct Files {
    pub folders: Vec<PathBuf>,
    /// The `.safetensors` files.
    pub checkpoints: Vec<Renamed>,
    /// Files that are copied.
    pub copies: Vec<Renamed>,
    /// Files that are not made of those in the folder alone.
    pub texts: Vec<Text>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// A file and its new name.
pub(crate) struct Renamed {
    pub from: PathBuf,
    pub to: PathBuf,
    /// Its name in the original folder, which is one of the two unless both are compressed.
    pub original: PathBuf,
}

/// The content of a file.
pub(crate) struct Text {
    pub from: PathBuf,
    pub to: PathBuf,
    /// As in [`Renamed`].
    pub original: PathBuf,
    pub text: String,
}

impl Renamed {
    fn unchanged(path: PathBuf) -> Self {
        Self {
            from: path.clone(),
            original: path.clone(),
            to: path,
        }
    }
}

impl Files {
    /// What compression makes of a folder. Texts are those of the originals until [`mark`](Self::mark).
    pub fn compressed(root: &Path) -> Result<Self, Error> {
        let listing = Listing::of(root)?;
        let indexes = listing.indexes.iter().map(|(path, _)| path);
        let with_weights = folders_of(listing.checkpoints.iter().chain(indexes));
        let mut files = Self {
            folders: listing.folders,
            ..Self::default()
        };
        for from in listing.checkpoints {
            let to = stored_path(root, &from)?;
            let original = from.clone();
            files.checkpoints.push(Renamed { from, to, original });
        }
        for (path, index) in listing.indexes {
            files.texts.push(Text {
                to: stored_path(root, &path)?,
                from: path.clone(),
                original: path,
                text: index.text,
            });
        }
        for path in listing.others {
            let beside_weights = with_weights.contains(folder_of(&path));
            if Index::is_name(&path) {
                continue;
            }
            if Manifest::is_name(&path) {
                return Err(Error::new(root.join(path), ErrorKind::ManifestName));
            }
            if !beside_weights || path.file_name().is_none_or(|name| name != CONFIG) {
                files.copies.push(Renamed::unchanged(path));
                continue;
            }
            let text = Input::read_text(&root.join(&path))?;
            match check_config(text) {
                Ok(text) => files.texts.push(Text {
                    from: path.clone(),
                    to: path.clone(),
                    original: path,
                    text,
                }),
                Err(why) => {
                    let file = shown(path.display()).to_string();
                    files
                        .warnings
                        .push(format!("{file} is left as it is: {why}"));
                    files.copies.push(Renamed::unchanged(path));
                }
            }
        }
        let copies = files.copies.iter().map(|file| &*file.from);
        files.warnings.extend(large_copies(root, copies)?);
        Ok(files)
    }

    /// Gives texts the content that they have in the compressed folder, and adds the manifests; `reports` are of
    /// the checkpoints at `root`.
    pub fn mark(&mut self, root: &Path, reports: &[FileReport]) -> Result<(), Error> {
        let names = |files: &[Renamed]| files.iter().map(|file| file.to.clone()).collect();
        let checkpoints: Vec<PathBuf> = names(&self.checkpoints);
        let indexes = self.texts.iter().filter(|text| Index::is_name(&text.from));
        let indexes: Vec<_> = indexes.map(|text| text.to.clone()).collect();
        let manifests = self.manifests();
        let originals = self.checkpoints.iter().map(|file| &*file.original);
        let tensors = originals.zip(reports).flat_map(|(path, file)| {
            let tensors = file.tensors.iter();
            tensors.map(move |tensor| ((path, &*tensor.name), tensor))
        });
        let tensors = tensors.collect();
        for text in &mut self.texts {
            text.text = if Index::is_name(&text.from) {
                let index = serde_json::from_str(&text.text)
                    .map_err(ErrorKind::IndexJson)
                    .at(&root.join(&text.from))?;
                let (text, mistakes) = stored_index(&text.original, index, &tensors);
                self.warnings.extend(mistakes);
                text
            } else {
                let folder = folder_of(&text.from);
                let is_here = |path: &&PathBuf| folder_of(path) == folder;
                let weights = weights(
                    checkpoints.iter().filter(is_here),
                    indexes.iter().filter(is_here),
                );
                marked_config(&text.text, weights)
            };
        }
        self.texts.extend(manifests);
        Ok(())
    }

    fn manifests(&self) -> Vec<Text> {
        let mut folders: BTreeMap<&Path, BTreeMap<String, Entry>> = BTreeMap::new();
        let checkpoints = self
            .checkpoints
            .iter()
            .map(|file| (&file.to, &file.original, None));
        let texts = self
            .texts
            .iter()
            .map(|text| (&text.to, &text.original, Some(text.text.clone())));
        for (to, original, text) in checkpoints.chain(texts) {
            let entry = Entry {
                name: name_of(original),
                text,
            };
            let files = folders.entry(folder_of(to)).or_default();
            files.insert(name_of(to), entry);
        }
        let manifests = folders.into_iter().map(|(folder, files)| {
            let path = folder.join(MANIFEST);
            Text {
                from: path.clone(),
                original: path.clone(),
                to: path,
                text: json(&Manifest::new(files)),
            }
        });
        manifests.collect()
    }

    /// What the files of a compressed folder are restored to.
    pub fn restored(root: &Path) -> Result<Self, Error> {
        let listing = Listing::of(root)?;
        let mut manifests = BTreeMap::new();
        for path in listing.others.iter().filter(|path| Manifest::is_name(path)) {
            manifests.insert(folder_of(path), Manifest::open(&root.join(path))?.files);
        }
        let mut files = Self {
            folders: listing.folders,
            ..Self::default()
        };
        for (list, paths) in [
            (&mut files.checkpoints, &listing.checkpoints),
            (&mut files.copies, &listing.others),
        ] {
            for from in paths.iter().filter(|path| !Manifest::is_name(path)) {
                let folder = folder_of(from);
                let entry = manifests
                    .get(folder)
                    .and_then(|files| files.get(from.file_name()?.to_str()?));
                let from = from.clone();
                match entry {
                    Some(Entry {
                        name,
                        text: Some(text),
                    }) => files.texts.push(Text {
                        to: folder.join(name),
                        original: folder.join(name),
                        from,
                        text: text.clone(),
                    }),
                    Some(Entry { name, text: None }) => list.push(Renamed {
                        to: folder.join(name),
                        original: folder.join(name),
                        from,
                    }),
                    None => list.push(Renamed::unchanged(from)),
                }
            }
        }
        let mut seen = HashSet::new();
        let renamed = files.checkpoints.iter().chain(&files.copies);
        let mut all = renamed
            .map(|file| &file.to)
            .chain(files.texts.iter().map(|text| &text.to));
        if let Some(twice) = all.find(|to| !seen.insert(*to)) {
            let kind = ErrorKind::Manifest {
                file: name_of(twice),
                why: "which two files would be restored to",
            };
            return Err(Error::new(root.join(folder_of(twice)).join(MANIFEST), kind));
        }
        Ok(files)
    }

    /// What the files of a compressed folder become in one of another form. As in [`compressed`](Self::compressed),
    /// texts are those of the originals until [`mark`](Self::mark).
    pub fn converted(root: &Path) -> Result<Self, Error> {
        let mut files = Self::restored(root)?;
        for file in &mut files.checkpoints {
            file.to = stored_path(root, &file.original)?;
        }
        for text in &mut files.texts {
            text.to = match Index::is_name(&text.original) {
                true => stored_path(root, &text.original)?,
                false => text.original.clone(),
            };
        }
        Ok(files)
    }
}

/// Files that are copied and take more than this are named.
const LARGE_BYTES: u64 = 100_000_000;
/// So many, at most.
const LARGE_NAMED: usize = 8;

/// What a person should know of large files that are copied: they may be what was to be compressed, or not wanted at all.
/// What is under a `.git` counts as one.
fn large_copies<'a>(
    root: &Path,
    copies: impl Iterator<Item = &'a Path>,
) -> Result<Option<String>, Error> {
    let mut found: BTreeMap<&Path, (u64, usize)> = BTreeMap::new();
    for path in copies {
        let bytes = fs::metadata(root.join(path)).at(&root.join(path))?.len();
        let is_git = |path: &&Path| path.file_name().is_some_and(|name| name == ".git");
        let (all, count) = found
            .entry(path.ancestors().find(is_git).unwrap_or(path))
            .or_default();
        *all += bytes;
        *count += 1;
    }
    let mut large: Vec<_> = found
        .into_iter()
        .filter(|(_, (bytes, _))| *bytes > LARGE_BYTES)
        .collect();
    if large.is_empty() {
        return Ok(None);
    }
    large.sort_by_key(|(_, (bytes, _))| Reverse(*bytes));
    let size = |bytes| format!("{:.2} GB", bytes as f64 / 1e9);
    let names = large.iter().take(LARGE_NAMED);
    let names = names.map(|(path, (bytes, count))| {
        let path = shown(path.display());
        match count {
            1 => format!("{path} ({})", size(*bytes)),
            _ => format!("{path} ({count} files, {})", size(*bytes)),
        }
    });
    let names = names.collect::<Vec<_>>().join(", ");
    let count: usize = large.iter().map(|(_, (_, count))| count).sum();
    let bytes = size(large.iter().map(|(_, (bytes, _))| bytes).sum());
    let more = match large.len().checked_sub(LARGE_NAMED) {
        None | Some(0) => "",
        Some(_) => " and others",
    };
    Ok(Some(format!(
        "{count} large files are copied as they are, {bytes}: {names}{more}"
    )))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn folders_of<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> BTreeSet<PathBuf> {
    paths.map(|path| folder_of(path).into()).collect()
}

/// The name of a file that is known to be UTF-8.
fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into()
}

/// What a checkpoint or an index is called in the compressed folder.
fn stored_path(root: &Path, path: &Path) -> Result<PathBuf, Error> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or(ErrorKind::NameUtf8).at(&root.join(path))?;
    Ok(path.with_file_name(stored_name(name)))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("maps of strings") + "\n"
}

/// The index of a compressed folder, stored tensors by the names that they have in stored files; and what the original
/// says that is not so. `tensors` are by file and name in the original folder.
fn stored_index(
    path: &Path,
    mut index: Index,
    tensors: &HashMap<(&Path, &str), &TensorReport>,
) -> (String, Vec<String>) {
    let sizes = tensors
        .iter()
        .map(|(place, tensor)| (*place, tensor.original_bytes));
    let mistakes = index.mistakes(path, &sizes.collect());
    let mut bytes = 0;
    let stored = index.weight_map.iter().map(|(name, shard)| {
        let file = folder_of(path).join(shard);
        let tensor = tensors.get(&(&*file, name.as_str()));
        bytes += tensor.map_or(0, |tensor| tensor.stored_bytes);
        let name = tensor.map_or(name, |tensor| &tensor.stored_name);
        (name.clone(), stored_name(shard))
    });
    index.weight_map = stored.collect();
    // Loaders want it, though it may be empty.
    let metadata = index.rest.entry("metadata").or_insert(Value::Null);
    if !metadata.is_object() {
        *metadata = Value::Object(Default::default());
    }
    if let Some(total) = metadata.get_mut("total_size") {
        *total = bytes.into();
    }
    (json(&index), mistakes)
}

/// The file by which loaders find the weights of a folder, if it is clear which.
fn weights<'a>(
    checkpoints: impl Iterator<Item = &'a PathBuf>,
    indexes: impl Iterator<Item = &'a PathBuf>,
) -> Option<String> {
    let [checkpoints, indexes] = [
        checkpoints.map(|path| name_of(path)).collect::<Vec<_>>(),
        indexes.map(|path| name_of(path)).collect(),
    ];
    let usual = ["model.safetensors", "model.safetensors.index.json"].map(stored_name);
    let all = || checkpoints.iter().chain(&indexes);
    let usual = usual.iter().find(|name| all().any(|other| other == *name));
    let only = match (&*indexes, &*checkpoints) {
        ([index], _) => Some(index),
        ([], [file]) => Some(file),
        _ => None,
    };
    usual.or(only).cloned()
}

/// The text of a `config.json` that can be marked, or why it cannot.
fn check_config(text: Vec<u8>) -> Result<String, &'static str> {
    let no_object = "it is not a JSON object";
    let text = String::from_utf8(text).map_err(|_| no_object)?;
    let keys: BTreeMap<String, IgnoredAny> = serde_json::from_str(&text).map_err(|_| no_object)?;
    match keys.contains_key(QUANT_KEY) {
        true => Err("it has a quantization_config"),
        false => Ok(text),
    }
}

/// A `config.json` by which loaders know that they need zipserv. All that it has stays as it is.
fn marked_config(text: &str, weights: Option<String>) -> String {
    let end = text.rfind('}').expect("a JSON object");
    let (members, rest) = text.split_at(text[..end].trim_end().len());
    let first = members.find('{').expect("a JSON object") + 1;
    let space = &members[first..][..members[first..].find('"').unwrap_or(0)];
    let comma = if first == members.len() { "" } else { "," };
    let mut mark = BTreeMap::from([("quant_method", QUANT_METHOD)]);
    mark.extend(weights.as_deref().map(|weights| ("weights", weights)));
    let mark = serde_json::to_string(&mark).expect("a map of strings");
    format!("{members}{comma}{space}\"{QUANT_KEY}\": {mark}{rest}")
}
