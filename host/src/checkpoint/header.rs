use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    ops::Range,
};

use serde::{
    Deserialize, Serialize, Serializer,
    de::{Deserializer, MapAccess, SeqAccess, Visitor},
    ser::SerializeMap,
};

use super::{ErrorKind, foreign::Foreign};

/// The longest header that safetensors readers accept.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
/// As many as NumPy and PyTorch allow, so that a header cannot take much more memory than bytes.
pub(crate) const MAX_DIMS: usize = 64;
/// Tensors, or entries of metadata, in one file. A short entry takes ten times its bytes in
/// memory; the largest models have fewer tensors than this in all their shards.
pub(crate) const MAX_ENTRIES: usize = 1 << 17;
/// Bytes of the length in front of the header.
pub(crate) const LENGTH_BYTES: usize = 8;
/// The data of a file that we write starts at a multiple of this.
const DATA_ALIGN: usize = 64;
const METADATA: &str = "__metadata__";

/// One tensor in the header of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub name: String,
    /// As in the file: a dtype that this build has never heard of is just bytes.
    pub dtype: String,
    pub shape: Vec<u64>,
    /// Bytes from the end of the header.
    pub data: Range<u64>,
}

impl Tensor {
    pub fn bytes(&self) -> u64 {
        self.data.end - self.data.start
    }

    /// Rows and columns of a BF16 tensor of two or more dimensions; the leading ones count as
    /// rows.
    pub fn matrix_shape(&self) -> Option<(usize, usize)> {
        match self.shape.as_slice() {
            [leading @ .., cols] if !leading.is_empty() && self.dtype == "BF16" => {
                let rows = leading.iter().product::<u64>();
                Some((usize::try_from(rows).ok()?, usize::try_from(*cols).ok()?))
            }
            _ => None,
        }
    }

    /// Bits of an element, if the dtype is known.
    pub fn dtype_bits(&self) -> Option<u64> {
        Some(match self.dtype.as_str() {
            "F4" => 4,
            "F6_E2M3" | "F6_E3M2" => 6,
            "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
            "U16" | "I16" | "F16" | "BF16" => 16,
            "U32" | "I32" | "F32" => 32,
            "U64" | "I64" | "F64" | "C64" => 64,
            _ => return None,
        })
    }

    fn check(&self, data_at: u64) -> Result<(), ErrorKind> {
        let Range { start, end } = self.data;
        if start > end {
            return Err(ErrorKind::OffsetOrder {
                tensor: self.name.clone(),
                start,
                end,
                data_at,
            });
        }
        let expected = self
            .shape
            .iter()
            .try_fold(1u64, |n, &dim| n.checked_mul(dim))
            .and_then(|n| n.checked_mul(self.dtype_bits().unwrap_or(1)))
            .ok_or_else(|| ErrorKind::ShapeOverflow {
                tensor: self.name.clone(),
                shape: self.shape.clone(),
            })?
            .div_ceil(8);
        if self.dtype_bits().is_some() && expected != self.bytes() {
            return Err(ErrorKind::TensorSize {
                tensor: self.name.clone(),
                dtype: self.dtype.clone(),
                shape: self.shape.clone(),
                expected,
                found: self.bytes(),
            });
        }
        Ok(())
    }
}

/// The header of a safetensors file: tensors that follow each other without holes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    pub metadata: BTreeMap<String, String>,
    /// In the order of their data.
    pub tensors: Vec<Tensor>,
    /// Where the data starts in the file.
    pub data_at: u64,
}

impl Header {
    /// Reads and checks the header of a whole file. Nothing is allocated or looked through before the
    /// length in it is known to fit.
    ///
    /// # Errors
    /// [`ErrorKind::Foreign`] for a file of another kind that is known.
    pub fn of_file(file: &[u8]) -> Result<Self, ErrorKind> {
        Self::read(file).map_err(|error| Foreign::of(file).map_or(error, ErrorKind::Foreign))
    }

