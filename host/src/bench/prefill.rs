use std::fmt;

use rand::Rng;
use zipserv_gpu::launch::PREFILLS;

use super::{
    Config, data,
    measure::Measure,
    operands::{Copies, Operands},
    report::{Ceilings, LayerInfo},
    stage::Stage,
};
use crate::cuda::{CudaError, Gpu, PrefillPlan, prefill_plan};

/// One layer times many tokens.
#[derive(Clone, Debug)]
pub struct PrefillRow {
    /// The layer.
    pub layer: LayerInfo,
    /// Tokens.
    pub n: usize,
    /// The best time of cuBLAS, microseconds.
    pub cublas_us: f64,
    /// Our kernels, first the plan's.
    pub kernels: Vec<PrefillKernel>,
}

/// One of our launches on one layer.
#[derive(Clone, Debug)]
pub struct PrefillKernel {
    /// The launch.
    pub plan: PrefillPlan,
    /// Microseconds.
    pub us: f64,
    /// Largest deviation of an output from the FP32 reference, as a share of the outputs' root
    /// mean square.
    pub deviation: f64,
    /// Whether every output of the timed launches is as close as BF16 lets it be.
    pub correct: bool,
}

/// Measures multiplications by many tokens, and tells `progress` as it goes. With `all`, every
/// kernel of the device is tried beside the plan's, with whole and with shared output tiles.
///
/// # Errors
/// As [`super::run`].
pub fn prefill(
    gpu: &Gpu,
    config: &Config,
    all: bool,
    progress: &mut dyn FnMut(&PrefillRow),
) -> Result<(), CudaError> {
    let stage = Stage::new(gpu)?;
    let measure = Measure {
        gpu,
        config,
        seed: config.seed.unwrap_or_else(|| rand::rng().random()),
        // Nothing is compared with them.
        ceilings: Ceilings {
            copy: f64::NAN,
            read: f64::NAN,
        },
        stage: &stage,
    };
    for (index, (model, layer)) in config.layers()?.into_iter().enumerate() {
        let operands = measure.operands(model, layer, index)?;
        for &n in &config.tokens {
            progress(&row(&measure, &operands, n, all)?);
        }
    }
    Ok(())
}

fn plans(
    gpu: &Gpu,
    operands: &Operands,
    n: usize,
    all: bool,
) -> Result<Vec<PrefillPlan>, CudaError> {
    let weights = &operands.compressed[0];
    let mut plans = vec![prefill_plan(gpu, weights, n)?];
    if all {
        for (name, _) in PREFILLS.iter().filter(|(name, _)| gpu.has(name)) {
            let plan = PrefillPlan::with_kernel(gpu, weights, n, name)?;
            let rest = plan.tiles() % plan.clusters();
            for plan in [
                plan,
                plan.with_split(0),
                plan.with_split(rest),
                plan.with_split(rest + plan.clusters()),
            ] {
                if !plans.contains(&plan) {
                    plans.push(plan);
                }
            }
        }
    }
    Ok(plans)
}

fn row(
    measure: &Measure,
    operands: &Operands,
    n: usize,
    all: bool,
) -> Result<PrefillRow, CudaError> {
    let (m, k) = (operands.info.rows, operands.info.cols);
    let bits = data::activations(n, k, measure.seed ^ (n * m) as u64);
    let x = Copies::of(&bits, operands.copies())?;
    let reference = measure.reference(operands, &x, &bits, n)?;
    let outputs = || Copies::unwritten(n * m, operands.copies());
    let plans = plans(measure.gpu, operands, n, all)?;
    let written: Vec<_> = plans
        .iter()
        .map(|_| outputs())
        .collect::<Result<_, CudaError>>()?;
    let cublas_outputs = outputs()?;
    let algorithms = measure.algorithms(operands, n)?;
    let choices = measure.cublas_choices(operands, &algorithms, n, &x, &cublas_outputs)?;
    let mut recordings: Vec<_> = choices
        .into_iter()
        .map(|(_, recording)| recording)
        .collect();
    let cublas = recordings.len();
    for (plan, y) in plans.iter().zip(&written) {
        recordings.push(measure.stage.prefill(operands, *plan, n, &x, y)?);
    }
    let replays = measure.config.replays;
    let times = measure.stage.timer().medians(&recordings, replays)?;
    let (cublas, times) = times.split_at(cublas);
    let kernels = plans.iter().zip(times).zip(&written);
    let kernels = kernels.map(|((&plan, &us), y)| {
        let check = reference.check(&y.download()?);
        Ok(PrefillKernel {
            plan,
            us,
            deviation: check.deviation,
            correct: check.correct,
        })
    });
    Ok(PrefillRow {
        layer: operands.info.clone(),
        n,
        cublas_us: cublas.iter().copied().fold(f64::INFINITY, f64::min),
        kernels: kernels.collect::<Result<_, CudaError>>()?,
    })
}

impl fmt::Display for PrefillRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let LayerInfo { rows, cols, .. } = self.layer;
        let tflops = |us: f64| (2 * rows * cols * self.n) as f64 / us / 1e6;
        write!(
            f,
            "{rows:>5} x {cols:<5} n {:<5} cuBLAS {:8.1} us {:5.0} TFLOP/s",
            self.n,
            self.cublas_us,
            tflops(self.cublas_us)
        )?;
        for kernel in &self.kernels {
            write!(
                f,
                "\n    {:8.1} us {:5.0} TFLOP/s {:5.2}x {} {:.1e}  {}",
                kernel.us,
                tflops(kernel.us),
                self.cublas_us / kernel.us,
                if kernel.correct { "ok" } else { "WRONG" },
                kernel.deviation,
                kernel.plan,
            )?;
        }
        Ok(())
    }
}
