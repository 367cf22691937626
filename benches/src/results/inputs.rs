//! The files of results, told apart by what is in them.

use std::{
    error::Error,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use zipserv::gpu::tuning::TuningTable;

use super::{Serving, Steps};

/// What was read; that of `gemm --json` is for [`Measured`](super::measured::Measured).
#[derive(Default)]
pub struct Inputs {
    /// Files of `gemm --json`.
    pub reports: Vec<PathBuf>,
    /// What `zipserv tune` found.
    pub tunings: Vec<(PathBuf, TuningTable)>,
    /// What `steps --json` wrote.
    pub steps: Vec<(PathBuf, Steps)>,
    /// What `benches/peers/compare.py` wrote.
    pub peers: Vec<(PathBuf, Peers)>,
    /// What `python/benches` wrote of whole models.
    pub serving: Vec<(PathBuf, Serving)>,
}

/// What `benches/peers/compare.py` writes: decompression beside other codecs.
#[derive(Deserialize)]
pub struct Peers {
    /// The device.
    pub device: String,
    /// The driver's version.
    pub driver: String,
    /// When, UTC.
    pub date: String,
    /// The commit that was built.
    pub commit: Option<String>,
    /// Each codec on each matrix.
    pub rows: Vec<Peer>,
}

/// One codec on one matrix of BF16 weights.
#[derive(Deserialize)]
pub struct Peer {
    /// The codec.
    pub peer: String,
    /// Output features, M, and input features, K.
    pub shape: [usize; 2],
    /// Microseconds.
    pub us: f64,
    /// Whether the bits of the original came back.
    pub exact: bool,
    /// Bytes that the codec keeps.
    pub compressed_bytes: usize,
}

impl Peer {
    /// Bytes as BF16.
    fn bf16_bytes(&self) -> f64 {
        let [rows, cols] = self.shape;
        2.0 * rows as f64 * cols as f64
    }

    /// Compressed bytes, as a share of those as BF16.
    pub fn stored(&self) -> f64 {
        self.compressed_bytes as f64 / self.bf16_bytes()
    }

    /// GB/s of BF16.
    pub fn gbs(&self) -> f64 {
        self.bf16_bytes() / self.us / 1e3
    }
}

impl Inputs {
    /// Reads all files but those of `gemm --json`, of which it keeps the paths.
    ///
    /// # Errors
    /// When a file cannot be read, or is no such file.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Box<dyn Error>> {
        let mut inputs = Self::default();
        for path in paths {
            inputs.add(path).map_err(|error| at(path, &error))?;
        }
        Ok(inputs)
    }

    /// Fails on a file of another device.
    ///
    /// # Errors
    /// When there is one.
    pub fn check_device(&self, device: &str) -> Result<(), Box<dyn Error>> {
        let tunings = self.tunings.iter().map(|(path, t)| (path, &t.key().device));
        let steps = self.steps.iter().map(|(path, steps)| (path, &steps.device));
        let peers = self.peers.iter().map(|(path, peers)| (path, &peers.device));
        let mut all = tunings.chain(steps).chain(peers);
        match all.find(|(_, this)| *this != device) {
            Some((path, this)) => Err(at(path, &format!("of {this}, unlike {device}")).into()),
            None => Ok(()),
        }
    }

    fn add(&mut self, path: &Path) -> Result<(), String> {
        let json = fs::read(path).map_err(|error| error.to_string())?;
        let path = path.to_owned();
        // What is no JSON is reported as a broken file of `gemm`.
        let value: Value = serde_json::from_slice(&json).unwrap_or_default();
        let has = |name| value.get(name).is_some();
        if has("server") {
            self.serving.push((path, parse(value, "python/benches")?));
            return Ok(());
        }
        // Of the codec, and of a checkpoint: nothing of a GPU.
        if has("zipserv") || has("compressed_tensors") {
            return Ok(());
        }
        if has("tuning_version") {
            let table = TuningTable::from_json(&json).map_err(|error| error.to_string())?;
            self.tunings.push((path, table));
        } else if has("layers") && !has("gemm") {
            self.steps.push((path, parse(value, "steps")?));
        } else if has("absent") {
            let peers: Peers = parse(value, "benches/peers/compare.py")?;
            if let Some(peer) = peers.rows.iter().find(|peer| !peer.exact) {
                return Err(format!("{}: its output was wrong", peer.peer));
            }
            self.peers.push((path, peers));
        } else {
            self.reports.push(path);
        }
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(json: Value, writer: &str) -> Result<T, String> {
    serde_json::from_value(json).map_err(|error| format!("not what `{writer}` writes: {error}"))
}

fn at(path: &Path, error: &dyn Display) -> String {
    format!("{}: {error}", path.display())
}
