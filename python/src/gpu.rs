//! Kernels on addresses and streams, as PyTorch holds them.
//!
//! All that is kept lasts as long as the process: for each device its kernels and plans, for each stream a
//! workspace. Weights are tensors of Python's, and nothing is known of them but address, length and shape: all
//! else kernels read from the stored form itself, so that a tensor may get other weights at any time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use pyo3::prelude::*;
use zipserv::gpu::{
    Buffer, Device, DeviceMatrix, ENCODE_SCRATCH_BYTES, GatedPlan, GpuError, GroupedPlan,
    MAX_TOKENS, OutputType, Plan, PlanOptions, RawDense, RawExperts, RawGated, RawGrouped,
    RawOperands, RawRouting, Stream, Tuning, Workspace,
};

use crate::error;

/// What is kept of a device.
struct Gpu {
    device: Device,
    /// By handle. Streams of PyTorch's come from pools and are not destroyed.
    streams: Kept<usize, Lane>,
    /// Weights by address, bytes and shape. What lies at an address may change, which makes no difference.
    weights: Kept<(usize, usize, usize, usize), DeviceMatrix>,
    plans: Kept<(usize, usize, usize, bool), Plan>,
    gated_plans: Kept<(usize, usize, usize, bool), GatedPlan>,
    grouped_plans: Kept<(usize, usize, usize, usize, bool), GroupedPlan>,
    /// What `zipserv tune` found here, if it was run.
    tuning: Option<Tuning>,
}

/// A stream, and the memory through which its kernels add up.
struct Lane {
    stream: Stream,
    workspace: Workspace,
}

/// Values that are made when they are first wanted.
struct Kept<K, V>(RwLock<HashMap<K, Arc<V>>>);

impl<K: Eq + Hash, V> Kept<K, V> {
    /// Past so many, all go: they can be made again. Borrowed weights of models that are gone, mostly.
    const MOST: usize = 1 << 16;

    fn new() -> Self {
        Self(RwLock::default())
    }

    fn find(&self, key: &K) -> Option<Arc<V>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    fn insert(&self, key: K, value: V) -> Arc<V> {
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if values.len() >= Self::MOST {
            values.clear();
        }
        values.entry(key).or_insert_with(|| Arc::new(value)).clone()
    }
}

impl Gpu {
    fn open(ordinal: u32) -> Result<Arc<Self>, GpuError> {
        static OPEN: Mutex<Vec<Arc<Gpu>>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.iter().find(|gpu| gpu.device.ordinal() == ordinal) {
            return Ok(gpu.clone());
        }
        let device = Device::new(ordinal)?;
        let gpu = Arc::new(Self {
            streams: Kept::new(),
            weights: Kept::new(),
            plans: Kept::new(),
            gated_plans: Kept::new(),
            grouped_plans: Kept::new(),
            tuning: Tuning::cached(&device).ok(),
            device,
        });
        open.push(gpu.clone());
        Ok(gpu)
    }

    fn lane(&self, stream: usize) -> Result<Arc<Lane>, GpuError> {
        if let Some(lane) = self.streams.find(&stream) {
            return Ok(lane);
        }
        let lane = Lane {
            // SAFETY: a stream of PyTorch's, which lasts as long as the process.
            stream: unsafe { Stream::from_raw(&self.device, stream as *mut _)? },
            workspace: Workspace::new(&self.device)?,
        };
        Ok(self.streams.insert(stream, lane))
    }

    fn weights(&self, weight: Weight) -> Result<Arc<DeviceMatrix>, GpuError> {
        let (address, len, rows, cols) = weight;
        if let Some(weights) = self.weights.find(&weight) {
            return Ok(weights);
        }
        // SAFETY: Python keeps the tensor until kernels that were launched have run, and holds a checked or encoded
        // matrix of this shape in it. That it is written in between is what `pdl` is for.
        let weights = unsafe {
            let memory = Buffer::borrowed(&self.device, address as u64, len);
            DeviceMatrix::from_device(rows, cols, memory)?
        };
        Ok(self.weights.insert(weight, weights))
    }

    fn plan(
        &self,
        lane: &Lane,
        weights: &DeviceMatrix,
        n: usize,
        is_invariant: bool,
    ) -> Result<Arc<Plan>, GpuError> {
        // A batch-invariant plan is for any number.
        let key = (
            weights.rows(),
            weights.cols(),
            if is_invariant { 0 } else { n },
            is_invariant,
        );
        if let Some(plan) = self.plans.find(&key) {
            return Ok(plan);
        }
        if lane.stream.is_capturing()? {
            return Err(GpuError::NotPrepared { tokens: n });
        }
        let plan = Plan::new(weights, n, &self.options(is_invariant))?;
        Ok(self.plans.insert(key, plan))
    }

