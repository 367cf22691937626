//! The files of results, told apart by what is in them.

use std::{
    collections::BTreeSet,
    error::Error,
    ffi::OsStr,
    fmt::{self, Display},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use zipserv::gpu::tuning::TuningTable;

use super::{Engine, Experts, Measured, Report, Serving, Steps, measured};

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
    /// What `python/benches/experts.py` wrote.
    pub experts: Vec<(PathBuf, Experts)>,
    /// What `zipserv run --bench --json` printed.
    pub engines: Vec<(PathBuf, Engine)>,
    /// What was not taken.
    pub skipped: Vec<Skipped>,
    /// The files that were found in folders, of which those that do not fit are skipped.
    found: BTreeSet<PathBuf>,
}

/// A file that was not taken.
pub struct Skipped {
    /// Its name.
    pub path: PathBuf,
    /// Why not.
    pub why: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "skipped {}: {}", self.path.display(), self.why)
    }
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
    /// Reads all files but those of `gemm --json`, of which it keeps the paths. Of a folder it takes the files that
    /// are of results, in the order of their names.
    ///
    /// # Errors
    /// When a file cannot be read, or is named and no such file.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Box<dyn Error>> {
        let mut inputs = Self::default();
        for path in paths {
            if !path.is_dir() {
                inputs.add(path).map_err(|error| at(path, &error))?;
                continue;
            }
            let files = files(path).map_err(|error| at(path, &error))?;
            for file in files {
                match inputs.add(&file) {
                    Ok(()) => {
                        inputs.found.insert(file);
                    }
                    Err(why) => inputs.skip(&file, why),
                }
            }
        }
        Ok(inputs)
    }

    /// Whether a file was found in a folder, and not named.
    pub(super) fn is_found(&self, path: &Path) -> bool {
        self.found.contains(path)
    }

    /// Notes that a file is not taken.
    pub fn skip(&mut self, path: &Path, why: impl Into<String>) {
        let (path, why) = (path.to_owned(), why.into());
        self.skipped.push(Skipped { path, why });
    }

    /// What `gemm` measured, for one table. Of files in folders only those count that are like the first one that is
    /// named, or, where none is, like the last one of the plan's own launches; of all others, those of its device.
    ///
    /// # Errors
    /// As [`Measured::read`], and when a file that is named is of another device.
    pub fn measured(&mut self) -> Result<Measured, Box<dyn Error>> {
        let mut kinds = Vec::new();
        for path in std::mem::take(&mut self.reports) {
            let report = fs::read(&path).map_err(|error| error.to_string());
            match report.and_then(|json| measured::parse(&json)) {
                Ok(report) => kinds.push((path, measured::kind(&report), report)),
                Err(why) if self.is_found(&path) => self.skip(&path, why),
                Err(why) => return Err(at(&path, &why).into()),
            }
        }
        let is_plain = |report: &Report| {
            !report.tuned && report.sustained_s.is_none() && report.ptx_crc32.is_some()
        };
        let mut named = kinds.iter().filter(|(path, ..)| !self.is_found(path));
        let mut last = kinds.iter().rev();
        let like = named
            .next()
            .or_else(|| last.clone().find(|(.., report)| is_plain(report)))
            .or_else(|| last.next());
        let like = like.map(|(path, kind, report)| {
            (
                path.display().to_string(),
                kind.clone(),
                report.ptx_crc32.is_some(),
            )
        });
        for (path, kind, report) in kinds {
            let Some((like, like_kind, has_ptx)) = &like else {
                break;
            };
            let has_same = report.ptx_crc32.is_some() == *has_ptx;
            if (kind == *like_kind && has_same) || !self.is_found(&path) {
                self.reports.push(path);
            } else if has_same {
                self.skip(&path, format!("of {kind}, unlike {like}"));
            } else {
                self.skip(&path, format!("of other kernels than {like}"));
            }
        }
        let measured = Measured::read(&self.reports)?;
        self.keep_device(measured.device());
        self.check_device(measured.device())?;
        Ok(measured)
    }

    /// Skips files from folders that are of another device.
    fn keep_device(&mut self, device: &str) {
        let mut other = Vec::new();
        let mut is_kept = |path: &PathBuf, this: &str| {
            let is_other = this != device && self.found.contains(path);
            if is_other {
                other.push((path.clone(), format!("of {this}, unlike {device}")));
            }
            !is_other
        };
        self.tunings
            .retain(|(path, table)| is_kept(path, &table.key().device));
        self.steps
            .retain(|(path, steps)| is_kept(path, &steps.device));
        self.peers
            .retain(|(path, peers)| is_kept(path, &peers.device));
        for (path, why) in other {
            self.skip(&path, why);
        }
    }

    /// Fails on a file of another device.
    fn check_device(&self, device: &str) -> Result<(), Box<dyn Error>> {
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
        if has("experts") {
            let experts = parse(value, "python/benches/experts.py")?;
            self.experts.push((path, experts));
            return Ok(());
        }
        if has("engine") {
            let engine = parse(value, "zipserv run --bench --json")?;
            self.engines.push((path, engine));
            return Ok(());
        }
        // Nothing of a GPU.
        for (field, what) in [
            ("zipserv", "the codec"),
            ("compressed_tensors", "a checkpoint"),
        ] {
            if has(field) {
                self.skip(&path, format!("of {what}, without a table of its own"));
                return Ok(());
            }
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
            // One that is named is reported when its rows are asked for.
            self.reports.push(path);
        }
        Ok(())
    }
}

/// The files of a folder that may be of results, in the order of their names.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("json")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn parse<T: DeserializeOwned>(json: Value, writer: &str) -> Result<T, String> {
    serde_json::from_value(json).map_err(|error| format!("not what `{writer}` writes: {error}"))
}

fn at(path: &Path, error: &dyn Display) -> String {
    format!("{}: {error}", path.display())
}
