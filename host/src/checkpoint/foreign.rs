/// Kinds of files that are mistaken for `.safetensors` files, told apart by how they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// A model for llama.cpp.
    Gguf,
    /// A zip archive, as PyTorch writes `.bin`, `.pt` and `.pth` files.
    Zip,
    /// A pickle, as PyTorch wrote these before version 1.6.
    Pickle,
    /// What git has in place of a large file.
    LfsPointer,
    /// A page of a web site.
    Html,
    /// A file compressed by gzip.
    Gzip,
    /// A file compressed by zstd.
    Zstd,
}

/// How they start, in any case and after white space.
const STARTS: [(&[u8], Foreign); 8] = [
    (b"GGUF", Foreign::Gguf),
    (b"PK\x03\x04", Foreign::Zip),
    (b"\x80\x02", Foreign::Pickle),
    (b"version https://git-lfs", Foreign::LfsPointer),
    (b"<!doctype html", Foreign::Html),
    (b"<html", Foreign::Html),
    (b"\x1f\x8b\x08", Foreign::Gzip),
    (b"\x28\xb5\x2f\xfd", Foreign::Zstd),
];

/// White space is looked past in so many bytes.
pub(crate) const START_BYTES: usize = 512;

impl Foreign {
    /// The kind of a file that is no safetensors file, if it is one of these, by its first [`START_BYTES`].
    pub(crate) fn of(file: &[u8]) -> Option<Self> {
        let start = file[..file.len().min(START_BYTES)].trim_ascii_start();
        let is_start = |of_kind: &[u8]| {
            let found = start.get(..of_kind.len());
            found.is_some_and(|found| found.eq_ignore_ascii_case(of_kind))
        };
        let mut kinds = STARTS.iter();
        kinds
            .find(|(of_kind, _)| is_start(of_kind))
            .map(|&(_, kind)| kind)
    }

    /// What the file is and what to do, in a sentence.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Gguf => "a GGUF file; zipserv takes the .safetensors files that it was made of",
            Self::Zip => {
                "a zip archive, as PyTorch's .bin and .pt files are; save its tensors with safetensors.torch.save_file first"
            }
            Self::Pickle => {
                "a pickle, as old PyTorch files are; save its tensors with safetensors.torch.save_file first"
            }
            Self::LfsPointer => {
                "a pointer of Git LFS, not the file itself; `git lfs pull` downloads that"
            }
            Self::Html => {
                "a web page, not a model; look at the address and download the file again"
            }
            Self::Gzip => "compressed by gzip; unpack it with `gunzip` first",
            Self::Zstd => "compressed by zstd; unpack it with `unzstd` first",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_how_they_start() {
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        for (file, kind) in [
            (&b"GGUF\x03\0\0\0"[..], Some(Foreign::Gguf)),
            (b"PK\x03\x04\0\0\x08\x08", Some(Foreign::Zip)),
            (b"\x80\x02\x8a\nl\xfc\x9cF\xf9", Some(Foreign::Pickle)),
            (lfs, Some(Foreign::LfsPointer)),
            (b"\n <!DOCTYPE html>\n<html lang=en>", Some(Foreign::Html)),
            (b"<HTML><body>", Some(Foreign::Html)),
            (b"\x1f\x8b\x08\0", Some(Foreign::Gzip)),
            (b"\x28\xb5\x2f\xfd\0", Some(Foreign::Zstd)),
            (b"", None),
            (b"GGU", None),
            (b"<svg>", None),
            (b"not a checkpoint", None),
        ] {
            assert_eq!(Foreign::of(file), kind, "{}", file.escape_ascii());
        }
    }
}
