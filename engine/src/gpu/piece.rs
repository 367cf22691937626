//! Rows and columns of a weight.

use std::{borrow::Cow, ops::Range};

use half::bf16;
use zipserv::{decode, gpu::GpuError};

use crate::{Result, models::Weight, weights::Stored};

/// What a device has of a weight.
pub struct Piece<'a> {
    pub weight: &'a Weight,
    pub rows: Range<usize>,
    /// A vector is one column.
    pub columns: Range<usize>,
}

impl<'a> Piece<'a> {
    pub fn whole(weight: &'a Weight) -> Self {
        let (rows, columns) = shape(weight);
        Self {
            weight,
            rows: 0..rows,
            columns: 0..columns,
        }
    }

    pub fn rows(weight: &'a Weight, rows: Range<usize>) -> Self {
        Self {
            rows,
            ..Self::whole(weight)
        }
    }

    pub fn is_whole(&self) -> bool {
        (self.rows.len(), self.columns.len()) == shape(self.weight)
    }

    /// It, of the whole weight; still compressed where that can be cut so.
    pub fn cut(&self, stored: Stored) -> Result<Stored> {
        if self.is_whole() {
            return Ok(stored);
        }
        let (_, width) = shape(self.weight);
        let cut = |bytes: &[u8]| {
            let rows =
                bytes[2 * self.rows.start * width..2 * self.rows.end * width].chunks(2 * width);
            let columns = 2 * self.columns.start..2 * self.columns.end;
            rows.flat_map(|row| &row[columns.clone()])
                .copied()
                .collect()
        };
        Ok(match stored {
            Stored::Bytes(bytes) => Stored::Bytes(cut(&bytes)),
            Stored::Matrix(matrix) => match matrix.slice(self.rows.clone(), self.columns.clone()) {
                Ok(piece) => Stored::Matrix(piece),
                Err(zipserv::Error::Slice { .. }) => {
                    Stored::Bytes(cut(bytemuck::cast_slice(&decode(&matrix))))
                }
                Err(error) => return Err(GpuError::Weights(error).into()),
            },
        })
    }
}

impl Stored {
    /// Row after row.
    pub fn values(&self) -> Cow<'_, [bf16]> {
        match self {
            Self::Matrix(matrix) => decode(matrix).into(),
            Self::Bytes(bytes) => match bytemuck::try_cast_slice(bytes) {
                Ok(values) => values.into(),
                // The allocator need not align them.
                Err(_) => bytemuck::pod_collect_to_vec(bytes).into(),
            },
        }
    }
}

/// Rows and columns.
fn shape(weight: &Weight) -> (usize, usize) {
    let columns = weight.shape[1..].iter().product::<u64>();
    (weight.shape[0] as usize, columns as usize)
}

#[cfg(test)]
pub mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use safetensors::{Dtype, tensor::TensorView};
    use zipserv::checkpoint::{self, Options};

    use super::*;
    use crate::{Config, gpu::part::Part, models::Model, weights::Weights};

    const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 61, "hidden_size": 128,
        "intermediate_size": 320, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 32, "max_position_embeddings": 48, "attention_bias": true}"#;

    /// A model's folder, and its weights.
    pub fn folder() -> (Config, BTreeMap<String, Vec<bf16>>, tempfile::TempDir) {
        let config = Config::parse(Path::new("config.json"), CONFIG).unwrap();
        let (mut values, mut shapes) = (BTreeMap::new(), BTreeMap::new());
        Model::new(&config, &mut |Weight { name, shape }| {
            let count = shape.iter().product::<u64>();
            // Exponents of a few sizes, some of them rare.
            let value =
                |at: u64| bf16::from_bits((0x3E80 + at * 7919 % 977 + at % 61 / 60 * 0x800) as u16);
            values.insert(name.clone(), (0..count).map(value).collect());
            shapes.insert(name, shape.iter().map(|&size| size as usize).collect());
            Ok(())
        })
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), CONFIG).unwrap();
        let bytes = |values: &Vec<bf16>| {
            values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let bytes: BTreeMap<_, _> = values.iter().map(|(name, v)| (name, bytes(v))).collect();
        let view = |name: &String| {
            let shape: &Vec<usize> = &shapes[name];
            TensorView::new(Dtype::BF16, shape.clone(), &bytes[name]).unwrap()
        };
        let views = values.keys().map(|name| (name.as_str(), view(name)));
        let path = folder.path().join("model.safetensors");
        safetensors::serialize_to_file(views, None, &path).unwrap();
        (config, values, folder)
    }

    #[test]
    fn pieces_are_rows_and_columns_however_they_are_stored() {
        let (config, values, dense) = folder();
        let small = tempfile::tempdir().unwrap();
        let small = small.path().join("small");
        checkpoint::compress(dense.path(), &small, &Options::default()).unwrap();
        let mut cut = 0;
        for path in [dense.path(), &small] {
            let weights = Weights::open(path, &config).unwrap();
            Model::new(&config, &mut |weight| {
                let (rows, columns) = shape(&weight);
                for of in [1, 2, 4] {
                    for index in 0..of {
                        let part = Part { index, of };
                        for columns in [0..columns, part.range(columns)] {
                            let (weight, rows) = (&weight, part.range(rows));
                            let piece = Piece {
                                weight,
                                rows,
                                columns,
                            };
                            let all = &values[&piece.weight.name];
                            let at = |row: usize, column| all[row * shape(piece.weight).1 + column];
                            let expected: Vec<_> = piece
                                .rows
                                .clone()
                                .flat_map(|row| {
                                    piece.columns.clone().map(move |column| (row, column))
                                })
                                .map(|(row, column)| at(row, column))
                                .collect();
                            let found = piece.cut(weights.stored(piece.weight)?)?;
                            assert_eq!(*found.values(), *expected, "{}", piece.weight.name);
                            if let Stored::Matrix(_) = found {
                                cut += usize::from(!piece.is_whole());
                            }
                        }
                    }
                }
                Ok(())
            })
            .unwrap();
        }
        assert!(cut > 0);
    }
}
