//! What every test needs: the device, a stream, a workspace, and calls with guard zones.

use std::{
    env,
    fmt::Display,
    fs,
    io::{Write, stderr},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use bytemuck::Pod;
use half::bf16;
use zipserv::{
    CompressedMatrix, Matrix, encode,
    gpu::{
        Buffer, Device, DeviceMatrix, Family, GpuError, Plan, PlanOptions, RawOperands, RawStream,
        Stream, Workspace,
    },
};

/// What guard zones of outputs hold.
pub const GUARD: u16 = 0x1234;
/// What surrounds inputs, so that a sum with any of it shows.
pub const NAN: u16 = 0x7FFF;
/// Values in a guard zone; a multiple of any alignment that a kernel cares for.
const ZONE: usize = 128;

/// The device with every family of kernels that it can run, for all tests: making their machine
/// code takes a while.
static DEVICES: LazyLock<Vec<Device>> = LazyLock::new(|| {
    let device = match Device::new(0) {
        Err(error @ (GpuError::NoDriver | GpuError::NoDevice { .. })) => {
            skipped(&error);
            return Vec::new();
        }
        device => device.unwrap(),
    };
    if let Ok(path) = env::var("ZIPSERV_PTX") {
        let ptx = fs::read_to_string(path).unwrap();
        // SAFETY: whoever sets the variable takes them from the builder.
        return vec![unsafe { Device::with_ptx(0, ptx).unwrap() }];
    }
    let mut devices = vec![device];
    if devices[0].family() != Family::Portable {
        devices.push(Device::with_family(0, Family::Portable).unwrap());
    }
    devices
});

/// One test at a time has the device: waiting for all of it breaks another's recording of a graph.
static TURN: Mutex<()> = Mutex::new(());

/// Whether to leave out most cases.
pub fn quick() -> bool {
    env::var_os("ZIPSERV_QUICK").is_some()
}

/// Says why something was not tested.
pub fn skipped(why: &dyn Display) {
    // The macros that print would be captured.
    let _ = writeln!(stderr(), "SKIPPED: {why}");
}

/// A test's own stream and workspace on the device.
pub struct Lab {
    pub device: &'static Device,
    pub workspace: Workspace,
    pub stream: Stream,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// One after the other for each family of kernels; none without a device.
    pub fn each() -> impl Iterator<Item = Self> {
        DEVICES.iter().map(|device| {
            let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            Self {
                device,
                workspace: Workspace::new(device).unwrap(),
                stream: Stream::new(device).unwrap(),
                _turn: turn,
            }
        })
    }

    /// The same with memory for dense weights; none without cuBLASLt.
    pub fn each_with_dense() -> impl Iterator<Item = Self> {
        /// Enough for any matrix of the tests and for cuBLASLt.
        const BYTES: usize = 64 << 20;
        Self::each().filter_map(|mut lab| {
            let any = lab.upload(64, 64, &[0; 64 * 64]);
            let options = PlanOptions::default().decoupled();
            if let Err(error @ GpuError::NoLibrary { .. }) = Plan::new(&any, 64, &options) {
                skipped(&error);
                return None;
            }
            let memory = Buffer::from_slice(lab.device, &vec![u8::MAX; BYTES]).unwrap();
            lab.workspace = Workspace::new(lab.device).unwrap().with_dense(memory);
            Some(lab)
        })
    }

    /// The kernels for Hopper, on one.
    pub fn hopper() -> Option<Self> {
        Self::each().find(|lab| lab.device.family() == Family::Hopper)
    }

    pub fn raw(&self) -> RawStream {
        self.stream.raw()
    }

    /// The kernels of the device for few tokens, with how many.
    pub fn decode_kernels(&self) -> impl Iterator<Item = (&'static str, usize)> {
        Plan::kernels(self.device).filter(|(name, _)| name.starts_with("zipgemm"))
    }

    /// Those for many, with the tokens of an output tile.
    pub fn prefill_kernels(&self) -> impl Iterator<Item = (&'static str, usize)> {
        Plan::kernels(self.device).filter(|(name, _)| name.starts_with("prefill"))
    }

    /// A matrix on the device.
    pub fn upload(&self, rows: usize, cols: usize, bits: &[u16]) -> DeviceMatrix {
        DeviceMatrix::upload(self.device, &compressed(rows, cols, bits)).unwrap()
    }

    /// Values on the device, by their bits.
    pub fn buffer(&self, bits: &[u16]) -> Buffer<bf16> {
        Buffer::from_slice(self.device, bytemuck::cast_slice(bits)).unwrap()
    }

    /// Bits of what the stream has left there.
    pub fn bits(&self, buffer: &Buffer<bf16>) -> Vec<u16> {
        bytemuck::cast_vec(buffer.to_vec(&self.stream).unwrap())
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
        let input = Guarded::new(self, x, NAN, skews[0]);
        let output = Guarded::new(self, &vec![NAN; n * weights.rows()], GUARD, skews[1]);
        let operands = RawOperands::new(weights, input.address(), n, output.address());
        // SAFETY: both have room.
        unsafe { self.launch(plan, weights, &operands) };
        output.values(self)
    }

    /// Launches a multiplication; all of a lab follow one another in its stream.
    ///
    /// # Safety
    /// The operands are there until it has run.
    pub unsafe fn launch(&self, plan: &Plan, weights: &DeviceMatrix, operands: &RawOperands) {
        // SAFETY: the caller's promise.
        unsafe { self.try_launch(plan, weights, operands).unwrap() };
    }

    /// The same, if nothing is wrong with it.
    ///
    /// # Safety
    /// As [`launch`](Self::launch).
    pub unsafe fn try_launch(
        &self,
        plan: &Plan,
        weights: &DeviceMatrix,
        operands: &RawOperands,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise; one stream has the workspace.
        unsafe { plan.run_raw(self.raw(), weights, operands, &self.workspace) }
    }

    /// Restores a matrix to where `skew` says.
    pub fn decompress(&self, matrix: &DeviceMatrix, skew: usize) -> Vec<u16> {
        let values = vec![NAN; matrix.rows() * matrix.cols()];
        let output = Guarded::new(self, &values, GUARD, skew);
        // SAFETY: the output has room.
        unsafe { matrix.decompress_raw(self.raw(), output.address()).unwrap() };
        output.values(self)
    }
}

impl Drop for Lab {
    /// Every launch leaves the workspace as it was.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(
                self.workspace.is_empty(&self.stream).unwrap(),
                "sums are left over"
            );
        }
    }
}

