use cudarc::driver::sys;
use cust::{
    context::CurrentContext,
    memory::{CopyDestination, DeviceBuffer},
    stream::{Stream, StreamFlags},
};
use rand::Rng;
use rayon::prelude::*;
use zipserv_gpu::launch::GEMMS;

use super::{
    Config, Cublas, Layer, Problem, Recording, Report, Timer,
    check::Reference,
    cublas, data,
    operands::{Copies, Operands},
    platform,
    report::{Ceilings, DecompressRow, Figure, GemmRow, KernelRow, means},
};
use crate::cuda::{
    CudaError, Family, Gpu, Plan, RawStream, Workspace, check, decompress_raw, read_raw,
    read_sink_words, zipgemm_plan, zipgemm_raw,
};

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
    let mut bench = Bench::new(gpu, config, seed)?;
    progress(Progress::Start(seed, &bench.ceilings));
    let mut report = Report {
        device: gpu.name()?,
        driver: platform::driver()?,
        kernels: gpu.family().to_string(),
        date: platform::date(),
        commit: config.commit.clone(),
        seed,
        replays: config.replays,
        ceilings: bench.ceilings,
        gemm: Vec::new(),
        means: Vec::new(),
        decompress: Vec::new(),
    };
    for (index, (model, layer)) in layers.into_iter().enumerate() {
        let operands = bench.operands(model, layer, index)?;
        if config.decompress {
            let row = bench.decompress(&operands)?;
            progress(Progress::Decompress(&row));
            report.decompress.push(row);
        }
        for &n in &config.tokens {
            let row = bench.gemm(&operands, n)?;
            progress(Progress::Gemm(&row));
            report.gemm.push(row);
        }
    }
    report.means = means(&report.gemm);
    Ok(report)
}

/// A device made ready to measure: for one stream, timer, workspace and cuBLAS.
pub(super) struct Bench<'a> {
    gpu: &'a Gpu,
    config: &'a Config,
    seed: u64,
    ceilings: Ceilings,
    workspace: Workspace,
    timer: Timer,
    cublas: Option<Cublas>,
    raw: RawStream,
    // Last, for what is above uses it.
    _stream: Stream,
}

