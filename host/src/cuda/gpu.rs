use std::{collections::HashMap, ffi::c_void, fmt, ptr, sync::OnceLock};

use cudarc::driver::sys;
use cust::{
    context::{Context, CurrentContext},
    device::{Device, DeviceAttribute},
    function::BlockSize,
    module::{Module, ModuleJitOption},
};
use zipserv_gpu::{
    launch::{KERNELS, Launch},
    ptx,
};

use super::{CudaError, RawStream, check, cublaslt::CublasLt};

/// Which build of the kernels a device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// sm_90a: bulk copies, dependent launches.
    Hopper,
    /// sm_80 and later: `cp.async`.
    Portable,
}

impl Family {
    /// The kernels that are built in.
    fn ptx(self) -> &'static str {
        match self {
            Family::Hopper => ptx::SM_90A,
            Family::Portable => ptx::SM_80,
        }
    }

    /// Whether those have one of this name.
    #[cfg(feature = "bench")]
    pub(super) fn has(self, kernel: &str) -> bool {
        has_entry(self.ptx(), kernel)
    }

    /// What a PTX file was built for.
    fn of_ptx(ptx: &str) -> Self {
        match ptx.contains(".target sm_90a") {
            true => Family::Hopper,
            false => Family::Portable,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Family::Hopper => "sm_90a",
            Family::Portable => "portable",
        })
    }
}

/// A device with its kernels loaded.
///
/// It holds the device's primary context, the one that the CUDA runtime, cuBLAS, cudarc and
/// candle use.
pub struct Gpu {
    functions: HashMap<&'static str, Function>,
    /// Loaded when it is first asked for: fused kernels do without.
    cublaslt: OnceLock<Result<CublasLt, String>>,
    _module: Module,
    context: Context,
    device: Device,
    ordinal: u32,
    family: Family,
    multiprocessors: u32,
    ptx_crc32: u32,
}

#[derive(Clone, Copy)]
struct Function {
    raw: sys::CUfunction,
    launch: &'static Launch,
    /// Blocks that fit on one multiprocessor.
    resident: u32,
}

// SAFETY: a handle that the driver lets any thread use, of a module that lives as long as `Gpu`.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// CRC-32 of PTX but for comments on lines of their own, which change with each word in the sources.
fn crc32(ptx: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for line in ptx.lines().filter(|line| !line.starts_with("//")) {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }
    hasher.finalize()
}

impl Gpu {
    /// Opens device `ordinal` with the best kernels it can run.
    ///
    /// # Errors
    /// [`CudaError`] when there is no such device, or no kernel for it.
    pub fn new(ordinal: u32) -> Result<Self, CudaError> {
        Self::open(ordinal, None, None)
    }

    /// Opens device `ordinal` with the kernels of `family`.
    ///
    /// # Errors
    /// As [`Gpu::new`]; loading fails when the device cannot run the family.
    pub fn with_family(ordinal: u32, family: Family) -> Result<Self, CudaError> {
        Self::open(ordinal, Some(family), None)
    }

    /// Opens device `ordinal` with the kernels of `ptx`, as `cargo run -p builder` writes them:
    /// for work on the kernels, without building the host again.
    ///
    /// # Errors
    /// As [`Gpu::new`]; loading fails when the driver does not like the text.
    ///
    /// # Safety
    /// The kernels of `ptx` that are named as those built in take the same arguments, are
    /// launched in the same shape, and touch no other memory.
    pub unsafe fn with_ptx(ordinal: u32, ptx: &str) -> Result<Self, CudaError> {
        Self::open(ordinal, None, Some(ptx))
    }

