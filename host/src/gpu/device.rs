use std::{
    ffi::{CStr, c_char, c_int},
    fmt,
    marker::PhantomData,
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use cudarc::driver::sys;

use super::{
    cublaslt::CublasLt,
    driver::{RawStream, check, initialize},
    error::GpuError,
    family::Family,
    kernels::{Kernel, Kernels},
};

/// A GPU and the kernels for it.
///
/// It is a value: clones share the device, whatever belongs to it keeps it alive, and no call looks
/// at, or leaves changed, which context is the thread's current one. It holds the device's primary
/// context, the one that the CUDA runtime, PyTorch, cuBLAS, cudarc and candle use.
///
/// A kernel is loaded when a plan first wants it; then the driver compiles its PTX, unless it has
/// done so before and kept it.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    kernels: Kernels,
    /// Loaded when it is first asked for: fused kernels do without.
    cublaslt: OnceLock<CublasLt>,
    /// For copies from and to the host, which wait for nothing else.
    copies: Handle,
    context: Context,
    /// Tells plans of one device from those of another.
    id: u64,
    ordinal: u32,
    name: String,
    capability: (i32, i32),
    memory_bytes: usize,
    sms: u32,
}

/// A stream of the driver's that any thread may use.
struct Handle(sys::CUstream);

// SAFETY: the driver lets any thread use any handle.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// A device's primary context, of which the driver counts the holders.
struct Context {
    raw: sys::CUcontext,
    device: sys::CUdevice,
}

// SAFETY: the driver lets any thread use any context.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The device's context is the thread's current one as long as this lives, see [`Device::enter`].
#[must_use = "the context is left when this is dropped"]
pub struct Entered<'a> {
    /// Whether there is another one to go back to.
    pushed: bool,
    /// It is the thread's own business.
    _thread: PhantomData<(&'a (), *const ())>,
}

/// The thread may do what captures of streams forbid otherwise, as long as this lives.
pub(super) struct Relaxed {
    before: sys::CUstreamCaptureMode,
    /// It is the thread's own business.
    _thread: PhantomData<*const ()>,
}

impl Relaxed {
    fn new() -> Result<Self, GpuError> {
        let before = exchange(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
        Ok(Self {
            before,
            _thread: PhantomData,
        })
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // Nothing can be done about an error.
        let _ = exchange(self.before);
    }
}

/// Sets the thread's mode of captures, and gives the one before.
fn exchange(mut mode: sys::CUstreamCaptureMode) -> Result<sys::CUstreamCaptureMode, GpuError> {
    // SAFETY: reads and writes the mode.
    check("cuThreadExchangeStreamCaptureMode", unsafe {
        sys::cuThreadExchangeStreamCaptureMode(&mut mode)
    })?;
    Ok(mode)
}

impl Device {
    /// Opens device `ordinal` with the best kernels that it can run.
    ///
    /// # Errors
    /// [`GpuError::NoDriver`], [`GpuError::NoDevice`], [`GpuError::Unsupported`], and
    /// [`GpuError::Driver`] when the device cannot be used.
    pub fn new(ordinal: u32) -> Result<Self, GpuError> {
        Self::open(ordinal, Kernels::built_in)
    }

    /// Opens device `ordinal` with the kernels of `family`.
    ///
    /// # Errors
    /// As [`Device::new`]; plans fail later when the device cannot run the family.
    pub fn with_family(ordinal: u32, family: Family) -> Result<Self, GpuError> {
        Self::open(ordinal, |_| Kernels::built_in(family))
    }

    /// Opens device `ordinal` with the kernels of `ptx`, as `cargo run -p builder` writes them:
    /// for work on the kernels, without building the host again.
    ///
    /// # Errors
    /// As [`Device::new`]; plans fail later when the driver does not like the text.
    ///
    /// # Safety
    /// The kernels of `ptx` that are named as those built in take the same arguments, are
    /// launched in the same shape, and touch no other memory.
    pub unsafe fn with_ptx(ordinal: u32, ptx: String) -> Result<Self, GpuError> {
        Self::open(ordinal, |_| Kernels::new(ptx.into()))
    }

    /// Devices that the driver finds.
    ///
    /// # Errors
    /// [`GpuError::NoDriver`] and [`GpuError::Driver`].
    pub fn count() -> Result<u32, GpuError> {
        match initialize() {
            Err(GpuError::NoDevice { .. }) => return Ok(0),
            other => other?,
        }
        let mut count = 0;
        // SAFETY: writes an `int`.
        check("cuDeviceGetCount", unsafe {
            sys::cuDeviceGetCount(&mut count)
        })?;
        Ok(count as u32)
    }