impl<'a> Bench<'a> {
    /// Measures the ceilings, too.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn new(gpu: &'a Gpu, config: &'a Config, seed: u64) -> Result<Self, CudaError> {
        let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
        let raw = stream.as_inner().cast();
        let timer = Timer::new(raw)?;
        Ok(Self {
            gpu,
            config,
            seed,
            ceilings: ceilings(gpu, &timer, raw, config.replays)?,
            workspace: Workspace::new(gpu)?,
            timer,
            cublas: None,
            raw,
            _stream: stream,
        })
    }

    /// Makes a layer's weights; `index` tells those of equal shape apart.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn operands(&self, model: &str, layer: Layer, index: usize) -> Result<Operands, CudaError> {
        Operands::new(model, layer, self.seed.wrapping_add(index as u64))
    }

    /// Records restoring the layer's copies to `outputs`.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn record_decompress(
        &self,
        operands: &Operands,
        outputs: &Copies,
    ) -> Result<Recording, CudaError> {
        let (launches, copies) = (operands.launches, operands.copies());
        self.timer.record(launches, || {
            for i in 0..launches {
                let copy = i % copies;
                let matrix = &operands.compressed[copy];
                // SAFETY: an output has the matrix's size.
                unsafe { decompress_raw(self.gpu, self.raw, matrix, outputs.at(copy))? };
            }
            Ok(())
        })
    }

    /// Measures `decompress`.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn decompress(&self, operands: &Operands) -> Result<DecompressRow, CudaError> {
        let outputs = Copies::unwritten(operands.bits.len(), operands.copies())?;
        let recording = self.record_decompress(operands, &outputs)?;
        let us = self.timer.medians(&[recording], self.config.replays)?[0];
        let exact = outputs
            .download()?
            .par_iter()
            .all(|output| *output == operands.bits);
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

    /// Records a plan over the layer's copies.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn record_gemm(
        &self,
        operands: &Operands,
        plan: &Plan,
        n: usize,
        x: &Copies,
        y: &Copies,
    ) -> Result<Recording, CudaError> {
        let (launches, copies) = (operands.launches, operands.copies());
        let work = &self.workspace;
        self.timer.record(launches, || {
            for i in 0..launches {
                let copy = i % copies;
                let (w, x, y) = (&operands.compressed[copy], x.at(copy), y.at(copy));
                // SAFETY: copies have the sizes of the problem; one stream uses the workspace.
                unsafe { zipgemm_raw(self.gpu, self.raw, plan, w, x, n, y, work)? };
            }
            Ok(())
        })
    }

    /// Measures `n` tokens: cuBLAS's best choices and our kernels in turn.
    ///
    /// # Errors
    /// [`CudaError`] from the driver, from cuBLAS, or when no kernel takes as many tokens.
    pub fn gemm(&mut self, operands: &Operands, n: usize) -> Result<GemmRow, CudaError> {
        if self.cublas.is_none() {
            self.cublas = Some(Cublas::new(self.raw)?);
        }
        let (m, k) = (operands.info.rows, operands.info.cols);
        let bits = data::activations(n, k, self.seed ^ (n * m) as u64);
        let x = Copies::of(&bits, operands.copies())?;
        let reference = self.reference(operands, &x, &bits, n)?;
        let outputs = || Copies::unwritten(n * m, operands.copies());

        let mut names = Vec::new();
        let mut recordings = Vec::new();
        let cublas_outputs = outputs()?;
        for (name, recording) in self.cublas_choices(operands, n, &x, &cublas_outputs)? {
            names.push(name);
            recordings.push(recording);
        }
        let choices = recordings.len();
        let plans = self.plans(operands, n)?;
        let mut written = Vec::new();
        for plan in &plans {
            for dependent in self.ways() {
                let plan = plan.with_dependent(*dependent);
                let y = outputs()?;
                recordings.push(self.record_gemm(operands, &plan, n, &x, &y)?);
                written.push(y);
            }
        }
        let times = self.timer.medians(&recordings, self.config.replays)?;
        let (cublas_times, times) = times.split_at(choices);
        let best = (0..choices).min_by(|&a, &b| cublas_times[a].total_cmp(&cublas_times[b]));
        let best = best.expect("cuBLAS itself is a choice");
        let cublas_us = cublas_times[best];

        let bytes = operands.info.compressed_bytes as f64;
        let figure = |us: f64| Figure {
            us,
            tbs: bytes / us / 1e6,
            of_read: bytes / us / 1e6 / self.ceilings.read,
            speedup: cublas_us / us,
        };
        let ways = self.ways().len();
        let mut kernels = Vec::new();
        for (index, plan) in plans.iter().enumerate() {
            let mine = index * ways..(index + 1) * ways;
            let mut checks = Vec::new();
            for y in &written[mine.clone()] {
                checks.push(reference.check(&y.download()?));
            }
            let times = &times[mine];
            kernels.push(KernelRow {
                kernel: plan.kernel().to_owned(),
                blocks: plan.blocks(),
                planned: index == 0,
                plain: figure(times[0]),
                dependent: times.get(1).map(|&us| figure(us)),
                deviation: checks.iter().fold(0.0, |most, c| c.deviation.max(most)),
                correct: checks.iter().all(|check| check.correct),
            });
        }
        Ok(GemmRow {
            layer: operands.info.clone(),
            n,
            cublas_us,
            cublas_choice: names.swap_remove(best),
            limit: cublas_us * self.ceilings.read * 1e6 / bytes,
            kernels,
        })
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
        let planned = zipgemm_plan(self.gpu, weights, n)?;
        let asked = |name: &str| self.config.kernels.iter().any(|kernel| kernel == name);
        if let Some(name) = self.config.kernels.iter().find(|name| !self.gpu.has(name)) {
            return Err(CudaError::Argument(format!(
                "no kernel {name} for this device"
            )));
        }
        let mut plans = vec![planned];
        let kernels = GEMMS.iter().filter(|(name, shape)| {
            let near = shape.n_tiles <= n.div_ceil(8).next_power_of_two();
            let wanted = asked(name) || self.config.all_kernels && near;
            wanted && self.gpu.has(name) && n <= 8 * shape.n_tiles
        });
        for (name, _) in kernels {
            plans.push(Plan::with_kernel(self.gpu, weights, name)?);
        }
        let more: Vec<_> = plans
            .iter()
            .flat_map(|plan| self.config.blocks.iter().map(|&b| plan.with_blocks(b)))
            .collect();
        plans.extend(more);
        let mut seen = Vec::new();
        plans.retain(|plan| {
            let launch = (plan.kernel(), plan.blocks());
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
        unsafe { self.cublas().gemm(problem, at)? };
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

    fn cublas(&self) -> &Cublas {
        self.cublas.as_ref().expect("`gemm` loads it first")
    }

    /// Recordings of cuBLAS's own choice and the most promising of cuBLASLt's.
    fn cublas_choices(
        &self,
        operands: &Operands,
        n: usize,
        x: &Copies,
        y: &Copies,
    ) -> Result<Vec<(String, Recording)>, CudaError> {
        /// Replays that choose, and how many of cuBLASLt's are measured to the end.
        const TRIALS: usize = 3;
        const FINALISTS: usize = 3;
        let problem = Problem {
            m: operands.info.rows,
            n,
            k: operands.info.cols,
            f32_out: false,
        };
        let (launches, copies) = (operands.launches, operands.copies());
        let at = |i: usize| cublas::Operands {
            x: x.at(i % copies),
            w: operands.dense[i % copies].as_device_ptr().as_raw(),
            y: y.at(i % copies),
        };
        let cublas = self.cublas();
        let own = self.timer.record(launches, || {
            for i in 0..launches {
                // SAFETY: the operands have the problem's sizes.
                unsafe { cublas.gemm(problem, at(i))? };
            }
            Ok(())
        })?;
        let algorithms = cublas.algorithms(problem, self.config.algorithms)?;
        let mut tried = Vec::new();
        for (index, algorithm) in algorithms.iter().enumerate() {
            let recorded = self.timer.record(launches, || {
                for i in 0..launches {
                    // SAFETY: as above.
                    unsafe { cublas.matmul(algorithm, at(i))? };
                }
                Ok(())
            });
            // Now and then a choice turns out not to fit.
            if let Ok(recording) = recorded {
                let recordings = [recording];
                let time = self.timer.medians(&recordings, TRIALS)?[0];
                let [recording] = recordings;
                let name = format!("cublasLt {} of {}", index + 1, algorithms.len());
                tried.push((time, name, recording));
            }
        }
        tried.sort_by(|a, b| a.0.total_cmp(&b.0));
        let finalists = tried.into_iter().take(FINALISTS);
        let mut choices = vec![("cublasGemmEx".to_owned(), own)];
        choices.extend(finalists.map(|(_, name, recording)| (name, recording)));
        Ok(choices)
    }
}

/// Measures what memory gives at most, on far more of it than the cache holds.
fn ceilings(
    gpu: &Gpu,
    timer: &Timer,
    stream: RawStream,
    replays: usize,
) -> Result<Ceilings, CudaError> {
    const BYTES: usize = 1 << 30;
    const LAUNCHES: usize = 4;
    let (from, to) = (
        DeviceBuffer::<u8>::zeroed(BYTES)?,
        DeviceBuffer::<u8>::zeroed(BYTES)?,
    );
    let sink = DeviceBuffer::<u32>::zeroed(read_sink_words(gpu)?)?;
    CurrentContext::synchronize()?;
    let (from, to, sink) = (from.as_slice(), to.as_slice(), sink.as_slice());
    let address = |buffer: &cust::memory::DeviceSlice<u8>| buffer.as_device_ptr().as_raw();
    let copy = timer.record(LAUNCHES, || {
        for _ in 0..LAUNCHES {
            // SAFETY: both have the size.
            check("cuMemcpyDtoDAsync", unsafe {
                sys::cuMemcpyDtoDAsync_v2(address(to), address(from), BYTES, stream)
            })?;
        }
        Ok(())
    })?;
    let read = timer.record(LAUNCHES, || {
        for _ in 0..LAUNCHES {
            let sink = sink.as_device_ptr().as_raw();
            // SAFETY: the sizes are as said.
            unsafe { read_raw(gpu, stream, address(from), BYTES, sink)? };
        }
        Ok(())
    })?;
    let times = timer.medians(&[copy, read], replays)?;
    Ok(Ceilings {
        copy: 2.0 * BYTES as f64 / times[0] / 1e6,
        read: BYTES as f64 / times[1] / 1e6,
    })
}
