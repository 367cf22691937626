use std::borrow::Cow;

use zipserv_gpu::launch::Launch;

use super::{
    buffer::same_context,
    device::Device,
    error::{GpuError, Operand},
    family::Family,
    kernels::{Kernel, Kernels},
    stream::Stream,
};

/// Kernels of one's own for a device, of PTX as `cargo run -p builder` writes it; `docs/KERNELS.md`
/// makes one. Each is loaded when it is first launched; all are unloaded when this goes, which waits
/// for what was launched on the device.
pub struct CustomKernels {
    device: Device,
    kernels: Kernels,
}

impl CustomKernels {
    /// Those of `ptx` that have one of the `launches`, by name.
    pub fn new(
        device: &Device,
        ptx: impl Into<Cow<'static, str>>,
        launches: &'static [Launch],
    ) -> Self {
        Self {
            device: device.clone(),
            kernels: Kernels::with_launches(ptx.into(), launches),
        }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Blocks of a kernel that the device holds at a time, no more than its launch is made for: as
    /// many may wait for one another. It loads the kernel.
    ///
    /// # Errors
    /// [`GpuError::NoKernel`], [`GpuError::Load`] and [`GpuError::Driver`].
    pub fn resident_blocks(&self, kernel: &str) -> Result<u32, GpuError> {
        Ok(self.load(kernel)?.resident_blocks(self.device.sms()))
    }

    fn load(&self, kernel: &str) -> Result<Kernel, GpuError> {
        match self.kernels.loaded(kernel)? {
            Some(kernel) => Ok(kernel),
            None => {
                let _relaxed = self.device.enter_relaxed()?;
                self.kernels.load(kernel)
            }
        }
    }

    /// Launches a kernel over `blocks` blocks of its threads and shared memory, with its one
    /// parameter. It starts when all before it in the stream has run.
    ///
    /// # Errors
    /// [`GpuError::NoKernel`] when there is none of this name, [`GpuError::Context`] for another
    /// device's stream; [`GpuError::Load`] and [`GpuError::Driver`].
    ///
    /// # Safety
    /// The kernel takes a parameter of this type. What it reads and writes is there when it runs, in
    /// memory of the device's context, and no other kernel writes it meanwhile.
    pub unsafe fn launch<T: Copy>(
        &self,
        stream: &Stream,
        kernel: &str,
        blocks: u32,
        args: T,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        unsafe { self.run(stream, self.load(kernel)?, blocks, false, args) }
    }

    /// [`launch`](Self::launch), but on Hopper it may start as soon as the kernel ahead lets it (programmatic dependent
    /// launch).
    ///
    /// # Errors
    /// As that.
    ///
    /// # Safety
    /// As that; and the kernel waits (`griddepcontrol.wait`) before it reads what any kernel ahead writes, or writes.
    pub unsafe fn launch_dependent<T: Copy>(
        &self,
        stream: &Stream,
        kernel: &str,
        blocks: u32,
        args: T,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise.
        unsafe { self.run(stream, self.load(kernel)?, blocks, self.is_pdl(), args) }
    }

    /// [`launch_dependent`](Self::launch_dependent) with so many bytes of shared memory a block, no more than its launch
    /// has: what a block does not take is there for one of another kernel.
    ///
    /// # Errors
    /// As that.
    ///
    /// # Safety
    /// As that; and the kernel needs no more.
    pub unsafe fn launch_dependent_with<T: Copy>(
        &self,
        stream: &Stream,
        kernel: &str,
        blocks: u32,
        shared_bytes: usize,
        args: T,
    ) -> Result<(), GpuError> {
        let kernel = self.load(kernel)?.with_shared_bytes(shared_bytes);
        // SAFETY: the caller's promise.
        unsafe { self.run(stream, kernel, blocks, self.is_pdl(), args) }
    }

    fn is_pdl(&self) -> bool {
        self.device.family() == Family::Hopper
    }

    unsafe fn run<T: Copy>(
        &self,
        stream: &Stream,
        kernel: Kernel,
        blocks: u32,
        pdl: bool,
        args: T,
    ) -> Result<(), GpuError> {
        same_context(&self.device, stream.device(), Operand::Stream)?;
        let _current = self.device.enter()?;
        // SAFETY: the caller's promise.
        unsafe { kernel.launch(blocks, stream.raw(), pdl, args) }
    }
}

impl Drop for CustomKernels {
    fn drop(&mut self) {
        if let (Ok(_current), Ok(())) = (self.device.enter(), self.device.synchronize()) {
            // SAFETY: all that was launched has run, and nothing can be launched any more.
            unsafe { self.kernels.unload() };
        }
    }
}