pub fn compressed(rows: usize, cols: usize, bits: &[u16]) -> CompressedMatrix<'static> {
    encode(&Matrix::from_bits(rows, cols, bits).unwrap()).unwrap()
}

/// The plan for `n` tokens.
pub fn plan(weights: &DeviceMatrix, n: usize) -> Plan {
    plan_with(weights, n, PlanOptions::default())
}

pub fn plan_with(weights: &DeviceMatrix, n: usize, options: PlanOptions) -> Plan {
    Plan::new(weights, n, &options).unwrap()
}

/// The plan with a named kernel.
pub fn plan_of(weights: &DeviceMatrix, n: usize, kernel: &str) -> Plan {
    plan_with(weights, n, PlanOptions::default().kernel(kernel))
}

/// The launches of a kernel to try: its own number of blocks, and others.
pub fn plans_of(weights: &DeviceMatrix, n: usize, kernel: &str, blocks: &[u32]) -> Vec<Plan> {
    let plan = plan_of(weights, n, kernel);
    let mut plans = vec![plan];
    for &blocks in blocks {
        let plan = plan.with_blocks(blocks);
        if !plans.contains(&plan) {
            plans.push(plan);
        }
    }
    plans
}

pub fn decoupled_plan(weights: &DeviceMatrix, n: usize) -> Plan {
    plan_with(weights, n, PlanOptions::default().decoupled())
}

pub fn invariant_plan(weights: &DeviceMatrix) -> Plan {
    plan_with(weights, 1, PlanOptions::default().batch_invariant())
}

/// Whether a result is an error of a pattern; it shows what else it is.
macro_rules! refused {
    ($result:expr, $error:pat $(if $guard:expr)?) => {{
        let result = $result;
        let refused = matches!(&result, Err($error) $(if $guard)?);
        assert!(refused, "{result:?}, not {}", stringify!($error $(if $guard)?));
    }};
}
pub(crate) use refused;

/// Values between guard zones on the device.
pub struct Guarded<T: Pod> {
    memory: Buffer<T>,
    guard: T,
    from: usize,
    to: usize,
}

impl<T: Pod + PartialEq> Guarded<T> {
    pub fn new(lab: &Lab, values: &[T], guard: T, skew: usize) -> Self {
        let (from, to) = (ZONE + skew, ZONE + skew + values.len());
        let mut all = vec![guard; to + ZONE];
        all[from..to].copy_from_slice(values);
        Self {
            memory: Buffer::from_slice(lab.device, &all).unwrap(),
            guard,
            from,
            to,
        }
    }

    pub fn address(&self) -> u64 {
        self.memory.address() + (size_of::<T>() * self.from) as u64
    }

    /// The values that the lab's stream has left, if the guard zones are as they were.
    pub fn values(&self, lab: &Lab) -> Vec<T> {
        let all = self.memory.to_vec(&lab.stream).unwrap();
        let (before, after) = (&all[..self.from], &all[self.to..]);
        let whole = before.iter().chain(after).all(|&v| v == self.guard);
        assert!(whole, "something is written outside the output");
        all[self.from..self.to].to_vec()
    }
}
