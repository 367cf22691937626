//! Checkpoints in files: `.safetensors` files and the folders that model hubs hand out.
//!
//! A compressed checkpoint is itself made of valid `.safetensors` files. Each tensor that shrinks is a U8 tensor under
//! its name plus a suffix. It holds a [`CompressedMatrix`](crate::CompressedMatrix) of the leading dimensions by the
//! last one, if it is a BF16 tensor of two or more dimensions that suits the layout of the GPU; that of an
//! [`ExpertStack`](crate::ExpertStack), if it has three or more and its experts would not start with tiles; and else
//! [`Planes`](crate::Planes), as all tensors of an archive do. Every other tensor is as it was. The metadata holds what
//! it takes to restore the original file byte for byte. In a compressed folder, files and `config.json` tell loaders
//! that they need zipserv, and a manifest restores what was there.
//!
//! ```no_run
//! use zipserv::checkpoint::{self, Options};
//!
//! let options = Options::default();
//! let report = checkpoint::compress("model.safetensors", "small.safetensors", &options)?;
//! println!("{:.1} % of the original", 100.0 * report.ratio());
//! let verdict = checkpoint::verify("small.safetensors", "model.safetensors", &options)?;
//! assert_eq!(verdict.difference, None);
//! checkpoint::decompress("small.safetensors", "restored.safetensors", &options)?;
//! # Ok::<(), checkpoint::Error>(())
//! ```
//!
//! [`Options::archive`] makes the smallest form, for disks and networks, which [`convert`] turns into that for GPUs.
//! [`open`] gives single tensors of a compressed checkpoint, for whoever loads a model from it.

mod attributes;
mod checksum;
mod compress;
mod container;
mod convert;
mod decompress;
mod error;
mod experts;
mod files;
mod folder;
mod foreign;
mod header;
mod input;
mod inspect;
mod layout;
mod manifest;
mod names;
mod open;
mod options;
mod output;
mod place;
mod report;
mod scan;
mod shown;
mod source;
mod transform;
mod verify;
mod writer;

#[cfg(feature = "synthetic")]
pub(crate) use error::At;
#[cfg(feature = "synthetic")]
pub(crate) use header::{Header, Tensor};
#[cfg(feature = "synthetic")]
pub(crate) use output::OutputFile;

pub use compress::compress;
pub use convert::convert;
pub use decompress::decompress;
pub use error::{Error, ErrorKind};
pub use foreign::Foreign;
pub use inspect::inspect;
pub use names::{original_name, stored_name};
pub use open::{Checkpoint, TensorView, open};
pub use options::{Options, Progress};
pub use report::{FileReport, Reason, Report, Stack, Storage, TensorReport};
pub use shown::shown;
pub use verify::{Difference, DifferenceKind, Verdict, verify};
