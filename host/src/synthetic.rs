//! Generated checkpoints: what trained layers look like to a compressor, at any size.
//!
//! Weights are Gaussian, with a log-normal scale for each row and each column as trained layers
//! have. Names and shapes are those of a language model; its norms are vectors and one tensor is
//! F32, so that not all of it can be compressed.
//!
//! ```no_run
//! use zipserv::{checkpoint::Options, synthetic::Model};
//!
//! Model::new(64_000_000, 1).write("model.safetensors", &Options::default())?;
//! # Ok::<(), zipserv::checkpoint::Error>(())
//! ```

use std::{collections::BTreeMap, os::unix::fs::FileExt, path::Path};

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, LogNormal, StandardNormal};
use rayon::prelude::*;

use crate::checkpoint::{At, Error, Header, Options, OutputFile, Tensor};

/// Rows are generated in blocks of about so many bytes.
const BLOCK_BYTES: usize = 1 << 20;
const HEAD: u64 = 64;

/// A language model with random weights. The same size and seed give the same weights.
#[derive(Clone, Debug)]
pub struct Model {
    seed: u64,
    tensors: Vec<(String, Vec<u64>, Kind)>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A BF16 matrix of trained weights.
    Matrix,
    /// A BF16 vector of gains near one.
    Norm,
    /// The F32 frequencies of rotary embeddings.
    Frequencies,
}

impl Model {
    /// A model of about `bytes` bytes, from `seed`. The smallest has about 120 kB.
    pub fn new(bytes: u64, seed: u64) -> Self {
        // As wide as leaves room for two layers.
        let hidden = (6..=12)
            .map(|log| 1 << log)
            .take_while(|&hidden| hidden == HEAD || 2 * layer_bytes(hidden) <= bytes / 8 * 7)
            .last()
            .expect("the first is always taken");
        let layers = (bytes / 8 * 7 / layer_bytes(hidden)).max(1);
        let rest = bytes.saturating_sub(layers * layer_bytes(hidden));
        let vocabulary = (rest / (2 * hidden)).max(HEAD);

        let mut tensors = vec![matrix("model.embed_tokens", vocabulary, hidden)];
        for layer in 0..layers {
            tensors.extend(self::layer(layer, hidden));
        }
        tensors.push(norm("model.norm", hidden));
        tensors.push((
            "model.rotary_emb.inv_freq".into(),
            vec![HEAD / 2],
            Kind::Frequencies,
        ));
        Self { seed, tensors }
    }

    /// Writes the model as a `.safetensors` file, in parallel on the current rayon pool and in
    /// bounded memory. Returns the bytes of the file.
    ///
    /// # Errors
    /// [`Error`] when the file cannot be written, or exists and is not to be replaced.
    pub fn write(&self, path: impl AsRef<Path>, options: &Options) -> Result<u64, Error> {
        let path = path.as_ref();
        let output = OutputFile::create(path, None, options.force)?;
        let mut header = self.header();
        let bytes = header.lay_out(0).at(path)?;
        output.file().write_all_at(&bytes, 0).at(path)?;
        options.progress.start(header.data_bytes());
        let mut seeds = SmallRng::seed_from_u64(self.seed);
        for (tensor, (_, _, kind)) in header.tensors.iter().zip(&self.tensors) {
            let start = header.file_range(tensor).start;
            let write = |bytes: &[u8], offset: u64| {
                output.file().write_all_at(bytes, start + offset).at(path)?;
                options.progress.step(bytes.len() as u64).at(path)
            };
            let length = tensor.shape[0];
            let seed = seeds.random();
            match kind {
                Kind::Matrix => write_matrix(&tensor.shape, seed, write)?,
                Kind::Norm => write(bytemuck::cast_slice(&gains(length, seed)), 0)?,
                Kind::Frequencies => write(bytemuck::cast_slice(&frequencies(length)), 0)?,
            }
        }
        options.progress.step(0).at(path)?;
        output.commit()?;
        Ok(header.file_bytes())
    }

