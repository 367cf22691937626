use zipserv_gpu::args::ReadArgs;

use super::{
    buffer::{Buffer, View, same_context},
    device::Device,
    error::{GpuError, Operand},
    stream::Stream,
};

const KERNEL: &str = "read";

/// Blocks of `read` for each SM.
const BLOCKS: u32 = 2;

/// Reads memory and keeps next to nothing of it: it measures what reading costs at least.
pub struct Reader {
    sink: Buffer<u32>,
}

impl Reader {
    /// For a device.
    ///
    /// # Errors
    /// [`GpuError::NoKernel`] when the device's kernels lack it; [`GpuError::Driver`].
    pub fn new(device: &Device) -> Result<Self, GpuError> {
        let words = (BLOCKS * device.sms()) as usize * device.threads(KERNEL)?;
        device.load(KERNEL)?;
        let sink = Buffer::zeroed(device, words)?;
        Ok(Self { sink })
    }

    /// Reads `data`. Of what each thread has read, the [sink](Self::sink) has the exclusive or.
    ///
    /// # Errors
    /// [`GpuError::Alignment`] when `data` is not aligned to 16 bytes or not of whole groups of 16;
    /// [`GpuError::Context`]; [`GpuError::Driver`].
    pub fn read(&mut self, stream: &Stream, data: View<'_, u8>) -> Result<(), GpuError> {
        let device = self.sink.device();
        same_context(device, stream.device(), Operand::Stream)?;
        same_context(device, data.device(), Operand::Data)?;
        let (address, bytes) = (data.address(), data.len());
        if !address.is_multiple_of(16) || !bytes.is_multiple_of(16) {
            return Err(GpuError::Alignment {
                operand: Operand::Data,
                align: 16,
                address,
                pitch: bytes,
            });
        }
        let args = ReadArgs {
            data: address as *const u8,
            bytes: bytes as u64,
            sink: self.sink.address() as *mut u32,
        };
        let blocks = BLOCKS * device.sms();
        // SAFETY: all is there, and freed memory waits for kernels that use it.
        unsafe { device.launch(KERNEL, blocks, stream.raw(), false, args) }
    }

    /// A word for each thread.
    pub fn sink(&self) -> &Buffer<u32> {
        &self.sink
    }
}
