use std::ops::Range;

use zipserv::gpu::{Buffer, Device, Family, GpuError, Plan, PlanOptions, Workspace};

use super::{
    Config, Layer, Recording,
    check::{SameTokens, Sums},
    cublas::Algorithm,
    data,
    operands::{Copies, Layout, Operands},
    published::{PUBLISHED_MAX_TOKENS, PublishedPlan},
    results::{
        DecompressRow, Decoupled, Dispatch, GemmRow, Invariant, KernelRow, MEMORY_BOUND, Published,
        PublishedDecompress,
    },
    stage::Stage,
};

/// Makes rows of a report.
pub struct Measure<'a> {
    pub gpu: &'a Device,
    pub config: &'a Config,
    pub seed: u64,
    /// The read ceiling.
    pub read_tbs: f64,
    pub stage: &'a Stage,
}

/// Replays that choose.
const TRIALS: usize = 3;

/// Who multiplies for cuBLAS: its own choice, or one of cuBLASLt's.
struct Choice<'a> {
    name: String,
    algorithm: Option<&'a Algorithm>,
}

impl Measure<'_> {
    /// Makes a layer's weights; `index` tells those of equal shape apart.
    pub fn operands(&self, model: &str, layer: Layer, index: usize) -> Result<Operands, GpuError> {
        let mut operands = Operands::new(
            self.stage.stream(),
            model,
            layer,
            self.seed.wrapping_add(index as u64),
        )?;
        if self.config.published {
            operands.add_published(self.stage.stream())?;
            self.stage.published()?;
        }
        Ok(operands)
    }

    /// Measures `decompress`.
    pub fn decompress(&self, operands: &Operands) -> Result<DecompressRow, GpuError> {
        let copies = operands.rotation(0).copies;
        let outputs = Copies::unwritten(self.stage.stream(), operands.bits.len(), copies)?;
        let published = operands.published.first();
        let outputs_of_published = published
            .map(|_| Copies::unwritten(self.stage.stream(), operands.bits.len(), copies))
            .transpose()?;
        let mut recordings = vec![self.stage.decompress(operands, Layout::Ours, &outputs)?];
        if let Some(outputs) = &outputs_of_published {
            recordings.push(
                self.stage
                    .decompress(operands, Layout::Published, outputs)?,
            );
        }
        let timer = self.stage.timer();
        let times = timer.medians(&recordings, self.config.replays)?;
        let info = &operands.info;
        let published = published.zip(outputs_of_published.as_ref());
        let published = published.map(|(matrix, outputs)| {
            Ok::<_, GpuError>(PublishedDecompress {
                compressed_bytes: matrix.device_bytes(),
                us: times[1],
                exact: outputs.all_are(&operands.bits)?,
            })
        });
        let published = published.transpose()?;
        Ok(DecompressRow {
            layer: info.clone(),
            read_tbs: self.read_tbs,
            us: times[0],
            exact: outputs.all_are(&operands.bits)?,
            published,
        })
    }

    /// Measures `n` tokens: cuBLAS's best choices, the same behind decompression, and our kernels,
    /// in turn. `same` has the batch-invariant plan's outputs of other numbers of tokens.
    pub fn gemm(
        &self,
        operands: &Operands,
        n: usize,
        same: &mut SameTokens,
    ) -> Result<GemmRow, GpuError> {
        let (m, k) = (operands.info.rows, operands.info.cols);
        let copies = operands.rotation(n).copies;
        let (plans, ways) = (self.plans(operands, n)?, self.ways());
        let bits = data::activations(n, k, self.seed ^ m as u64);
        let x = Copies::of(self.stage.stream(), &bits, copies)?;
        let reference = self.stage.reference(operands, &x, &bits, n)?;

        let outputs = || Copies::unwritten(self.stage.stream(), n * m, copies);
        let launches = plans
            .iter()
            .flat_map(|plan| ways.iter().map(|&pdl| plan.with_pdl(pdl)));
        let written: Vec<_> = launches
            .map(|plan| Ok((plan, outputs()?)))
            .collect::<Result<_, GpuError>>()?;
        let cublas_outputs = outputs()?;
        let algorithms = self.algorithms(operands, n)?;
        let choices = self.cublas_choices(operands, &algorithms, n, &x, &cublas_outputs)?;
        let (choices, cublas): (Vec<_>, Vec<_>) = choices.into_iter().unzip();
        let many = n > MEMORY_BOUND;
        let wanted = self.config.decoupled || many;
        let layouts = operands.layouts().filter(|_| wanted);
        let decoupled: Vec<_> = layouts
            .map(|layout| {
                // What a user would have: one buffer for the weights of any layer.
                let dense = Copies::unwritten(self.stage.stream(), operands.bits.len(), 1)?;
                let outputs = choices.iter().map(|_| outputs());
                let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
                Ok((layout, dense, outputs))
            })
            .collect::<Result<_, GpuError>>()?;

        let published = match self.published_plan(operands, n, &x, &cublas_outputs)? {
            Some(plan) => Some((plan, outputs()?)),
            None => None,
        };
        let invariant = match self.config.invariant {
            true => Some(self.plan(operands, n, |options| options.batch_invariant())?),
            false => None,
        };
        let invariants: Vec<_> = invariant
            .iter()
            .flat_map(|plan| ways.iter().map(|&pdl| plan.with_pdl(pdl)))
            .map(|plan| Ok((plan, outputs()?)))
            .collect::<Result<_, GpuError>>()?;
        let dispatch = many.then(|| self.dispatch(operands, n)).transpose()?;
        // Other plans are timed anyway.
        let dispatched = match dispatch {
            Some(plan) if plan.is_decoupled() => {
                let bytes = operands.compressed[0].dense_workspace_bytes();
                let memory = Buffer::uninitialized(self.gpu, bytes)?;
                let workspace = Workspace::new(self.gpu)?.with_dense(memory);
                Some((plan, workspace, outputs()?))
            }
            _ => None,
        };

        let mut recordings = cublas;
        for (layout, dense, outputs) in &decoupled {
            for (choice, y) in choices.iter().zip(outputs) {
                let (stage, algorithm) = (self.stage, choice.algorithm);
                recordings.push(stage.decoupled(
                    operands,
                    (*layout, dense),
                    algorithm,
                    n,
                    &x,
                    y,
                )?);
            }
        }
        if let Some((plan, y)) = &published {
            recordings.push(self.stage.published_gemm(operands, *plan, n, &x, y)?);
        }
        for (plan, y) in invariants.iter().chain(&written) {
            recordings.push(self.stage.zipgemm(operands, *plan, n, &x, y)?);
        }
        if let Some((plan, workspace, y)) = &dispatched {
            let stage = self.stage;
            recordings.push(stage.zipgemm_with(operands, *plan, n, &x, y, workspace)?);
        }
        let timer = self.stage.timer();
        let times = match self.config.sustained {
            Some(duration) => timer.sustained(&recordings, duration)?,
            None => timer.medians(&recordings, self.config.replays)?,
        };
        let (cublas_times, times) = times.split_at(choices.len());
        let (decoupled_times, times) = times.split_at(decoupled.len() * choices.len());
        let (published_times, times) = times.split_at(usize::from(published.is_some()));
        let (invariant_times, times) = times.split_at(invariants.len());
        let (best, cublas_us) = fastest(cublas_times).expect("cuBLAS's own choice is one");
        let cublas_choice = choices[best].name.clone();

        let decoupled = decoupled.iter().zip(decoupled_times.chunks(choices.len()));
        let mut decoupled = decoupled.map(|((_, dense, outputs), times)| {
            let (best, us) = fastest(times).expect("cuBLAS's own choice is one");
            let check = reference.check(outputs[best].downloads(), Sums::Bf16)?;
            Ok::<_, GpuError>(Decoupled {
                cublas_choice: choices[best].name.clone(),
                us,
                deviation: check.deviation,
                correct: check.correct && dense.all_are(&operands.bits)?,
            })
        });
        // In the order of `Operands::layouts`.
        let (of_ours, of_published) = (decoupled.next(), decoupled.next());
        let published = published.as_ref().map(|(plan, y)| {
            let check = reference.check(y.downloads(), Sums::Fp32)?;
            Ok::<_, GpuError>(Published {
                kernel: plan.kernel().to_owned(),
                split_k: plan.split(),
                compressed_bytes: operands.published[0].device_bytes(),
                us: published_times[0],
                deviation: check.deviation,
                correct: check.correct,
            })
        });
        let invariant = invariant.map(|plan| {
            let mut checks = Vec::new();
            let mut same_bits = true;
            for (_, y) in &invariants {
                checks.push(reference.check(y.downloads(), Sums::Fp32)?);
                let first = y.downloads().next().expect("there is a copy")?;
                same_bits &= same.agree(first);
            }
            Ok::<_, GpuError>(Invariant {
                plan: plan.to_string(),
                plain_us: invariant_times[0],
                pdl_us: invariant_times.get(1).copied(),
                deviation: checks.iter().map(|c| c.deviation).fold(0.0, f64::max),
                correct: checks.iter().all(|check| check.correct),
                same_bits,
            })
        });
        let kernel = |(index, plan): (usize, &Plan)| {
            let mine: Range<usize> = index * ways.len()..(index + 1) * ways.len();
            let checks = written[mine.clone()]
                .iter()
                .map(|(_, y)| reference.check(y.downloads(), Sums::Fp32))
                .collect::<Result<Vec<_>, GpuError>>()?;
            let times = &times[mine];
            Ok(KernelRow {
                kernel: plan.kernel().to_owned(),
                blocks: plan.blocks(),
                shared_tiles: plan.shared_tiles(),
                planned: index == 0,
                plain_us: times[0],
                pdl_us: times.get(1).copied(),
                deviation: checks.iter().map(|c| c.deviation).fold(0.0, f64::max),
                correct: checks.iter().all(|check| check.correct),
            })
        };
        let kernels = plans.iter().enumerate().map(kernel);
        let kernels = kernels.collect::<Result<Vec<_>, GpuError>>()?;
        let dispatch = dispatch.map(|plan| {
            let (us, deviation, correct) = match &dispatched {
                Some((_, _, y)) => {
                    let check = reference.check(y.downloads(), Sums::Fp32)?;
                    let us = *times.last().expect("it was timed last");
                    (us, check.deviation, check.correct)
                }
                None => {
                    let KernelRow {
                        deviation, correct, ..
                    } = kernels[0];
                    (kernels[0].best_us(), deviation, correct)
                }
            };
            Ok::<_, GpuError>(Dispatch {
                plan: plan.to_string(),
                decoupled: plan.is_decoupled(),
                us,
                deviation,
                correct,
            })
        });
        Ok(GemmRow {
            layer: operands.info.clone(),
            n,
            read_tbs: self.read_tbs,
            cublas_us,
            cublas_choice,
            decoupled: of_ours.transpose()?,
            published: published.transpose()?,
            published_decoupled: of_published.transpose()?,
            invariant: invariant.transpose()?,
            kernels,
            dispatch: dispatch.transpose()?,
        })
    }

    /// The plan where there is as much memory for dense weights as it may want.
    fn dispatch(&self, operands: &Operands, n: usize) -> Result<Plan, GpuError> {
        let bytes = operands.compressed[0].dense_workspace_bytes();
        self.plan(operands, n, |options| {
            let options = options.dense_workspace(bytes);
            match &self.config.tuning {
                Some(tuning) => options.tuning(tuning),
                None => options,
            }
        })
    }

    /// A plan of some options.
    fn plan(
        &self,
        operands: &Operands,
        n: usize,
        options: impl FnOnce(PlanOptions) -> PlanOptions,
    ) -> Result<Plan, GpuError> {
        Plan::new(&operands.compressed[0], n, &options(PlanOptions::default()))
    }

    /// Ways to launch a kernel: without programmatic dependent launch, and with it where the device can.
    fn ways(&self) -> &'static [bool] {
        match self.gpu.family() {
            Family::Hopper => &[false, true],
            Family::Portable => &[false],
        }
    }

    /// The plan, where it is tuned then also that which is not, and what else the configuration
    /// wants tried.
    fn plans(&self, operands: &Operands, n: usize) -> Result<Vec<Plan>, GpuError> {
        let asked = &self.config.kernels;
        if let Some(name) = asked.iter().find(|name| !self.gpu.has(name)) {
            let (kernel, family) = (name.clone(), self.gpu.family());
            return Err(GpuError::NoKernel { kernel, family });
        }
        let mut plans = vec![self.plan(operands, n, |options| options)?];
        if let Some(tuning) = &self.config.tuning {
            plans.insert(0, self.plan(operands, n, |options| options.tuning(tuning))?);
        }
        for (name, tokens) in Plan::kernels(self.gpu) {
            // Kernels for twice as many tokens and more only multiply by zeros.
            let near = tokens < 2 * n.next_multiple_of(8);
            let all = self.config.all_kernels && near;
            if !all && !asked.iter().any(|kernel| kernel == name) {
                continue;
            }
            let plan = self.plan(operands, n, |options| options.kernel(name));
            // Activations of some widths are not for all kernels.
            let Ok(plan) = plan else { continue };
            // Slices read the weights again and again.
            if plan.shared_tiles().is_some() || n <= tokens {
                plans.push(plan);
            }
        }
        if self.config.all_kernels {
            let others = plans.iter().flat_map(|plan| {
                let splits = plan.numbers_of_shared_tiles().into_iter();
                splits.map(|tiles| plan.with_shared_tiles(tiles))
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
            let launch = (plan.kernel(), plan.blocks(), plan.shared_tiles());
            let new = !seen.contains(&launch);
            seen.push(launch);
            new
        });
        Ok(plans)
    }

    /// The fastest way to launch ZipServ's kernel as published, if that is wanted and the kernel
    /// takes the problem.
    fn published_plan(
        &self,
        operands: &Operands,
        n: usize,
        x: &Copies,
        y: &Copies,
    ) -> Result<Option<PublishedPlan>, GpuError> {
        /// Parts of K to try beside the plan's own.
        const SPLITS: [u32; 6] = [1, 2, 3, 4, 8, 16];
        let Some(weights) = operands.published.first() else {
            return Ok(None);
        };
        if n > PUBLISHED_MAX_TOKENS || !PublishedPlan::takes_cols(weights.cols()) {
            return Ok(None);
        }
        let own = PublishedPlan::new(self.stage.published()?, weights, n)?;
        let mut plans = vec![own];
        for plan in SPLITS.map(|split| own.with_split(split)) {
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        // So many parts may not fit the workspace.
        let record = |plan: PublishedPlan| {
            let recording = self.stage.published_gemm(operands, plan, n, x, y).ok()?;
            Some((plan, recording))
        };
        let (plans, recordings): (Vec<_>, Vec<_>) = plans.into_iter().filter_map(record).unzip();
        let times = self.stage.timer().medians(&recordings, TRIALS)?;
        Ok(fastest(&times).map(|(best, _)| plans[best]))
    }

    fn algorithms(&self, operands: &Operands, n: usize) -> Result<Vec<Algorithm>, GpuError> {
        let cublas = self.stage.cublas()?;
        cublas.algorithms(operands.problem(n), self.config.algorithms)
    }

    /// cuBLAS's own choice, and the most promising of cuBLASLt's.
    fn cublas_choices<'b>(
        &'b self,
        operands: &'b Operands,
        algorithms: &'b [Algorithm],
        n: usize,
        x: &'b Copies,
        y: &'b Copies,
    ) -> Result<Vec<(Choice<'b>, Recording<'b>)>, GpuError> {
        // How many of cuBLASLt's are measured to the end; sustained, each takes long.
        let most = match self.config.sustained {
            Some(_) => 1,
            None => 3,
        };
        let mut choices = Vec::new();
        let mut tried = Vec::new();
        for (index, algorithm) in algorithms.iter().enumerate() {
            // Now and then a choice turns out not to fit.
            let recorded = self.stage.cublas_gemm(operands, Some(algorithm), n, x, y);
            if let Ok(recording) = recorded {
                choices.push(Choice {
                    name: format!("cublasLt {} of {}", index + 1, algorithms.len()),
                    algorithm: Some(algorithm),
                });
                tried.push(recording);
            }
        }
        let times = self.stage.timer().medians(&tried, TRIALS)?;
        let mut ranked: Vec<_> = times
            .into_iter()
            .zip(choices.into_iter().zip(tried))
            .collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        let own = Choice {
            name: "cublasGemmEx".to_owned(),
            algorithm: None,
        };
        let recording = self.stage.cublas_gemm(operands, None, n, x, y)?;
        let mut choices = vec![(own, recording)];
        let finalists = ranked.into_iter().take(most);
        choices.extend(finalists.map(|(_, choice)| choice));
        Ok(choices)
    }
}

/// The index of the shortest time, and the time.
fn fastest(times: &[f64]) -> Option<(usize, f64)> {
    let times = times.iter().copied().enumerate();
    times.min_by(|a, b| a.1.total_cmp(&b.1))
}
