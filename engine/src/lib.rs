//! Runs language models from compressed weights, from a Hugging Face folder to its next token.
//!
//! ```text
//! text --Tokenizer--> tokens --Executor: a model's layers on a device--> logits --Sampler--> a token, and on
//! ```
//!
//! - `config` and `models` say what a model is: each architecture is a short file that reads like its paper.
//! - [`Executor`] is what runs one; `cpu` is the plain reference, in FP32. `memory` counts what one takes.
//! - `text` has tokenizer and chat template, `generate` the loop around it all, and `perplexity` scores texts.

#[cfg(feature = "cuda")]
pub mod bench;
pub mod config;
pub mod cpu;
pub mod error;
pub mod executor;
mod files;
pub mod generate;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod memory;
pub mod models;
pub mod perplexity;
pub mod rope;
pub mod sampling;
mod stop;
pub mod text;
mod weights;

pub use config::Config;
pub use cpu::CpuExecutor;
pub use error::{Error, Result};
pub use executor::{Chunk, Executor, Logits, SequenceId};
pub use generate::{Generator, Request};
pub use sampling::Sampling;
pub use text::{ChatTemplate, Message, Tokenizer};
