//! What files, and the keys of their metadata, are called.

use std::{ffi::OsStr, path::Path};

/// Keys in the metadata of a compressed file.
pub const VERSION_KEY: &str = "zipserv.version";
pub const SUFFIX_KEY: &str = "zipserv.suffix";
pub const HEADER_KEY: &str = "zipserv.header";
pub const CRC_KEY: &str = "zipserv.crc32";
/// Versions of the container, from the first: of matrices that are as their tensors, byte planes too, and aligned stacks
/// too. This build reads all, and writes the first that has what there is.
pub const VERSIONS: [&str; 3] = ["1", "2", "3"];
/// The version of [`MANIFEST`].
pub const MANIFEST_VERSION: &str = "1";

/// What the names of unfinished outputs start and end with.
pub const UNFINISHED_PREFIX: &str = ".zipserv-";
pub const UNFINISHED_SUFFIX: &str = ".partial";
/// What the name of a folder that is being replaced ends with, where that takes more than one step.
pub const REPLACED_EXTENSION: &str = "replaced";

/// What a compressed folder restores its files from.
pub const MANIFEST: &str = "zipserv.json";
/// What loaders read first.
pub const CONFIG: &str = "config.json";
/// By this key of it they know what the weights need.
pub const QUANT_KEY: &str = "quantization_config";
pub const QUANT_METHOD: &str = "zipserv";

const CHECKPOINT_SUFFIX: &str = ".safetensors";
/// What comes before that in the name of a compressed file.
const STORED_SUFFIX: &str = ".zipserv";
/// What the names of indexes of shards end with.
pub const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// The name that a compressed file has in a folder, made of `name`: loaders that do not know zipserv find no weights.
/// Names of other files stay.
///
/// ```
/// use zipserv::checkpoint::{original_name, stored_name};
///
/// assert_eq!(stored_name("model.safetensors"), "model.zipserv.safetensors");
/// assert_eq!(original_name("model.zipserv.safetensors"), "model.safetensors");
/// ```
pub fn stored_name(name: &str) -> String {
    let suffixes = [CHECKPOINT_SUFFIX, INDEX_SUFFIX];
    let stem = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
    match stem {
        Some(stem) => format!("{stem}{STORED_SUFFIX}{}", &name[stem.len()..]),
        None => name.into(),
    }
}

/// The name of which [`stored_name`] makes `name`; others stay.
pub fn original_name(name: &str) -> String {
    let stem = name.strip_suffix(CHECKPOINT_SUFFIX);
    match stem.and_then(|stem| stem.strip_suffix(STORED_SUFFIX)) {
        Some(stem) => format!("{stem}{CHECKPOINT_SUFFIX}"),
        None => name.into(),
    }
}

/// Whether a name is that of a file of tensors.
pub fn is_checkpoint(name: &OsStr) -> bool {
    Path::new(name).extension() == Some(OsStr::new("safetensors"))
}

/// Whether a name is that of an unfinished output, which a killed process leaves behind.
pub fn is_unfinished(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(UNFINISHED_PREFIX.as_bytes()) && name.ends_with(UNFINISHED_SUFFIX.as_bytes())
}