    fn read(file: &[u8]) -> Result<Self, ErrorKind> {
        let found = file.len() as u64;
        let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(ErrorKind::TooShort(found));
        };
        let length = u64::from_le_bytes(*length);
        let available = rest.len() as u64;
        if length > available {
            return Err(ErrorKind::HeaderTruncated { length, available });
        }
        if length > MAX_HEADER_BYTES {
            return Err(ErrorKind::HeaderTooLong(length));
        }
        // A copy: another process may change the bytes of a mapped file, but a string stays UTF-8.
        let json = String::from_utf8(rest[..length as usize].to_vec())
            .map_err(|error| ErrorKind::HeaderUtf8(error.utf8_error()))?;
        let header = Self::of_json(&json)?;
        let (expected, found) = (header.data_bytes(), available - length);
        if found < expected {
            return Err(ErrorKind::DataTruncated { expected, found });
        }
        if found > expected {
            return Err(ErrorKind::TrailingData { expected, found });
        }
        Ok(header)
    }

    /// Reads and checks a header without its length and data.
    pub fn of_json(json: &str) -> Result<Self, ErrorKind> {
        if json.len() as u64 > MAX_HEADER_BYTES {
            return Err(ErrorKind::HeaderTooLong(json.len() as u64));
        }
        let Entries {
            metadata,
            tensors,
            error,
        } = serde_json::from_str(json).map_err(ErrorKind::HeaderJson)?;
        if let Some(error) = error {
            return Err(error);
        }
        let mut header = Self {
            metadata,
            tensors,
            data_at: (LENGTH_BYTES + json.len()) as u64,
        };
        header.check_names()?;
        header
            .tensors
            .sort_by_key(|tensor| (tensor.data.start, tensor.data.end));
        let mut expected = 0;
        let data_at = header.data_at;
        for tensor in &header.tensors {
            tensor.check(data_at)?;
            let start = tensor.data.start;
            if start != expected {
                let tensor = tensor.name.clone();
                return Err(if start < expected {
                    ErrorKind::Overlap {
                        tensor,
                        start,
                        expected,
                        data_at,
                    }
                } else {
                    ErrorKind::Hole {
                        tensor,
                        start,
                        expected,
                        data_at,
                    }
                });
            }
            expected = tensor.data.end;
        }
        // Later sums of offsets cannot overflow.
        if expected.checked_add(header.data_at).is_none() {
            return Err(ErrorKind::DataTruncated { expected, found: 0 });
        }
        Ok(header)
    }

    fn check_names(&self) -> Result<(), ErrorKind> {
        let mut names = HashSet::with_capacity(self.tensors.len());
        match self.tensors.iter().find(|t| !names.insert(&t.name)) {
            Some(twice) => Err(ErrorKind::DuplicateTensor(twice.name.clone())),
            None => Ok(()),
        }
    }

    /// Bytes of all tensors.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.last().map_or(0, |tensor| tensor.data.end)
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.data_at + self.data_bytes()
    }

    /// Where the data of a tensor lies in the file.
    pub fn file_range(&self, tensor: &Tensor) -> Range<u64> {
        self.data_at + tensor.data.start..self.data_at + tensor.data.end
    }

    /// The bytes of a tensor in the file that this header describes.
    pub fn slice<'a>(&self, file: &'a [u8], tensor: &Tensor) -> &'a [u8] {
        let Range { start, end } = self.file_range(tensor);
        &file[start as usize..end as usize]
    }

    /// With other values for some keys of the metadata.
    pub fn with_metadata<const N: usize>(mut self, entries: [(&str, String); N]) -> Self {
        let entries = entries.map(|(key, value)| (key.into(), value));
        self.metadata.extend(entries);
        self
    }

    /// The length and the header as they stand in a file, padded to at least `least` bytes in all and so that the data
    /// is aligned. `data_at` becomes the end of them.
    pub fn lay_out(&mut self, least: u64) -> Result<Vec<u8>, ErrorKind> {
        let mut bytes = vec![0; LENGTH_BYTES];
        serde_json::to_writer(&mut bytes, &*self).map_err(ErrorKind::HeaderJson)?;
        let end = bytes.len().max(least as usize);
        bytes.resize(end.next_multiple_of(DATA_ALIGN), b' ');
        let length = (bytes.len() - LENGTH_BYTES) as u64;
        if length > MAX_HEADER_BYTES {
            return Err(ErrorKind::HeaderTooLong(length));
        }
        bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.data_at = bytes.len() as u64;
        Ok(bytes)
    }
}

#[derive(Serialize, Deserialize)]
struct TensorInfo<S, T> {
    dtype: S,
    shape: T,
    data_offsets: (u64, u64),
}

impl Serialize for Header {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, &self.metadata)?;
        }
        for tensor in &self.tensors {
            let info = TensorInfo {
                dtype: &tensor.dtype,
                shape: &tensor.shape,
                data_offsets: (tensor.data.start, tensor.data.end),
            };
            map.serialize_entry(&tensor.name, &info)?;
        }
        map.end()
    }
}

/// The entries of a header as they stand in the file. A map would hide names that occur twice.
struct Entries {
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor>,
    /// What is wrong with the entries though they are good JSON. Those after it are not kept.
    error: Option<ErrorKind>,
}

/// A shape of which no more than [`MAX_DIMS`] dimensions are kept.
struct Shape {
    kept: Vec<u64>,
    dims: usize,
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;

        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let (mut kept, mut dims) = (Vec::new(), 0);
                while let Some(dim) = seq.next_element()? {
                    dims += 1;
                    if dims <= MAX_DIMS {
                        kept.push(dim);
                    }
                }
                Ok(Shape { kept, dims })
            }
        }

        deserializer.deserialize_seq(ShapeVisitor)
    }
}

/// Metadata of which no more than [`MAX_ENTRIES`] entries, and one, are kept.
#[derive(Default)]
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MetadataVisitor;

        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    if entries.len() <= MAX_ENTRIES {
                        entries.insert(key, value);
                    }
                }
                Ok(Metadata(entries))
            }
        }

        deserializer.deserialize_map(MetadataVisitor)
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut metadata = None;
                let mut tensors = Vec::new();
                let mut error = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        let value: Option<Metadata> = map.next_value()?;
                        let Metadata(value) = value.unwrap_or_default();
                        if value.len() > MAX_ENTRIES {
                            error.get_or_insert(ErrorKind::TooManyEntries("entries of metadata"));
                        }
                        if metadata.replace(value).is_some() {
                            return Err(serde::de::Error::duplicate_field(METADATA));
                        }
                        continue;
                    }
                    let info: TensorInfo<String, Shape> = map.next_value()?;
                    if info.shape.dims > MAX_DIMS {
                        error.get_or_insert_with(|| ErrorKind::Dimensions {
                            tensor: name.clone(),
                            dims: info.shape.dims,
                        });
                    }
                    if tensors.len() == MAX_ENTRIES {
                        error.get_or_insert(ErrorKind::TooManyEntries("tensors"));
                        continue;
                    }
                    tensors.push(Tensor {
                        name,
                        dtype: info.dtype,
                        shape: info.shape.kept,
                        data: info.data_offsets.0..info.data_offsets.1,
                    });
                }
                Ok(Entries {
                    metadata: metadata.unwrap_or_default(),
                    tensors,
                    error,
                })
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}