    fn open(ordinal: u32, kernels: impl FnOnce(Family) -> Kernels) -> Result<Self, GpuError> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        initialize()?;
        let count = Self::count()?;
        if ordinal >= count {
            return Err(GpuError::NoDevice { ordinal, count });
        }
        let mut device = 0;
        // SAFETY: writes the device.
        check("cuDeviceGet", unsafe {
            sys::cuDeviceGet(&mut device, ordinal as i32)
        })?;
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| {
            let mut value: c_int = 0;
            // SAFETY: writes an `int`.
            check("cuDeviceGetAttribute", unsafe {
                sys::cuDeviceGetAttribute(&mut value, which, device)
            })?;
            Ok::<_, GpuError>(value)
        };
        let name = device_name(device)?;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            return Err(GpuError::Unsupported { name, major, minor });
        }
        let sms = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut memory_bytes = 0;
        // SAFETY: writes a `size_t`.
        check("cuDeviceTotalMem", unsafe {
            sys::cuDeviceTotalMem_v2(&mut memory_bytes, device)
        })?;
        let best = match (major, minor) {
            (9, 0) => Family::Hopper,
            _ => Family::Portable,
        };
        let kernels = kernels(best).that_fit(shared as usize);
        let context = Context::retain(device)?;
        let mut inner = Inner {
            kernels,
            cublaslt: OnceLock::new(),
            copies: Handle(ptr::null_mut()),
            context,
            id: IDS.fetch_add(1, Ordering::Relaxed),
            ordinal,
            name,
            capability: (major, minor),
            memory_bytes,
            sms,
        };
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        {
            let _current = inner.context.enter()?;
            // SAFETY: writes the new stream.
            check("cuStreamCreate", unsafe {
                sys::cuStreamCreate(&mut inner.copies.0, flags)
            })?;
        }
        Ok(Self(Arc::new(inner)))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The device's number.
    pub fn ordinal(&self) -> u32 {
        self.0.ordinal
    }

    /// Major and minor compute capability.
    pub fn capability(&self) -> (i32, i32) {
        self.0.capability
    }

    /// The device's memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.0.memory_bytes
    }

    /// Bytes of the device's memory that nothing has taken yet.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn free_bytes(&self) -> Result<usize, GpuError> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two `size_t`.
        check("cuMemGetInfo", unsafe {
            sys::cuMemGetInfo_v2(&mut free, &mut total)
        })?;
        Ok(free)
    }

    /// Streaming multiprocessors of the device.
    pub fn sms(&self) -> u32 {
        self.0.sms
    }

    /// Which kernels it has.
    pub fn family(&self) -> Family {
        self.0.kernels.family()
    }

    /// Names of the kernels that it has.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        self.0.kernels.names()
    }

    /// Whether the family has a kernel of this name, and the device room for it.
    pub fn has(&self, kernel: &str) -> bool {
        self.0.kernels.has(kernel)
    }

    /// Waits for everything that was launched on the device, by whomever. It fails while a graph is
    /// captured.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn synchronize(&self) -> Result<(), GpuError> {
        let _current = self.enter()?;
        // SAFETY: waits for the current context.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    /// Lets kernels of this device use the memory of a `peer`: its buffers, also those that come later. False where the two
    /// cannot reach one another.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn reach(&self, peer: &Self) -> Result<bool, GpuError> {
        use sys::CUresult as Status;
        let mut can: c_int = 0;
        let (device, other) = (self.0.context.device, peer.0.context.device);
        // SAFETY: writes an `int`.
        check("cuDeviceCanAccessPeer", unsafe {
            sys::cuDeviceCanAccessPeer(&mut can, device, other)
        })?;
        if can == 0 {
            return Ok(false);
        }
        let _current = self.enter()?;
        // SAFETY: a live context.
        match unsafe { sys::cuCtxEnablePeerAccess(peer.0.context.raw, 0) } {
            Status::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(true),
            Status::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED | Status::CUDA_ERROR_TOO_MANY_PEERS => {
                Ok(false)
            }
            status => check("cuCtxEnablePeerAccess", status).map(|()| true),
        }
    }

    /// Whether both hold one context, so that either may use what belongs to the other.
    pub(super) fn shares_context(&self, other: &Self) -> bool {
        self.0.context.raw == other.0.context.raw
    }

    /// Whether `context` is the device's.
    pub(super) fn is_context(&self, context: sys::CUcontext) -> bool {
        self.0.context.raw == context
    }

    /// What plans remember of it.
    pub(super) fn id(&self) -> u64 {
        self.0.id
    }

    /// Makes the device's context the thread's current one, for calls of the driver that want that, and
    /// of other libraries. All of this crate's own see to it by themselves.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn enter(&self) -> Result<Entered<'_>, GpuError> {
        self.0.context.enter()
    }

    /// The stream for copies from and to the host.
    pub(super) fn copies(&self) -> sys::CUstream {
        self.0.copies.0
    }

    /// cuBLASLt for the device, loaded when it is first wanted.
    ///
    /// # Errors
    /// [`GpuError::NoLibrary`] where it is missing; [`GpuError::Cublas`] when it cannot be used.
    pub fn cublaslt(&self) -> Result<&CublasLt, GpuError> {
        if let Some(library) = self.0.cublaslt.get() {
            return Ok(library);
        }
        let _current = self.enter()?;
        let library = CublasLt::load()?;
        Ok(self.0.cublaslt.get_or_init(|| library))
    }

    /// As [`enter`](Self::enter), for calls that a stream's capture by this thread would forbid, though
    /// they have nothing to do with streams: allocating, freeing, loading.
    pub(super) fn enter_relaxed(&self) -> Result<(Entered<'_>, Relaxed), GpuError> {
        Ok((self.enter()?, Relaxed::new()?))
    }

    /// CRC-32 of the PTX that the kernels come from.
    pub(super) fn ptx_crc32(&self) -> u32 {
        self.0.kernels.crc32()
    }

    /// Blocks of `kernel` that the device holds at a time, no more than the kernel is made for. It
    /// loads the kernel.
    pub(super) fn resident_blocks(&self, kernel: &str) -> Result<u32, GpuError> {
        Ok(self.load(kernel)?.resident_blocks(self.sms()))
    }

    /// A kernel, loaded.
    pub(super) fn load(&self, kernel: &str) -> Result<Kernel, GpuError> {
        match self.0.kernels.loaded(kernel)? {
            Some(kernel) => Ok(kernel),
            None => {
                let _relaxed = self.enter_relaxed()?;
                self.0.kernels.load(kernel)
            }
        }
    }

    /// Threads in a block of a kernel.
    pub(super) fn threads(&self, kernel: &str) -> Result<usize, GpuError> {
        Ok(self.0.kernels.launch(kernel)?.threads)
    }

    /// A kernel of a table, if the device has it.
    pub(super) fn find<T: Copy>(
        &self,
        table: &[(&'static str, T)],
        kernel: &str,
    ) -> Result<(&'static str, T), GpuError> {
        let found = table.iter().find(|(name, _)| *name == kernel);
        let found = found.filter(|(name, _)| self.has(name)).copied();
        found.ok_or_else(|| self.no_kernel(kernel))
    }

    pub(super) fn no_kernel(&self, kernel: &str) -> GpuError {
        GpuError::NoKernel {
            kernel: kernel.to_owned(),
            family: self.family(),
        }
    }

    /// Launches `kernel` over `blocks` blocks with its one parameter, a struct.
    ///
    /// With `pdl`, it may start before the kernel ahead of it in the stream has finished
    /// (programmatic dependent launch); the kernel itself waits before it reads what that one
    /// writes.
    ///
    /// # Safety
    /// `args` is what the kernel takes, its pointers are valid when the kernel runs, and the stream
    /// is of the device's context.
    pub(super) unsafe fn launch<T: Copy>(
        &self,
        kernel: &str,
        blocks: u32,
        stream: RawStream,
        pdl: bool,
        args: T,
    ) -> Result<(), GpuError> {
        let kernel = self.load(kernel)?;
        let _current = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { kernel.launch(blocks, stream, pdl, args) }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "device {}, {}", self.ordinal(), self.name())
    }
}

