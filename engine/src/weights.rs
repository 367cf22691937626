//! Weights of a checkpoint, as a model wants them.

use std::path::Path;

use half::bf16;
use zipserv::checkpoint::{self, Checkpoint, TensorView};

use crate::{
    Config, Error, Result,
    models::{Model, Weight},
};

/// A weight as it is stored.
#[cfg(feature = "cuda")]
pub enum Stored {
    /// In the layout of the GPU.
    Matrix(zipserv::CompressedMatrix<'static>),
    /// BF16, row after row.
    Bytes(Vec<u8>),
}

/// The checkpoint of a folder, compressed or not, which has all weights of a model.
pub struct Weights(Checkpoint);

impl Weights {
    /// Opens a folder, and checks names, dtypes and shapes before anything else is read.
    ///
    /// # Errors
    /// Those of [`checkpoint::open`]; [`Error::Tensor`] for the first weight that is not as it should be.
    pub fn open(folder: &Path, config: &Config) -> Result<Self> {
        let this = Self(checkpoint::open(folder)?);
        Model::new(config, &mut |weight| this.find(&weight).map(drop))?;
        Ok(this)
    }

    /// Reads a weight, and decodes it if it is compressed.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and if what is stored is damaged.
    pub fn read(&self, weight: &Weight) -> Result<Vec<bf16>> {
        let bytes = self.find(weight)?.decoded()?;
        let (pairs, _) = bytes.as_chunks();
        Ok(pairs
            .iter()
            .map(|&pair| bf16::from_le_bytes(pair))
            .collect())
    }

    /// Reads a weight as it is stored, but that only matrices in the layout of the GPU stay compressed.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    #[cfg(feature = "cuda")]
    pub fn stored(&self, weight: &Weight) -> Result<Stored> {
        let tensor = self.find(weight)?;
        Ok(match tensor.header() {
            Some(_) => Stored::Matrix(tensor.matrix()?),
            None => Stored::Bytes(tensor.decoded()?),
        })
    }

    fn find(&self, weight: &Weight) -> Result<TensorView<'_>> {
        let tensor = self.0.tensor(&weight.name)?;
        let wrong = |reason| Error::Tensor {
            path: tensor.path().into(),
            name: weight.name.clone(),
            reason,
        };
        if tensor.dtype() != "BF16" {
            let dtype = tensor.dtype();
            return Err(wrong(format!("{dtype}, but only BF16 runs")));
        }
        if tensor.shape() != weight.shape {
            let (found, wanted) = (tensor.shape(), &weight.shape);
            let why = format!("has shape {found:?}, but by config.json {wanted:?}");
            return Err(wrong(why));
        }
        Ok(tensor)
    }
}
