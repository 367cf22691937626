//! What every test needs: the device, a stream, a workspace, and calls with guard zones.

use std::{
    env, fs,
    io::{Write, stderr},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use cust::{
    CudaFlags,
    context::CurrentContext,
    device::Device,
    memory::{CopyDestination, DeviceBuffer, DeviceCopy},
    stream::{Stream, StreamFlags},
};
use zipserv::{
    Matrix,
    cuda::{
        CudaError, DeviceMatrix, Family, GemmOperands, Gpu, Plan, RawStream, Workspace,
        decompress_raw, zipgemm_raw,
    },
    encode,
};

/// What guard zones of outputs hold.
pub const GUARD: u16 = 0x1234;
/// What surrounds inputs, so that a sum with any of it shows.
pub const NAN: u16 = 0x7FFF;
/// Values in a guard zone; a multiple of any alignment that a kernel cares for.
const ZONE: usize = 128;

/// The device with every family of kernels that it can run, for all tests: making their machine
/// code takes a while.
static GPUS: LazyLock<Vec<Gpu>> = LazyLock::new(|| {
    if cust::init(CudaFlags::empty()).is_err() || Device::get_device(0).is_err() {
        // The macros that print would be captured.
        let _ = stderr().write_all(b"SKIPPED: no CUDA device\n");
        return Vec::new();
    }
    if let Ok(path) = env::var("ZIPSERV_PTX") {
        // SAFETY: whoever sets the variable takes them from the builder.
        return vec![unsafe { Gpu::with_ptx(0, &fs::read_to_string(path).unwrap()).unwrap() }];
    }
    let mut gpus = vec![Gpu::new(0).unwrap()];
    if gpus[0].family() != Family::Portable {
        gpus.push(Gpu::with_family(0, Family::Portable).unwrap());
    }
    gpus
});

/// One test at a time has the device: waiting for all of it breaks another's recording of a graph.
static TURN: Mutex<()> = Mutex::new(());

/// Whether to leave out most cases.
pub fn quick() -> bool {
    env::var_os("ZIPSERV_QUICK").is_some()
}

/// A test's own stream and workspace on the device.
pub struct Lab {
    pub gpu: &'static Gpu,
    pub workspace: Workspace,
    pub stream: Stream,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// One after the other for each family of kernels; none without a device.
    pub fn each() -> impl Iterator<Item = Self> {
        GPUS.iter().map(|gpu| {
            gpu.make_current().unwrap();
            let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            Self {
                gpu,
                workspace: Workspace::new(gpu).unwrap(),
                stream: Stream::new(StreamFlags::NON_BLOCKING, None).unwrap(),
                _turn: turn,
            }
        })
    }

    /// The same with memory for dense weights; none without cuBLASLt.
    pub fn each_with_dense() -> impl Iterator<Item = Self> {
        /// Enough for any matrix of the tests and for cuBLASLt.
        const BYTES: usize = 64 << 20;
        Self::each().filter_map(|mut lab| {
            let any = upload(64, 64, &[0; 64 * 64]);
            if let Err(CudaError::Argument(why)) = Plan::decoupled(lab.gpu, &any, 64) {
                assert!(why.contains("libcublasLt.so is not found"), "{why}");
                let _ = writeln!(stderr(), "SKIPPED: {why}");
                return None;
            }
            let memory = DeviceBuffer::from_slice(&vec![u8::MAX; BYTES]).unwrap();
            CurrentContext::synchronize().unwrap();
            lab.workspace = Workspace::new(lab.gpu).unwrap().with_dense(memory);
            Some(lab)
        })
    }

    /// The kernels for Hopper, on one.
    pub fn hopper() -> Option<Self> {
        Self::each().find(|lab| lab.gpu.family() == Family::Hopper)
    }

    pub fn raw(&self) -> RawStream {
        self.stream.as_inner().cast()
    }

    /// The kernels of the device for few tokens, with how many.
    pub fn decode_kernels(&self) -> impl Iterator<Item = (&'static str, usize)> {
        Plan::kernels(self.gpu).filter(|(name, _)| name.starts_with("zipgemm"))
    }

    /// Those for many, with the tokens of an output tile.
    pub fn prefill_kernels(&self) -> impl Iterator<Item = (&'static str, usize)> {
        Plan::kernels(self.gpu).filter(|(name, _)| name.starts_with("prefill"))
    }

    /// The launches of a kernel to try: its own number of blocks, and others.
    pub fn plans(
        &self,
        weights: &DeviceMatrix,
        n: usize,
        kernel: &str,
        blocks: &[u32],
    ) -> Vec<Plan> {
        let plan = Plan::with_kernel(self.gpu, weights, n, kernel).unwrap();
        let mut plans = vec![plan];
        for &blocks in blocks {
            let plan = plan.with_blocks(blocks);
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        plans
    }

    /// Multiplies; `skews` values move `x` and `y` away from where allocations are aligned.
    pub fn multiply(
        &self,
        plan: &Plan,
        weights: &DeviceMatrix,
        x: &[u16],
        skews: [usize; 2],
    ) -> Vec<u16> {
        let n = x.len() / weights.cols();
        let input = Guarded::new(x, NAN, skews[0]);
        let output = Guarded::new(&vec![NAN; n * weights.rows()], GUARD, skews[1]);
        let operands = GemmOperands::new(weights, input.address(), n, output.address());
        // SAFETY: both have room.
        unsafe { self.launch(plan, weights, &operands) };
        self.stream.synchronize().unwrap();
        output.values()
    }

    /// Launches a multiplication; all of a lab follow one another in its stream.
    ///
    /// # Safety
    /// The operands are there until it has run.
    pub unsafe fn launch(&self, plan: &Plan, weights: &DeviceMatrix, operands: &GemmOperands) {
        let (gpu, stream) = (self.gpu, self.raw());
        // SAFETY: the caller's promise; one stream has the workspace.
        unsafe { zipgemm_raw(gpu, stream, plan, weights, operands, &self.workspace).unwrap() };
    }

    /// Restores a matrix to where `skew` says.
    pub fn decompress(&self, matrix: &DeviceMatrix, skew: usize) -> Vec<u16> {
        let output = Guarded::new(&vec![NAN; matrix.rows() * matrix.cols()], GUARD, skew);
        // SAFETY: the output has room.
        unsafe { decompress_raw(self.gpu, self.raw(), matrix, output.address()).unwrap() };
        self.stream.synchronize().unwrap();
        output.values()
    }
}

impl Drop for Lab {
    /// Every launch leaves the workspace as it was.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stream.synchronize().unwrap();
            assert!(self.workspace.is_empty().unwrap(), "sums are left over");
        }
    }
}

