use std::fmt;

use rand::Rng;
use zipserv::gpu::{Device, GpuError, Tuning};

use super::{Config, check::SameTokens, measure::Measure, platform, results::Report, stage::Stage};

/// What a run tells while it goes on.
pub enum Progress<'a> {
    /// What holds for all rows.
    Start {
        /// The seed of the data.
        seed: u64,
        /// The read ceiling, TB/s.
        read_tbs: f64,
        /// How many rows there are going to be.
        rows: usize,
    },
    /// How many layers there are going to be, each a row, where there is nothing else to say.
    Layers(usize),
    /// A row of the report, as text.
    Row(&'a dyn fmt::Display),
}

/// Measures what `config` asks for, and tells `progress` as it goes.
///
/// # Errors
/// [`GpuError`] when the configuration does not fit the device, cuBLAS cannot be loaded, or a
/// call fails. Wrong outputs are no error: the report says so.
pub fn run(
    gpu: &Device,
    config: &Config,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, GpuError> {
    let layers = config.layers()?;
    let seed = config.seed.unwrap_or_else(|| rand::rng().random());
    let stage = Stage::new(gpu)?;
    if !config.tokens.is_empty() {
        // Better missed now than after minutes.
        stage.cublas()?;
    }
    let measure = Measure {
        gpu,
        config,
        seed,
        read_tbs: stage.read_tbs(config.replays)?,
        stage: &stage,
    };
    progress(Progress::Start {
        seed,
        read_tbs: measure.read_tbs,
        rows: layers.len() * (config.tokens.len() + usize::from(config.decompress)),
    });
    let mut report = Report {
        device: gpu.name().to_owned(),
        driver: platform::driver()?,
        kernels: gpu.family().to_string(),
        ptx_crc32: Some(Tuning::key(gpu)?.ptx_crc32),
        tuned: config.tuning.is_some(),
        date: platform::date(),
        commit: config.commit.clone(),
        seed,
        replays: config.replays,
        sustained_s: config.sustained.map(|duration| duration.as_secs_f64()),
        read_tbs: measure.read_tbs,
        gemm: Vec::new(),
        decompress: Vec::new(),
    };
    for (index, (model, layer)) in layers.into_iter().enumerate() {
        let operands = measure.operands(model, layer, index)?;
        if config.decompress {
            let row = measure.decompress(&operands)?;
            progress(Progress::Row(&row));
            report.decompress.push(row);
        }
        let mut same = SameTokens::default();
        for &n in &config.tokens {
            let row = measure.gemm(&operands, n, &mut same)?;
            progress(Progress::Row(&row));
            report.gemm.push(row);
        }
    }
    Ok(report)
}
