//! Buffers and streams of [cust](https://docs.rs/cust), lent to the calls of [this crate](super).
//!
//! They are `unsafe`: cust's slices are `Copy` and have no lifetime, so neither that memory is still
//! there, nor that nothing else writes it, follows from a borrow.
//!
//! ```no_run
//! use cust::{memory::DeviceBuffer, stream::{Stream, StreamFlags}};
//! use half::bf16;
//! use zipserv::gpu::{self, Device, Linear, Workspace};
//!
//! # fn forward(device: &Device, layer: &Linear, n: usize) -> Result<(), Box<dyn std::error::Error>> {
//! let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
//! let x = DeviceBuffer::from_slice(&vec![0u16; n * layer.weights().cols()])?;
//! let mut y = DeviceBuffer::from_slice(&vec![0u16; n * layer.weights().rows()])?;
//! let mut workspace = Workspace::new(device)?;
//! // SAFETY: stream and buffers live until the wait, and nothing else uses the outputs.
//! unsafe {
//!     let stream = gpu::cust::stream(device, &stream)?;
//!     let (x, y) = (gpu::cust::view::<u16, bf16>(device, &x), gpu::cust::view_mut::<u16, bf16>(device, &mut y));
//!     layer.forward(&stream, x, n, y, &mut workspace)?;
//!     stream.synchronize()?;
//! }
//! # Ok(())
//! # }
//! ```

use bytemuck::Pod;
use cust::{
    memory::{DeviceCopy, DeviceSlice},
    stream,
};

use super::{
    buffer::{View, ViewMut},
    device::Device,
    error::GpuError,
    stream::Stream,
};

/// A stream of cust's.
///
/// # Errors
/// [`GpuError::Context`] when it is not of the primary context of `device`.
///
/// # Safety
/// As [`Stream::from_raw`].
pub unsafe fn stream(device: &Device, stream: &stream::Stream) -> Result<Stream, GpuError> {
    // SAFETY: the caller's promise.
    unsafe { Stream::from_raw(device, stream.as_inner().cast()) }
}

/// A slice of cust's, to read, of a type that is as large as another: BF16 for their bits.
///
/// # Panics
/// When the types differ in size.
///
/// # Safety
/// The slice is in memory of the primary context of `device`. As long as kernels that use the view
/// run, it is there and nothing writes it.
pub unsafe fn view<'a, T: DeviceCopy, U: Pod>(
    device: &'a Device,
    slice: &'a DeviceSlice<T>,
) -> View<'a, U> {
    assert_eq!(size_of::<T>(), size_of::<U>(), "bits of another type");
    // SAFETY: the caller's promise.
    unsafe { View::from_raw(device, slice.as_device_ptr().as_raw(), slice.len()) }
}

/// A slice of cust's, to write, of a type that is as large as another.
///
/// # Panics
/// When the types differ in size.
///
/// # Safety
/// As [`view`]; nothing else reads it meanwhile.
pub unsafe fn view_mut<'a, T: DeviceCopy, U: Pod>(
    device: &'a Device,
    slice: &'a mut DeviceSlice<T>,
) -> ViewMut<'a, U> {
    assert_eq!(size_of::<T>(), size_of::<U>(), "bits of another type");
    // SAFETY: the caller's promise.
    unsafe { ViewMut::from_raw(device, slice.as_device_ptr().as_raw(), slice.len()) }
}
