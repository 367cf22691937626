use rand::Rng;

use super::{
    Config, Report,
    measure::Measure,
    platform,
    report::{Ceilings, DecompressRow, GemmRow, means},
    stage::Stage,
};
use crate::cuda::{CudaError, Gpu};

/// What a run tells while it goes on.
pub enum Progress<'a> {
    /// The seed of the data, and the ceilings.
    Start(u64, &'a Ceilings),
    /// A multiplication.
    Gemm(&'a GemmRow),
    /// A decompression.
    Decompress(&'a DecompressRow),
}

/// Measures what `config` asks for, and tells `progress` as it goes.
///
/// # Errors
/// [`CudaError`] when the configuration does not fit the device, cuBLAS cannot be loaded, or a
/// call fails. Wrong outputs are no error: the report says so.
pub fn run(
    gpu: &Gpu,
    config: &Config,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, CudaError> {
    let layers = config.layers()?;
    let seed = config.seed.unwrap_or_else(|| rand::rng().random());
    let stage = Stage::new(gpu)?;
    let measure = Measure {
        gpu,
        config,
        seed,
        ceilings: stage.ceilings(config.replays)?,
        stage: &stage,
    };
    progress(Progress::Start(seed, &measure.ceilings));
    let mut report = Report {
        device: gpu.name()?,
        driver: platform::driver()?,
        kernels: gpu.family().to_string(),
        date: platform::date(),
        commit: config.commit.clone(),
        seed,
        replays: config.replays,
        ceilings: measure.ceilings,
        gemm: Vec::new(),
        means: Vec::new(),
        decompress: Vec::new(),
    };
    for (index, (model, layer)) in layers.into_iter().enumerate() {
        let operands = measure.operands(model, layer, index)?;
        if config.decompress {
            let row = measure.decompress(&operands)?;
            progress(Progress::Decompress(&row));
            report.decompress.push(row);
        }
        for &n in &config.tokens {
            let row = measure.gemm(&operands, n)?;
            progress(Progress::Gemm(&row));
            report.gemm.push(row);
        }
    }
    report.means = means(&report.gemm);
    Ok(report)
}