pub fn upload(rows: usize, cols: usize, bits: &[u16]) -> DeviceMatrix {
    let matrix = Matrix::from_bits(rows, cols, bits).unwrap();
    DeviceMatrix::upload(&encode(&matrix).unwrap()).unwrap()
}

/// Values between guard zones on the device.
pub struct Guarded<T: DeviceCopy> {
    memory: DeviceBuffer<T>,
    guard: T,
    from: usize,
    to: usize,
}

impl<T: DeviceCopy + PartialEq> Guarded<T> {
    pub fn new(values: &[T], guard: T, skew: usize) -> Self {
        let (from, to) = (ZONE + skew, ZONE + skew + values.len());
        let mut all = vec![guard; to + ZONE];
        all[from..to].copy_from_slice(values);
        let memory = DeviceBuffer::from_slice(&all).unwrap();
        CurrentContext::synchronize().unwrap();
        Self {
            memory,
            guard,
            from,
            to,
        }
    }

    pub fn address(&self) -> u64 {
        self.memory.as_device_ptr().as_raw() + (size_of::<T>() * self.from) as u64
    }

    /// The values, if the guard zones are as they were.
    pub fn values(&self) -> Vec<T> {
        let mut all = vec![self.guard; self.memory.len()];
        self.memory.copy_to(&mut all).unwrap();
        let (before, after) = (&all[..self.from], &all[self.to..]);
        let whole = before.iter().chain(after).all(|&v| v == self.guard);
        assert!(whole, "something is written outside the output");
        all[self.from..self.to].to_vec()
    }
}
