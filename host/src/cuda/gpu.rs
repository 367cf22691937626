use std::{collections::HashMap, ffi::c_void, ptr};

use cudarc::driver::sys;
use cust::{
    context::Context,
    device::{Device, DeviceAttribute},
    module::{Module, ModuleJitOption},
};
use zipserv_gpu::launch::{KERNELS, Launch};

use super::{CudaError, RawStream, check};

/// Which build of the kernels a device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// sm_90a: bulk copies, `wgmma`.
    Hopper,
    /// sm_80 and later: `cp.async`, `mma.sync`.
    Portable,
}

/// A device with its kernels loaded.
///
/// It holds the device's primary context, the one that the CUDA runtime, cuBLAS, cudarc and
/// candle use.
pub struct Gpu {
    functions: HashMap<&'static str, Function>,
    _module: Module,
    _context: Context,
    device: Device,
    family: Family,
    multiprocessors: u32,
}

#[derive(Clone, Copy)]
struct Function {
    raw: sys::CUfunction,
    launch: &'static Launch,
}

impl Gpu {
    /// Opens device `ordinal` with the best kernels it can run.
    ///
    /// # Errors
    /// [`CudaError`] when there is no such device, or no kernel for it.
    pub fn new(ordinal: u32) -> Result<Self, CudaError> {
        Self::open(ordinal, None)
    }

    /// Opens device `ordinal` with the kernels of `family`.
    ///
    /// # Errors
    /// As [`Gpu::new`]; loading fails when the device cannot run the family.
    pub fn with_family(ordinal: u32, family: Family) -> Result<Self, CudaError> {
        Self::open(ordinal, Some(family))
    }

    fn open(ordinal: u32, family: Option<Family>) -> Result<Self, CudaError> {
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
        let family = family.unwrap_or(match (major, minor) {
            (9, 0) => Family::Hopper,
            _ => Family::Portable,
        });
        let ptx = match family {
            Family::Hopper => include_str!("../../../gpu/ptx/zipserv_sm_90a.ptx"),
            Family::Portable => include_str!("../../../gpu/ptx/zipserv_sm_80.ptx"),
        };
        let env = std::env::var("ZIPSERV_PTX")
            .ok()
            .map(|p| std::fs::read_to_string(p).unwrap());
        let ptx = env.as_deref().unwrap_or(ptx);
        let module = Module::from_ptx(ptx, &[ModuleJitOption::MaxRegisters(255)])?;
        let mut functions = HashMap::new();
        for launch in KERNELS {
            let Ok(function) = module.get_function(launch.name) else {
                continue;
            };
            let raw: sys::CUfunction = function.to_raw().cast();
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a live module.
            check("cuFuncSetAttribute", unsafe {
                sys::cuFuncSetAttribute(raw, attribute, launch.shared_bytes as i32)
            })?;
            functions.insert(launch.name, Function { raw, launch });
        }
        Ok(Self {
            functions,
            _module: module,
            _context: context,
            device,
            family,
            multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)? as u32,
        })
    }

    /// The device's name.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn name(&self) -> Result<String, CudaError> {
        Ok(self.device.name()?)
    }

    /// Which kernels are loaded.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Multiprocessors of the device.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Whether the family has a kernel of this name.
    pub fn has(&self, kernel: &str) -> bool {
        self.functions.contains_key(kernel)
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
        let function = self
            .functions
            .get(kernel)
            .ok_or_else(|| CudaError::Argument(format!("no kernel {kernel} for this device")))?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: function.launch.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: function.launch.shared_bytes as u32,
            hStream: stream,
            attrs: &raw mut attribute,
            numAttrs: u32::from(dependent),
        };
        let mut params = [(&raw mut args).cast::<c_void>()];
        // SAFETY: the caller's promise.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(&config, function.raw, params.as_mut_ptr(), ptr::null_mut())
        })
    }
}