    fn options(&self, is_invariant: bool) -> PlanOptions {
        match (is_invariant, &self.tuning) {
            (true, _) => PlanOptions::default().batch_invariant(),
            (false, Some(tuning)) => PlanOptions::default().tuning(tuning),
            (false, None) => PlanOptions::default(),
        }
    }

    fn gated_plan(
        &self,
        lane: &Lane,
        weights: &DeviceMatrix,
        n: usize,
        is_invariant: bool,
    ) -> Result<Arc<GatedPlan>, GpuError> {
        let key = (weights.rows(), weights.cols(), n, is_invariant);
        if let Some(plan) = self.gated_plans.find(&key) {
            return Ok(plan);
        }
        if lane.stream.is_capturing()? {
            return Err(GpuError::NotPrepared { tokens: n });
        }
        let plan = GatedPlan::new(weights, n, &self.options(is_invariant))?;
        Ok(self.gated_plans.insert(key, plan))
    }

    fn grouped_plan(
        &self,
        lane: &Lane,
        weights: &DeviceMatrix,
        (experts, rows): (usize, usize),
        assignments: usize,
        is_invariant: bool,
    ) -> Result<Arc<GroupedPlan>, GpuError> {
        // The same for all numbers of assignments in a range.
        let each = match is_invariant {
            true => 0,
            false => assignments.checked_div(experts).unwrap_or(0),
        };
        let key = (rows, weights.cols(), experts, each, is_invariant);
        if let Some(plan) = self.grouped_plans.find(&key) {
            return Ok(plan);
        }
        if lane.stream.is_capturing()? {
            return Err(GpuError::NotPrepared {
                tokens: assignments,
            });
        }
        let plan = match is_invariant {
            true => GroupedPlan::batch_invariant(weights, experts, rows)?,
            false => GroupedPlan::new(weights, experts, rows, assignments)?,
        };
        Ok(self.grouped_plans.insert(key, plan))
    }
}

/// Address and bytes of a tensor that holds a matrix, its rows and columns.
type Weight = (usize, usize, usize, usize);

/// Devices that the driver finds; 0 where there is no driver.
#[pyfunction]
pub fn device_count() -> u32 {
    Device::count().unwrap_or(0)
}

/// Runs what needs the driver without the lock of the interpreter.
fn run<T: Send>(py: Python, job: impl FnOnce() -> Result<T, GpuError> + Send) -> PyResult<T> {
    py.detach(job).map_err(|error| error::of_gpu(py, &error))
}

/// Y[N, M] = X[N, K] W[M, K]^T + bias, of N rows of K BF16 that start `x_stride` BF16 apart.
///
/// Kernels with `pdl` start before those ahead of them have finished, and read weights then. That is asked for only
/// where it helps, which is in a graph that is captured, and granted only by callers who know that nothing in the
/// graph writes the weights. Gives whether the launch was captured.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple would be named nowhere")]
pub fn linear(
    py: Python,
    device: u32,
    stream: usize,
    weight: Weight,
    x: u64,
    x_stride: usize,
    n: usize,
    y: u64,
    bias: Option<u64>,
    batch_invariant: bool,
    pdl: bool,
) -> PyResult<bool> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        let lane = gpu.lane(stream)?;
        let weights = gpu.weights(weight)?;
        let is_captured = lane.stream.is_capturing()?;
        let rows = weights.rows();
        for first in (0..n).step_by(MAX_TOKENS) {
            let n = (n - first).min(MAX_TOKENS);
            let operands = RawOperands {
                x: x + 2 * (first * x_stride) as u64,
                x_stride,
                n,
                y: y + 2 * (first * rows) as u64,
                y_stride: rows,
                output: OutputType::Bf16,
                bias,
                accumulate: false,
            };
            let plan = gpu.plan(&lane, &weights, n, batch_invariant)?;
            let plan = plan.with_pdl(plan.is_pdl() && pdl && is_captured);
            // SAFETY: tensors of Python's, which it has checked, on the stream that they are used on; the workspace
            // serves that stream alone.
            unsafe { plan.run_raw(lane.stream.raw(), &weights, &operands, &lane.workspace)? };
        }
        Ok(is_captured)
    })
}