    fn header(&self) -> Header {
        let mut end = 0;
        let tensors = self.tensors.iter().map(|(name, shape, kind)| {
            let (dtype, size) = match kind {
                Kind::Matrix | Kind::Norm => ("BF16", 2),
                Kind::Frequencies => ("F32", 4),
            };
            let start = end;
            end += size * shape.iter().product::<u64>();
            Tensor {
                name: name.clone(),
                dtype: dtype.into(),
                shape: shape.clone(),
                data: start..end,
            }
        });
        Header {
            metadata: BTreeMap::from([("format".into(), "pt".into())]),
            tensors: tensors.collect(),
            data_at: 0,
        }
    }
}

/// Inner width of the feed-forward part.
fn inner(hidden: u64) -> u64 {
    hidden * 11 / 4
}

fn layer_bytes(hidden: u64) -> u64 {
    2 * (4 * hidden * hidden + 3 * hidden * inner(hidden) + 2 * hidden)
}

fn layer(layer: u64, hidden: u64) -> Vec<(String, Vec<u64>, Kind)> {
    let name = |part: &str| format!("model.layers.{layer}.{part}");
    let inner = inner(hidden);
    vec![
        norm(&name("input_layernorm"), hidden),
        matrix(&name("self_attn.q_proj"), hidden, hidden),
        matrix(&name("self_attn.k_proj"), hidden, hidden),
        matrix(&name("self_attn.v_proj"), hidden, hidden),
        matrix(&name("self_attn.o_proj"), hidden, hidden),
        norm(&name("post_attention_layernorm"), hidden),
        matrix(&name("mlp.gate_proj"), inner, hidden),
        matrix(&name("mlp.up_proj"), inner, hidden),
        matrix(&name("mlp.down_proj"), hidden, inner),
    ]
}

fn matrix(name: &str, rows: u64, cols: u64) -> (String, Vec<u64>, Kind) {
    (format!("{name}.weight"), vec![rows, cols], Kind::Matrix)
}

fn norm(name: &str, len: u64) -> (String, Vec<u64>, Kind) {
    (format!("{name}.weight"), vec![len], Kind::Norm)
}

fn write_matrix(
    shape: &[u64],
    seed: u64,
    write: impl Fn(&[u8], u64) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let (rows, cols) = (shape[0] as usize, shape[1] as usize);
    let scales = scales();
    let col_scales: Vec<f32> = scales
        .sample_iter(SmallRng::seed_from_u64(seed))
        .take(cols)
        .collect();
    let block = (BLOCK_BYTES / (2 * cols)).max(1);
    (0..rows)
        .into_par_iter()
        .step_by(block)
        .try_for_each_init(Vec::new, |weights, first| {
            weights.clear();
            for row in first..rows.min(first + block) {
                // A row has its own generator, so that the threads do not matter.
                let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(1 + row as u64));
                let row_scale = 0.02 * scales.sample(&mut rng);
                weights.extend(col_scales.iter().map(|col_scale| {
                    let weight: f32 = rng.sample(StandardNormal);
                    bf16::from_f32(row_scale * col_scale * weight)
                }));
            }
            write(bytemuck::cast_slice(weights), (2 * first * cols) as u64)
        })
}

fn gains(len: u64, seed: u64) -> Vec<bf16> {
    let gains = scales().sample_iter(SmallRng::seed_from_u64(seed));
    gains.take(len as usize).map(bf16::from_f32).collect()
}

fn frequencies(len: u64) -> Vec<f32> {
    let frequency = |i| 10_000f32.powf(-(i as f32) / len as f32);
    (0..len).map(frequency).collect()
}

/// Scales of rows and columns.
fn scales() -> LogNormal<f32> {
    LogNormal::new(0.0, 0.1).expect("a finite deviation")
}
