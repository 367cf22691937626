use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    ops::Range,
};

use serde::{
    Deserialize, Serialize, Serializer,
    de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
    ser::SerializeMap,
};

use super::{
    Error, ErrorKind,
    error::At,
    foreign::{Foreign, START_BYTES},
    input::Input,
};

/// The longest header that safetensors readers accept.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
/// As many as NumPy and PyTorch allow, so that a header cannot take much more memory than bytes.
pub(crate) const MAX_DIMS: usize = 64;
/// Tensors, or entries of metadata, in one file. A short entry takes several times its bytes in
/// memory; the largest models have fewer tensors than this in all their shards.
pub(crate) const MAX_ENTRIES: usize = 600_000;
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

    /// Experts, and rows of each, of a BF16 tensor of three or more dimensions: a stack of matrices of the last two.
    pub fn stack_shape(&self) -> Option<(usize, usize)> {
        match self.shape.as_slice() {
            [leading @ .., rows, _] if !leading.is_empty() && self.dtype == "BF16" => {
                let experts = leading.iter().product::<u64>();
                Some((usize::try_from(experts).ok()?, usize::try_from(*rows).ok()?))
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
    /// Reads and checks the header of a file, and gives its JSON text too. Nothing is allocated or looked through
    /// before the length in it is known to fit.
    ///
    /// # Errors
    /// [`ErrorKind::Foreign`] for a file of another kind that is known.
    pub fn of_file(file: &Input) -> Result<(Self, String), Error> {
        Self::read(file).map_err(|error| {
            // What has happened to a file says more than what it is.
            if matches!(error.kind(), ErrorKind::Changed | ErrorKind::Io(_)) {
                return error;
            }
            let start = file.read(0..file.len().min(START_BYTES as u64));
            match start.ok().and_then(|start| Foreign::of(&start)) {
                Some(foreign) => Error::new(file.path(), ErrorKind::Foreign(foreign)),
                None => error,
            }
        })
    }

    fn read(file: &Input) -> Result<(Self, String), Error> {
        let path = file.path();
        let Some(available) = file.len().checked_sub(LENGTH_BYTES as u64) else {
            return Err(Error::new(path, ErrorKind::TooShort(file.len())));
        };
        let mut length = [0; LENGTH_BYTES];
        file.read_at(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > available {
            let kind = ErrorKind::HeaderTruncated { length, available };
            return Err(Error::new(path, kind));
        }
        if length > MAX_HEADER_BYTES {
            return Err(Error::new(path, ErrorKind::HeaderTooLong(length)));
        }
        let start = LENGTH_BYTES as u64;
        let json = String::from_utf8(file.read(start..start + length)?)
            .map_err(|error| ErrorKind::HeaderUtf8(error.utf8_error()))
            .at(path)?;
        let header = Self::of_json(&json).at(path)?;
        let (expected, found) = (header.data_bytes(), available - length);
        if found != expected {
            let kind = match found < expected {
                true => ErrorKind::DataTruncated { expected, found },
                false => ErrorKind::TrailingData { expected, found },
            };
            return Err(Error::new(path, kind));
        }
        Ok((header, json))
    }

    /// Reads and checks a header without its length and data.
    pub fn of_json(json: &str) -> Result<Self, ErrorKind> {
        if json.len() as u64 > MAX_HEADER_BYTES {
            return Err(ErrorKind::HeaderTooLong(json.len() as u64));
        }
        // Counted first, so that too many take no memory, and others no more than they need.
        let counts = Counts::of(json);
        for (count, of) in [
            (counts.tensors, "tensors"),
            (counts.metadata, "entries of metadata"),
        ] {
            if count > MAX_ENTRIES {
                return Err(ErrorKind::TooManyEntries(of));
            }
        }
        let entries = Entries {
            tensors: Vec::with_capacity(counts.tensors),
            ..Entries::default()
        };
        let mut reader = serde_json::Deserializer::from_str(json);
        let entries = reader.deserialize_map(entries);
        let entries = entries.and_then(|entries| reader.end().map(|()| entries));
        let Entries {
            metadata,
            tensors,
            error,
        } = entries.map_err(ErrorKind::HeaderJson)?;
        if let Some(error) = error {
            return Err(error);
        }
        let mut header = Self {
            metadata: metadata.unwrap_or_default(),
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

/// The length and the JSON text of a header, as they stand in a file.
pub(crate) fn header_bytes(json: &str) -> Vec<u8> {
    let length = (json.len() as u64).to_le_bytes();
    [&length, json.as_bytes()].concat()
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

/// How many entries a header has, as far as it is JSON.
#[derive(Default)]
struct Counts {
    tensors: usize,
    metadata: usize,
}

impl Counts {
    fn of(json: &str) -> Self {
        let mut counts = Self::default();
        // What is wrong with it is told when it is read.
        let _ = serde_json::Deserializer::from_str(json).deserialize_map(&mut counts);
        counts
    }
}

impl<'de> Visitor<'de> for &mut Counts {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value_seed(CountEntries(&mut self.metadata))?;
            } else {
                map.next_value::<IgnoredAny>()?;
                self.tensors += 1;
            }
        }
        Ok(())
    }
}

/// Adds the entries of a map.
struct CountEntries<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for CountEntries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CountEntries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map of strings")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            *self.0 += 1;
        }
        Ok(())
    }
}

/// The entries of a header as they stand in the file. A map would hide names that occur twice.
#[derive(Default)]
struct Entries {
    metadata: Option<BTreeMap<String, String>>,
    tensors: Vec<Tensor>,
    /// What is wrong with the entries though they are good JSON.
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

impl<'de> Visitor<'de> for Entries {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                let value: Option<BTreeMap<String, String>> = map.next_value()?;
                if self.metadata.replace(value.unwrap_or_default()).is_some() {
                    return Err(serde::de::Error::duplicate_field(METADATA));
                }
                continue;
            }
            let info: TensorInfo<String, Shape> = map.next_value()?;
            if info.shape.dims > MAX_DIMS {
                self.error.get_or_insert_with(|| ErrorKind::Dimensions {
                    tensor: name.clone(),
                    dims: info.shape.dims,
                });
            }
            self.tensors.push(Tensor {
                name,
                dtype: info.dtype,
                shape: info.shape.kept,
                data: info.data_offsets.0..info.data_offsets.1,
            });
        }
        Ok(self)
    }
}