/// Y = silu(first half) x (second half) of X W^T, as [`linear`], for at most `MAX_TOKENS` rows; outputs follow one
/// another. `scratch` has room for all products.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple would be named nowhere")]
pub fn gated_linear(
    py: Python,
    device: u32,
    stream: usize,
    weight: Weight,
    x: u64,
    x_stride: usize,
    n: usize,
    y: u64,
    scratch: u64,
    batch_invariant: bool,
    pdl: bool,
) -> PyResult<bool> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        let (lane, weights) = (gpu.lane(stream)?, gpu.weights(weight)?);
        let is_captured = lane.stream.is_capturing()?;
        let operands = RawGated {
            x,
            x_stride,
            n,
            y,
            scratch,
        };
        let plan = gpu.gated_plan(&lane, &weights, n, batch_invariant)?;
        let plan = plan.with_pdl(plan.is_pdl() && pdl && is_captured);
        // SAFETY: tensors of Python's, which it has checked, on the stream that they are used on; the workspace serves
        // that stream alone.
        unsafe { plan.run_raw(lane.stream.raw(), &weights, &operands, &lane.workspace)? };
        Ok(is_captured)
    })
}

/// Rows of weights by their numbers, 64-bit ones or 32-bit ones.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple would be named nowhere")]
pub fn gather(
    py: Python,
    device: u32,
    stream: usize,
    weight: Weight,
    ids: u64,
    is_64_bit: bool,
    count: usize,
    out: u64,
) -> PyResult<()> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        let lane = gpu.lane(stream)?;
        // SAFETY: tensors of Python's, which it has checked, on the stream that they are used on.
        unsafe {
            gpu.weights(weight)?
                .gather_raw(lane.stream.raw(), ids, is_64_bit, count, out)
        }
    })
}

/// All weights, row after row.
#[pyfunction]
pub fn gpu_decompress(
    py: Python,
    device: u32,
    stream: usize,
    weight: Weight,
    out: u64,
) -> PyResult<()> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        let lane = gpu.lane(stream)?;
        // SAFETY: as above.
        unsafe { gpu.weights(weight)?.decompress_raw(lane.stream.raw(), out) }
    })
}

/// Bytes of scratch memory that `measure` takes.
#[pyfunction]
pub fn scratch_bytes() -> usize {
    ENCODE_SCRATCH_BYTES
}

/// A dense matrix on a GPU whose compressed size is known.
#[pyclass(frozen)]
pub struct Measured(zipserv::gpu::Measured);

#[pymethods]
impl Measured {
    /// Bytes of the matrix as it is stored.
    #[getter]
    fn stored_bytes(&self) -> usize {
        self.0.stored_bytes()
    }
}

/// Finds out the compressed size of a dense matrix, and waits for that.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple would be named nowhere")]
pub fn measure(
    py: Python,
    device: u32,
    stream: usize,
    address: u64,
    rows: usize,
    cols: usize,
    stride: usize,
    scratch: u64,
) -> PyResult<Measured> {
    let dense = RawDense {
        address,
        rows,
        cols,
        stride,
    };
    run(py, || {
        let gpu = Gpu::open(device)?;
        // SAFETY: tensors of Python's, which it keeps until the matrix is encoded, on the stream that they are used on.
        unsafe { gpu.device.measure_raw(stream as *mut _, &dense, scratch) }
    })
    .map(Measured)
}

/// Compresses a measured matrix to the first of `capacity` bytes, and makes zeros of the rest.
#[pyfunction]
pub fn gpu_encode(
    py: Python,
    device: u32,
    stream: usize,
    measured: &Measured,
    out: u64,
    capacity: usize,
) -> PyResult<()> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        // SAFETY: as above.
        unsafe {
            gpu.device
                .encode_raw(stream as *mut _, &measured.0, out, capacity)
        }
    })
}

/// Address of the numbers of tokens' experts, and whether they have 64 bits.
type ExpertsKey = (u64, bool);

/// Where the tokens of a call go: address of its memory, experts that are not sorted, tokens, experts of each, of how
/// many, tokens of a group.
type RoutingKey = (u64, Option<ExpertsKey>, usize, usize, usize, usize);

fn raw_routing(
    (address, unsorted, tokens, top_k, experts, group_tokens): RoutingKey,
) -> RawRouting {
    RawRouting {
        address,
        unsorted: unsorted.map(raw_experts),
        tokens,
        top_k,
        experts,
        group_tokens,
    }
}

fn raw_experts((address, is_64_bit): ExpertsKey) -> RawExperts {
    RawExperts { address, is_64_bit }
}

