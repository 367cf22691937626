use std::ops::Range;

use cust::{
    context::CurrentContext,
    memory::{CopyDestination, DeviceBuffer},
};

use super::{
    Algorithm, Config, Layer, Problem, Recording,
    check::Reference,
    cublas, data,
    operands::{Copies, Operands},
    report::{Ceilings, DecompressRow, Figure, GemmRow, KernelRow},
    stage::Stage,
};
use crate::cuda::{CudaError, Family, Gpu, Plan, zipgemm_plan};

/// Makes rows of a report.
pub struct Measure<'a> {
    pub gpu: &'a Gpu,
    pub config: &'a Config,
    pub seed: u64,
    pub ceilings: Ceilings,
    pub stage: &'a Stage<'a>,
}

impl Measure<'_> {
    /// Makes a layer's weights; `index` tells those of equal shape apart.
    pub fn operands(&self, model: &str, layer: Layer, index: usize) -> Result<Operands, CudaError> {
        Operands::new(model, layer, self.seed.wrapping_add(index as u64))
    }

    /// Measures `decompress`.
    pub fn decompress(&self, operands: &Operands) -> Result<DecompressRow, CudaError> {
        let outputs = Copies::unwritten(operands.bits.len(), operands.copies())?;
        let recording = self.stage.decompress(operands, &outputs)?;
        let timer = self.stage.timer();
        let us = timer.medians(&[recording], self.config.replays)?[0];
        let exact = outputs.all_are(&operands.bits)?;
        let info = &operands.info;
        let tbs = (info.compressed_bytes + info.bf16_bytes()) as f64 / us / 1e6;
        Ok(DecompressRow {
            layer: info.clone(),
            us,
            tbs,
            of_copy: tbs / self.ceilings.copy,
            exact,
        })
    }

    /// Measures `n` tokens: cuBLAS's best choices and our kernels in turn.
    pub fn gemm(&self, operands: &Operands, n: usize) -> Result<GemmRow, CudaError> {
        let (m, k) = (operands.info.rows, operands.info.cols);
        let (plans, ways) = (self.plans(operands, n)?, self.ways());
        let bits = data::activations(n, k, self.seed ^ (n * m) as u64);
        let x = Copies::of(&bits, operands.copies())?;
        let reference = self.reference(operands, &x, &bits, n)?;

        let outputs = || Copies::unwritten(n * m, operands.copies());
        let launches = plans
            .iter()
            .flat_map(|plan| ways.iter().map(|&dependent| plan.with_dependent(dependent)));
        let written: Vec<_> = launches
            .map(|plan| Ok((plan, outputs()?)))
            .collect::<Result<_, CudaError>>()?;
        let cublas_outputs = outputs()?;
        let algorithms = self.algorithms(operands, n)?;
        let choices = self.cublas_choices(operands, &algorithms, n, &x, &cublas_outputs)?;
        let (mut names, mut recordings): (Vec<_>, Vec<_>) = choices.into_iter().unzip();
        for (plan, y) in &written {
            recordings.push(self.stage.zipgemm(operands, *plan, n, &x, y)?);
        }
        let timer = self.stage.timer();
        let times = timer.medians(&recordings, self.config.replays)?;
        let (cublas_times, times) = times.split_at(names.len());
        let best = (0..names.len())
            .min_by(|&a, &b| cublas_times[a].total_cmp(&cublas_times[b]))
            .expect("cuBLAS's own choice is one");
        let cublas_us = cublas_times[best];

        let kernel = |(index, plan): (usize, &Plan)| {
            let mine: Range<usize> = index * ways.len()..(index + 1) * ways.len();
            let checks = written[mine.clone()]
                .iter()
                .map(|(_, y)| Ok(reference.check(&y.download()?)))
                .collect::<Result<Vec<_>, CudaError>>()?;
            let times = &times[mine];
            Ok(KernelRow {
                kernel: plan.kernel().to_owned(),
                blocks: plan.blocks(),
                split: plan.split(),
                planned: index == 0,
                plain: self.figure(operands, n, times[0], cublas_us),
                dependent: times
                    .get(1)
                    .map(|&us| self.figure(operands, n, us, cublas_us)),
                deviation: checks.iter().map(|c| c.deviation).fold(0.0, f64::max),
                correct: checks.iter().all(|check| check.correct),
            })
        };
        let kernels = plans.iter().enumerate().map(kernel);
        let bytes = operands.info.compressed_bytes as f64;
        Ok(GemmRow {
            layer: operands.info.clone(),
            n,
            cublas_us,
            cublas_choice: names.swap_remove(best),
            limit: cublas_us * self.ceilings.read * 1e6 / bytes,
            kernels: kernels.collect::<Result<_, CudaError>>()?,
        })
    }

    fn figure(&self, operands: &Operands, n: usize, us: f64, cublas_us: f64) -> Figure {
        let info = &operands.info;
        let tbs = info.compressed_bytes as f64 / us / 1e6;
        Figure {
            us,
            tbs,
            of_read: tbs / self.ceilings.read,
            tflops: info.tflops(n, us),
            speedup: cublas_us / us,
        }
    }

    /// Ways to launch a kernel: plainly, and dependently where the device can.
    fn ways(&self) -> &'static [bool] {
        match self.gpu.family() {
            Family::Hopper => &[false, true],
            Family::Portable => &[false],
        }
    }

    /// The plan, then what else the configuration wants tried.
    fn plans(&self, operands: &Operands, n: usize) -> Result<Vec<Plan>, CudaError> {
        let weights = &operands.compressed[0];
        let asked = &self.config.kernels;
        if let Some(name) = asked.iter().find(|name| !self.gpu.has(name)) {
            let wrong = format!("no kernel {name} for this device");
            return Err(CudaError::Argument(wrong));
        }
        let mut plans = vec![zipgemm_plan(self.gpu, weights, n)?];
        for (name, tokens) in Plan::kernels(self.gpu) {
            let plan = Plan::with_kernel(self.gpu, weights, n, name);
            // Activations of some widths are not for all kernels.
            let Ok(plan) = plan else { continue };
            // Slices read the weights again and again.
            let sliced = plan.split().is_none() && n > tokens;
            // Kernels for twice as many tokens and more only multiply by zeros.
            let near = tokens < 2 * n.next_multiple_of(8);
            let all = self.config.all_kernels && near;
            if !sliced && (all || asked.iter().any(|kernel| kernel == name)) {
                plans.push(plan);
            }
        }
        if self.config.all_kernels {
            let others = plans.iter().flat_map(|plan| {
                let splits = plan.splits().into_iter();
                splits.map(|tiles| plan.with_split(tiles))
            });
            plans.extend(others.collect::<Vec<_>>());
        }
        let blocks = &self.config.blocks;
        let others = plans
            .iter()
            .flat_map(|plan| blocks.iter().map(|&blocks| plan.with_blocks(blocks)));
        plans.extend(others.collect::<Vec<_>>());
        let mut seen = Vec::new();
        plans.retain(|plan| {
            let launch = (plan.kernel(), plan.blocks(), plan.split());
            let new = !seen.contains(&launch);
            seen.push(launch);
            new
        });
        Ok(plans)
    }

    /// What the outputs should be.
    fn reference(
        &self,
        operands: &Operands,
        x: &Copies,
        bits: &[u16],
        n: usize,
    ) -> Result<Reference, CudaError> {
        let (m, k) = (operands.info.rows, operands.info.cols);
        let y = DeviceBuffer::<f32>::zeroed(n * m)?;
        CurrentContext::synchronize()?;
        let problem = Problem {
            m,
            n,
            k,
            f32_out: true,
        };
        let at = cublas::Operands {
            x: x.at(0),
            w: operands.dense[0].as_device_ptr().as_raw(),
            y: y.as_device_ptr().as_raw(),
        };
        // SAFETY: the operands have the problem's sizes.
        unsafe { self.stage.cublas()?.gemm(problem, at)? };
        CurrentContext::synchronize()?;
        let mut fp32 = vec![0.0; n * m];
        y.copy_to(&mut fp32)?;
        let reference = Reference::new(fp32, bits, &operands.bits, k);
        if reference.is_sound() {
            Ok(reference)
        } else {
            let wrong = format!("cuBLAS's FP32 outputs are wrong: {m} x {k}, {n} tokens");
            Err(CudaError::Argument(wrong))
        }
    }

    fn algorithms(&self, operands: &Operands, n: usize) -> Result<Vec<Algorithm>, CudaError> {
        let problem = Problem {
            m: operands.info.rows,
            n,
            k: operands.info.cols,
            f32_out: false,
        };
        let cublas = self.stage.cublas()?;
        Ok(cublas.algorithms(problem, self.config.algorithms)?)
    }

    /// cuBLAS's own choice, and the most promising of cuBLASLt's.
    fn cublas_choices<'b>(
        &'b self,
        operands: &'b Operands,
        algorithms: &'b [Algorithm],
        n: usize,
        x: &'b Copies,
        y: &'b Copies,
    ) -> Result<Vec<(String, Recording<'b>)>, CudaError> {
        /// Replays that choose, and how many of cuBLASLt's are measured to the end.
        const TRIALS: usize = 3;
        const FINALISTS: usize = 3;
        let mut names = Vec::new();
        let mut tried = Vec::new();
        for (index, algorithm) in algorithms.iter().enumerate() {
            // Now and then a choice turns out not to fit.
            let recorded = self.stage.cublas_gemm(operands, Some(algorithm), n, x, y);
            if let Ok(recording) = recorded {
                names.push(format!("cublasLt {} of {}", index + 1, algorithms.len()));
                tried.push(recording);
            }
        }
        let times = self.stage.timer().medians(&tried, TRIALS)?;
        let mut ranked: Vec<_> = times
            .into_iter()
            .zip(names.into_iter().zip(tried))
            .collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        let own = self.stage.cublas_gemm(operands, None, n, x, y)?;
        let mut choices = vec![("cublasGemmEx".to_owned(), own)];
        let finalists = ranked.into_iter().take(FINALISTS);
        choices.extend(finalists.map(|(_, choice)| choice));
        Ok(choices)
    }
}
