use std::{cmp::Reverse, collections::HashSet};

use super::{
    ErrorKind,
    header::{Header, Tensor},
    names::{CRC_KEY, HEADER_KEY, SUFFIX_KEY, VERSION, VERSION_KEY},
    report::{FileReport, Storage, TensorReport},
    scan::Scan,
    source::{Original, Source},
};
use crate::{Histogram, codec::Encoder};

/// Everything about the compressed form of a file but the bytes of its matrices.
pub(crate) struct Plan {
    /// Length and header.
    pub header_bytes: Vec<u8>,
    pub header: Header,
    /// How the tensors of `header` come about.
    pub items: Vec<Item>,
    pub report: FileReport,
}

/// One tensor of the compressed file.
pub(crate) struct Item {
    /// Index of the tensor in the original header.
    pub tensor: usize,
    /// For a tensor that is not stored as it was.
    pub encoder: Option<Encoder>,
}

impl Plan {
    /// `suffix` is what [`suffix`] gives for the tensors of the file, or of all files that belong together.
    pub fn new(original: &Original, scan: Scan, suffix: String) -> Result<Self, ErrorKind> {
        let tensors = &original.header().tensors;
        let mut items = Vec::with_capacity(tensors.len());
        let mut reports = Vec::with_capacity(tensors.len());
        for (index, (tensor, exponents)) in tensors.iter().zip(scan.exponents).enumerate() {
            let (storage, encoder) = match encoder(tensor, exponents.as_deref()) {
                Ok(encoder) => (Storage::Compressed, Some(encoder)),
                Err(storage) => (storage, None),
            };
            let stored = encoder.as_ref().map(|e| e.header().stored_bytes() as u64);
            reports.push(TensorReport {
                name: tensor.name.clone(),
                stored_name: match encoder {
                    Some(_) => format!("{}{suffix}", tensor.name),
                    None => tensor.name.clone(),
                },
                dtype: tensor.dtype.clone(),
                shape: tensor.shape.clone(),
                original_bytes: tensor.bytes(),
                stored_bytes: stored.unwrap_or(tensor.bytes()),
                storage,
                exponents,
            });
            items.push(Item {
                tensor: index,
                encoder,
            });
        }
        // Matrices first: their sizes are multiples of 16 bytes, so all of them are aligned for
        // an upload. Then the widest dtypes, which keeps the others aligned too.
        items.sort_by_key(|item| match &item.encoder {
            Some(_) => Reverse(u64::MAX),
            None => Reverse(tensors[item.tensor].dtype_bits().unwrap_or(0)),
        });

        let mut end = 0;
        let stored = items.iter().map(|item| {
            let tensor = &tensors[item.tensor];
            let start = end;
            match &item.encoder {
                Some(encoder) => {
                    let bytes = encoder.header().stored_bytes() as u64;
                    end += bytes;
                    Tensor {
                        name: reports[item.tensor].stored_name.clone(),
                        dtype: "U8".into(),
                        shape: vec![bytes],
                        data: start..end,
                    }
                }
                None => {
                    end += tensor.bytes();
                    Tensor {
                        data: start..end,
                        ..tensor.clone()
                    }
                }
            }
        });
        let mut header = Header {
            tensors: stored.collect(),
            metadata: original.header().metadata.clone(),
            data_at: 0,
        };
        header.metadata.extend([
            (VERSION_KEY.into(), VERSION.into()),
            (SUFFIX_KEY.into(), suffix),
            (HEADER_KEY.into(), original.json().into()),
            (CRC_KEY.into(), format!("{:08x}", scan.crc)),
        ]);
        let header_bytes = header.lay_out()?;
        Ok(Self {
            report: FileReport {
                path: original.input().path().into(),
                original_bytes: original.input().len(),
                stored_bytes: header.file_bytes(),
                tensors: reports,
            },
            header_bytes,
            header,
            items,
        })
    }
}

/// The encoder of a tensor, or why it is stored as it is.
fn encoder(tensor: &Tensor, exponents: Option<&Histogram>) -> Result<Encoder, Storage> {
    if tensor.dtype != "BF16" {
        return Err(Storage::Dtype);
    }
    if tensor.shape.len() < 2 {
        return Err(Storage::Shape);
    }
    let exponents = exponents.ok_or(Storage::Incompressible)?;
    let encoder = tensor
        .matrix_shape()
        .and_then(|(rows, cols)| Encoder::new(rows, cols, exponents).ok());
    encoder
        .filter(|encoder| (encoder.header().stored_bytes() as u64) < tensor.bytes())
        .ok_or(Storage::Incompressible)
}

/// What is added to the names of compressed tensors: no name becomes one that there is.
pub(crate) fn suffix<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> String {
    let tensors = tensors.into_iter();
    let names: HashSet<_> = tensors.map(|tensor| tensor.name.as_str()).collect();
    let taken = |suffix: &str| {
        names
            .iter()
            .any(|name| name.strip_suffix(suffix).is_some_and(|n| names.contains(n)))
    };
    let numbered = (2..).map(|n| format!(".zipserv{n}"));
    std::iter::once(".zipserv".into())
        .chain(numbered)
        .find(|suffix| !taken(suffix))
        .expect("names are finite")
}
