use std::{ptr, sync::Arc};

use cudarc::driver::sys;

use super::{
    device::Device,
    driver::{RawStream, check},
    error::{GpuError, Operand},
};

/// A stream of a device: what is launched on it runs in order, and waits for no other stream.
///
/// Clones are the same stream. It keeps the device alive; when the last clone goes, and with it the
/// last [`Workspace`](super::Workspace) that serves it, it is waited for.
#[derive(Clone, Debug)]
pub struct Stream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: Device,
    raw: sys::CUstream,
    /// Whether it is destroyed in the end.
    owned: bool,
}

// SAFETY: the driver lets any thread use any stream.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// The handle that stands for another stream in each thread, `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

impl Stream {
    /// A new stream, which does not wait for the legacy default stream (`CU_STREAM_NON_BLOCKING`).
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn new(device: &Device) -> Result<Self, GpuError> {
        let _current = device.enter()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the new stream.
        check("cuStreamCreate", unsafe {
            sys::cuStreamCreate(&mut raw, flags)
        })?;
        Ok(Self::from(device, raw, true))
    }

    /// A stream of the caller's own, as cudarc, candle and PyTorch hold it. It is never destroyed.
    ///
    /// # Errors
    /// [`GpuError::Context`] when it is not of the context of `device`; [`GpuError::ThreadStream`] for
    /// the default stream of each thread.
    ///
    /// # Safety
    /// The stream lives longer than all clones of this one, and than all that uses them. A graph that
    /// is captured from it is not launched after anything is gone that it uses.
    pub unsafe fn from_raw(device: &Device, raw: RawStream) -> Result<Self, GpuError> {
        let raw: sys::CUstream = raw.cast();
        if raw as usize == PER_THREAD {
            return Err(GpuError::ThreadStream);
        }
        let _current = device.enter()?;
        let mut context = ptr::null_mut();
        // SAFETY: a live stream, says the caller; writes the context.
        check("cuStreamGetCtx", unsafe {
            sys::cuStreamGetCtx(raw, &mut context)
        })?;
        if !device.is_context(context) {
            let operand = Operand::Stream;
            return Err(GpuError::Context { operand });
        }
        Ok(Self::from(device, raw, false))
    }

    fn from(device: &Device, raw: sys::CUstream, owned: bool) -> Self {
        let device = device.clone();
        Self(Arc::new(Inner { device, raw, owned }))
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The driver's handle, for as long as a clone lives.
    pub fn raw(&self) -> RawStream {
        self.0.raw.cast()
    }

    /// Waits until all that was launched has run.
    ///
    /// # Errors
    /// [`GpuError::Driver`], also for what went wrong in a kernel.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        synchronize(self.device(), self.0.raw)
    }

    /// Whether all that was launched has run.
    ///
    /// # Errors
    /// As [`synchronize`](Self::synchronize).
    pub fn is_idle(&self) -> Result<bool, GpuError> {
        let _current = self.device().enter()?;
        // SAFETY: a live stream.
        match unsafe { sys::cuStreamQuery(self.0.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => check("cuStreamQuery", status).map(|()| true),
        }
    }

    /// Whether launches on it are recorded as a graph at present.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn is_capturing(&self) -> Result<bool, GpuError> {
        // SAFETY: the stream lives.
        unsafe { is_capturing(self.device(), self.raw()) }
    }

    /// Whether both are the same stream of the driver.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.raw == other.0.raw && self.device().shares_context(other.device())
    }
}

/// Waits for a stream of a device.
pub(super) fn synchronize(device: &Device, stream: sys::CUstream) -> Result<(), GpuError> {
    let _current = device.enter()?;
    // SAFETY: a live stream.
    check("cuStreamSynchronize", unsafe {
        sys::cuStreamSynchronize(stream)
    })
}

/// Whether launches on a stream of a device are recorded as a graph at present.
///
/// # Safety
/// The stream lives.
pub(super) unsafe fn is_capturing(device: &Device, stream: RawStream) -> Result<bool, GpuError> {
    use sys::CUstreamCaptureStatus as Status;
    let _current = device.enter()?;
    let mut status = Status::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: a live stream; writes the status.
    check("cuStreamIsCapturing", unsafe {
        sys::cuStreamIsCapturing(stream.cast(), &mut status)
    })?;
    Ok(status != Status::CU_STREAM_CAPTURE_STATUS_NONE)
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let Ok(_current) = self.device.enter() else {
            return;
        };
        // Destroying it would not wait, and what it runs uses kernels of the device.
        // SAFETY: destroyed once. Nothing can be done about an error.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.raw);
            let _ = sys::cuStreamDestroy_v2(self.raw);
        }
    }
}