    fn open(ordinal: u32, family: Option<Family>, ptx: Option<&str>) -> Result<Self, CudaError> {
        cust::init(cust::CudaFlags::empty())?;
        let device = Device::get_device(ordinal)?;
        let context = Context::new(device)?;
        let attribute = |attribute| device.get_attribute(attribute);
        let major = attribute(DeviceAttribute::ComputeCapabilityMajor)?;
        let minor = attribute(DeviceAttribute::ComputeCapabilityMinor)?;
        if major < 8 {
            let name = device.name()?;
            return Err(CudaError::Unsupported { name, major, minor });
        }
        let best = match (major, minor) {
            (9, 0) => Family::Hopper,
            _ => Family::Portable,
        };
        let family = match ptx {
            Some(ptx) => Family::of_ptx(ptx),
            None => family.unwrap_or(best),
        };
        let ptx = ptx.unwrap_or(family.ptx());
        let module = Module::from_ptx(ptx, &[ModuleJitOption::MaxRegisters(255)])?;
        let shared_bytes = shared_bytes(device)?;
        let mut functions = HashMap::new();
        // Asking for what is not there would be an error to `compute-sanitizer`.
        let there = |launch: &&Launch| has_entry(ptx, launch.name);
        let fits = |launch: &&Launch| launch.shared_bytes <= shared_bytes;
        for launch in KERNELS.iter().filter(there).filter(fits) {
            let function = module.get_function(launch.name)?;
            let raw: sys::CUfunction = function.to_raw().cast();
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a live module.
            check("cuFuncSetAttribute", unsafe {
                sys::cuFuncSetAttribute(raw, attribute, launch.shared_bytes as i32)
            })?;
            let threads = BlockSize::x(launch.threads as u32);
            let resident =
                function.max_active_blocks_per_multiprocessor(threads, launch.shared_bytes)?;
            if resident > 0 {
                let function = Function {
                    raw,
                    launch,
                    resident,
                };
                functions.insert(launch.name, function);
            }
        }
        Ok(Self {
            functions,
            cublaslt: OnceLock::new(),
            _module: module,
            context,
            device,
            ordinal,
            family,
            multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)? as u32,
            ptx_crc32: crc32(ptx),
        })
    }

    /// The device's name.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn name(&self) -> Result<String, CudaError> {
        Ok(self.device.name()?)
    }

    /// The device's number.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The device's memory, in bytes.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn memory_bytes(&self) -> Result<usize, CudaError> {
        Ok(self.device.total_memory()?)
    }

    /// Makes the device's context the calling thread's, as [`Gpu::new`] does for the thread that
    /// calls it. Buffers, streams and launches need it.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn make_current(&self) -> Result<(), CudaError> {
        Ok(CurrentContext::set_current(&self.context)?)
    }

    /// Whether `context` is the device's.
    pub(super) fn is_context(&self, context: sys::CUcontext) -> bool {
        self.context.as_raw().cast() == context
    }

    /// cuBLASLt for the device, which is tried once. The device's context is the current one.
    pub(super) fn cublaslt(&self) -> Result<&CublasLt, CudaError> {
        let load = || CublasLt::load().map_err(|error| error.to_string());
        let loaded = self.cublaslt.get_or_init(load).as_ref();
        loaded.map_err(|error| CudaError::Argument(error.clone()))
    }

    /// Which kernels are loaded.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Multiprocessors of the device.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// CRC-32 of the PTX that is loaded.
    pub(super) fn ptx_crc32(&self) -> u32 {
        self.ptx_crc32
    }

    /// Whether the family has a kernel of this name, and the device room for it.
    pub fn has(&self, kernel: &str) -> bool {
        self.functions.contains_key(kernel)
    }

    /// Threads in a block of `kernel`.
    pub(super) fn threads(&self, kernel: &str) -> Result<usize, CudaError> {
        Ok(self.function(kernel)?.launch.threads)
    }

    /// Blocks of `kernel` that the device holds at a time, no more than the kernel is made for.
    pub(super) fn resident_blocks(&self, kernel: &str) -> Result<u32, CudaError> {
        let Function {
            launch, resident, ..
        } = self.function(kernel)?;
        Ok(self.multiprocessors * (launch.min_blocks as u32).min(*resident))
    }

    fn function(&self, kernel: &str) -> Result<&Function, CudaError> {
        self.functions
            .get(kernel)
            .ok_or_else(|| self.no_kernel(kernel))
    }

    fn no_kernel(&self, kernel: &str) -> CudaError {
        let family = self.family;
        CudaError::Argument(format!("no kernel {kernel} for this device ({family})"))
    }

    /// A kernel of a table, if the device has it.
    pub(super) fn find<T: Copy>(
        &self,
        table: &[(&'static str, T)],
        kernel: &str,
    ) -> Result<(&'static str, T), CudaError> {
        let found = table.iter().find(|(name, _)| *name == kernel);
        let found = found.filter(|(name, _)| self.has(name)).copied();
        found.ok_or_else(|| self.no_kernel(kernel))
    }

    /// Launches `kernel` over `blocks` blocks with its one parameter, a struct.
    ///
    /// With `dependent`, it may start before the kernel ahead of it in the stream has finished
    /// (programmatic dependent launch); the kernel itself waits before it reads what that one
    /// writes.
    ///
    /// # Safety
    /// `args` is what the kernel takes, and its pointers are valid when the kernel runs.
    pub(super) unsafe fn launch<T: Copy>(
        &self,
        kernel: &str,
        blocks: u32,
        stream: RawStream,
        dependent: bool,
        mut args: T,
    ) -> Result<(), CudaError> {
        let function = self.function(kernel)?;
        let attribute = |id, value| sys::CUlaunchAttribute {
            id,
            pad: [0; 4],
            value,
        };
        let mut attributes = Vec::with_capacity(2);
        if dependent {
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue {
                    programmaticStreamSerializationAllowed: 1,
                },
            ));
        }
        if function.launch.cluster > 1 {
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                sys::CUlaunchAttributeValue {
                    clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                        x: function.launch.cluster as u32,
                        y: 1,
                        z: 1,
                    },
                },
            ));
        }
        let config = sys::CUlaunchConfig {
            gridDimX: blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: function.launch.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: function.launch.shared_bytes as u32,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut params = [(&raw mut args).cast::<c_void>()];
        // SAFETY: the caller's promise.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(&config, function.raw, params.as_mut_ptr(), ptr::null_mut())
        })
    }
}

/// Whether PTX has a kernel of this name.
fn has_entry(ptx: &str, kernel: &str) -> bool {
    ptx.contains(&format!(".entry {kernel}("))
}

/// Most dynamic shared memory of a block, in bytes.
fn shared_bytes(device: Device) -> Result<usize, CudaError> {
    let mut bytes = 0;
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    // SAFETY: writes an `int`.
    check("cuDeviceGetAttribute", unsafe {
        sys::cuDeviceGetAttribute(&mut bytes, attribute, device.as_raw())
    })?;
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::Family;

    #[test]
    fn ptx_tells_its_family() {
        for family in [Family::Hopper, Family::Portable] {
            assert_eq!(Family::of_ptx(family.ptx()), family);
        }
    }
}