/// Tokens of a group, whether tokens are taken unsorted, bytes of routing if they are not, and where in them places are.
/// Weights are those of one of the layers.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple would be named nowhere")]
pub fn routing(
    py: Python,
    device: u32,
    stream: usize,
    weight: Weight,
    experts: usize,
    rows: usize,
    tokens: usize,
    top_k: usize,
    batch_invariant: bool,
) -> PyResult<(usize, bool, usize, usize)> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        let (lane, weights) = (gpu.lane(stream)?, gpu.weights(weight)?);
        let assignments = tokens.saturating_mul(top_k);
        let plan = gpu.grouped_plan(
            &lane,
            &weights,
            (experts, rows),
            assignments,
            batch_invariant,
        )?;
        let group_tokens = plan.group_tokens();
        let raw = raw_routing((0, None, tokens, top_k, experts, group_tokens));
        let takes_unsorted = plan.takes_unsorted(tokens);
        Ok((
            group_tokens,
            takes_unsorted,
            raw.bytes(),
            raw.places() as usize,
        ))
    })
}

/// Sorts assignments of tokens to experts by expert.
#[pyfunction]
pub fn route(
    py: Python,
    device: u32,
    stream: usize,
    experts_of: ExpertsKey,
    routing: RoutingKey,
) -> PyResult<()> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        let (experts_of, routing) = (raw_experts(experts_of), raw_routing(routing));
        // SAFETY: tensors of Python's, which it has checked, on the stream that they are used on.
        unsafe { gpu.device.route_raw(stream as *mut _, experts_of, &routing) }
    })
}

/// Bytes of scratch memory that [`grouped_linear`] takes.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple would be named nowhere")]
pub fn grouped_scratch(
    py: Python,
    device: u32,
    stream: usize,
    weight: Weight,
    rows: usize,
    routing: RoutingKey,
    x: u64,
    x_stride: usize,
    x_by_expert: bool,
    is_gated: bool,
    batch_invariant: bool,
) -> PyResult<usize> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        let (lane, weights) = (gpu.lane(stream)?, gpu.weights(weight)?);
        let routing = raw_routing(routing);
        let (of, assignments) = ((routing.experts, rows), routing.assignments());
        let plan = gpu.grouped_plan(&lane, &weights, of, assignments, batch_invariant)?;
        let operands = RawGrouped {
            x,
            x_stride,
            x_by_expert,
            is_gated,
            y: 0,
            y_stride: 0,
            output: OutputType::Bf16,
            follows_routing: false,
            scratch: 0,
        };
        Ok(plan.scratch_bytes(&operands, &routing))
    })
}

/// `Y[a] = X[t(a)] W[e(a)]^T` for each assignment, in the order of experts, with as many rows as there are.
///
/// If it `follows_routing`, the kernel waits for all ahead of it before it reads weights. If it does not, it follows
/// another that did, and starts once that one has waited. So weights may be written by any ahead of them. `scratch` has
/// room for what [`grouped_scratch`] says.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple would be named nowhere")]
pub fn grouped_linear(
    py: Python,
    device: u32,
    stream: usize,
    weight: Weight,
    rows: usize,
    routing: RoutingKey,
    x: u64,
    x_stride: usize,
    x_by_expert: bool,
    y: u64,
    y_stride: usize,
    is_f32: bool,
    is_gated: bool,
    follows_routing: bool,
    batch_invariant: bool,
    scratch: u64,
) -> PyResult<()> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        let (lane, weights) = (gpu.lane(stream)?, gpu.weights(weight)?);
        let routing = raw_routing(routing);
        let (experts, assignments) = (routing.experts, routing.assignments());
        let of = (experts, rows);
        let plan = gpu.grouped_plan(&lane, &weights, of, assignments, batch_invariant)?;
        let operands = RawGrouped {
            x,
            x_stride,
            x_by_expert,
            y,
            y_stride,
            output: match is_f32 {
                true => OutputType::F32,
                false => OutputType::Bf16,
            },
            is_gated,
            follows_routing,
            scratch,
        };
        // SAFETY: tensors of Python's, which it has checked, on the stream that they are used on; the workspace serves
        // that stream alone.
        unsafe {
            plan.run_raw(
                lane.stream.raw(),
                &weights,
                &operands,
                &routing,
                &lane.workspace,
            )
        }
    })
}

/// Adds up the outputs of a token's experts.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "a tuple would be named nowhere")]
pub fn combine(
    py: Python,
    device: u32,
    stream: usize,
    parts: u64,
    weights: u64,
    y: u64,
    features: usize,
    routing: RoutingKey,
) -> PyResult<()> {
    run(py, || {
        let gpu = Gpu::open(device)?;
        let (stream, routing) = (stream as *mut _, raw_routing(routing));
        // SAFETY: as above.
        unsafe {
            gpu.device
                .combine_raw(stream, parts, weights, y, features, &routing)
        }
    })
}