impl Drop for Inner {
    /// The last of all that belongs to the device is gone. Its streams have been waited for; what was
    /// launched on the caller's own is waited for here, and so is all else in the context, before the
    /// kernels' code goes.
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else {
            return;
        };
        // SAFETY: nothing uses the kernels any more, nor the stream. Nothing can be done about an
        // error, which a process that ends may see.
        unsafe {
            let _ = sys::cuCtxSynchronize();
            self.kernels.unload();
            if !self.copies.0.is_null() {
                let _ = sys::cuStreamDestroy_v2(self.copies.0);
            }
            // Its handle wants the context too.
            self.cublaslt.take();
        }
    }
}

impl Context {
    fn retain(device: sys::CUdevice) -> Result<Self, GpuError> {
        let mut raw = ptr::null_mut();
        // SAFETY: writes the context.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut raw, device)
        })?;
        Ok(Self { raw, device })
    }

    fn enter(&self) -> Result<Entered<'_>, GpuError> {
        let mut current = ptr::null_mut();
        // SAFETY: writes the context.
        check("cuCtxGetCurrent", unsafe {
            sys::cuCtxGetCurrent(&mut current)
        })?;
        let pushed = current != self.raw;
        if pushed {
            // SAFETY: a live context.
            check("cuCtxPushCurrent", unsafe {
                sys::cuCtxPushCurrent_v2(self.raw)
            })?;
        }
        Ok(Entered {
            pushed,
            _thread: PhantomData,
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: released once. Nothing can be done about an error.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut left = ptr::null_mut();
            // SAFETY: writes the context, which is the one that was pushed.
            let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut left) };
        }
    }
}

fn device_name(device: sys::CUdevice) -> Result<String, GpuError> {
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: writes as many characters at most, the last a zero.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device)
    })?;
    // SAFETY: a string that ends within the array.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}
