//! What the tests of checkpoints share.
#![allow(dead_code)]

use std::{fs, path::Path};

use sha2::{Digest, Sha256};
use zipserv::checkpoint::{self, Options};

/// A safetensors file: the JSON text of its header as it is given, and data.
pub fn file(json: &str, data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
}

/// One tensor to put in a file.
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

pub fn tensor(name: &str, dtype: &'static str, shape: &[u64], bytes: Vec<u8>) -> Tensor {
    Tensor {
        name: name.into(),
        dtype,
        shape: shape.into(),
        bytes,
    }
}

/// A file with tensors one after the other.
pub fn checkpoint(tensors: &[Tensor]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        let name = serde_json::to_string(&tensor.name).unwrap();
        let (dtype, shape, end) = (tensor.dtype, &tensor.shape, data.len());
        entries.push(format!(
            r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
    }
    file(&format!("{{{}}}", entries.join(",")), &data)
}

/// Bits of BF16 weights whose exponents lie close together, different for each seed.
pub fn weights(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2654435761) | 1;
    let bits = (0..count).map(|_| {
        // The generator of Marsaglia: no need for more than differing bits.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let exponent = 122 - (state >> 16).trailing_zeros().min(6) as u16;
        (state as u16 & 0x807f) | exponent << 7
    });
    bits.flat_map(u16::to_le_bytes).collect()
}

pub fn sha256(path: impl AsRef<Path>) -> String {
    let bytes = fs::read(path).unwrap();
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names in a folder, sorted.
pub fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An error and its causes, as the program prints them, without the path in front.
pub fn text(error: &checkpoint::Error) -> String {
    let mut text = error.kind().to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

pub fn options() -> Options<'static> {
    Options::default()
}

/// Compresses and restores a file in a folder of its own, as an archive too, and checks that nothing is lost and that
/// each form can be made of the other. The compressed file is returned.
pub fn round_trip(original: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("original"), original).unwrap();
    let original_hash = sha256(at("original"));
    let mut expected = vec!["original".to_string()];
    let forms = [("gpu", false), ("archive", true)];
    for (form, archive) in forms {
        let options = options().archive(archive);
        checkpoint::compress(at("original"), at(form), &options).unwrap();
        let verdict = checkpoint::verify(at(form), at("original"), &options).unwrap();
        assert_eq!(verdict.difference, None);
        checkpoint::inspect(at(form), &options).unwrap();
        let restored = format!("{form} restored");
        checkpoint::decompress(at(form), at(&restored), &options).unwrap();
        assert_eq!(original_hash, sha256(at(&restored)));
        expected.extend([form.into(), restored]);
    }
    for (from, _) in forms {
        for (to, archive) in forms {
            let converted = format!("{from} to {to}");
            let options = options().archive(archive);
            checkpoint::convert(at(from), at(&converted), &options).unwrap();
            assert_eq!(sha256(at(&converted)), sha256(at(to)), "{converted}");
            expected.push(converted);
        }
    }
    expected.sort();
    assert_eq!(names(folder.path()), expected);
    fs::read(at("gpu")).unwrap()
}
