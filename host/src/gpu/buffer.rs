use std::{
    fmt,
    marker::PhantomData,
    ops::{Bound, Range, RangeBounds},
};

use bytemuck::Pod;
use cudarc::driver::sys;

use super::{
    device::Device,
    driver::check,
    error::{GpuError, Need, Operand},
    stream::{Stream, synchronize},
};

/// Values in the memory of a device.
///
/// It keeps the device alive. Memory of its own is freed when it goes, which waits for all that was
/// launched before (`cuMemFree` does); memory of the caller's is [borrowed](Self::borrowed).
///
/// Calls return before their kernels have run, so the borrow of an output ends earlier than the
/// writing: read it through the same stream, or after waiting for that. Otherwise the values are
/// old or new ones, in any mixture, which no type here minds.
pub struct Buffer<T> {
    device: Device,
    address: u64,
    len: usize,
    owned: bool,
    values: PhantomData<fn() -> T>,
}

/// Part of a [`Buffer`], to read.
pub struct View<'a, T> {
    device: &'a Device,
    address: u64,
    len: usize,
    values: PhantomData<&'a [T]>,
}

/// Part of a [`Buffer`], to write.
pub struct ViewMut<'a, T> {
    view: View<'a, T>,
    alone: PhantomData<&'a mut [T]>,
}

impl<T: Pod> Buffer<T> {
    /// A copy of `values`, there when the call returns.
    ///
    /// # Errors
    /// [`GpuError::Driver`], also when memory is short.
    pub fn from_slice(device: &Device, values: &[T]) -> Result<Self, GpuError> {
        let buffer = Self::uninitialized(device, values.len())?;
        // SAFETY: the length is right.
        unsafe { write(device, buffer.address, values)? };
        Ok(buffer)
    }

    /// So many values of zero bits, there when the call returns.
    ///
    /// # Errors
    /// As [`from_slice`](Self::from_slice).
    pub fn zeroed(device: &Device, len: usize) -> Result<Self, GpuError> {
        let buffer = Self::uninitialized(device, len)?;
        if buffer.len > 0 {
            let _current = device.enter()?;
            // SAFETY: the length is right.
            check("cuMemsetD8Async", unsafe {
                sys::cuMemsetD8Async(buffer.address, 0, buffer.bytes(), device.copies())
            })?;
            synchronize(device, device.copies())?;
        }
        Ok(buffer)
    }

    /// Room for so many values, which hold whatever the memory held.
    ///
    /// # Errors
    /// As [`from_slice`](Self::from_slice); [`GpuError::Length`] when there can be no such memory.
    pub fn uninitialized(device: &Device, len: usize) -> Result<Self, GpuError> {
        let Some(bytes) = len.checked_mul(size_of::<T>()) else {
            return Err(GpuError::Length {
                operand: Operand::Data,
                expected: Need::Overflow,
                got: len,
            });
        };
        let mut address = 0;
        if bytes > 0 {
            let _relaxed = device.enter_relaxed()?;
            // SAFETY: writes the address.
            check("cuMemAlloc", unsafe {
                sys::cuMemAlloc_v2(&mut address, bytes)
            })?;
        }
        Ok(Self {
            device: device.clone(),
            address,
            len,
            owned: true,
            values: PhantomData,
        })
    }

    /// The caller's memory, which is not freed.
    ///
    /// # Safety
    /// At `address`, aligned to the type, there are `len` values in memory of the context of
    /// `device`, as long as the buffer lives and kernels that use it run. Nothing else writes them
    /// meanwhile, and nothing else reads them while the buffer is borrowed for writing.
    pub unsafe fn borrowed(device: &Device, address: u64, len: usize) -> Self {
        Self {
            device: device.clone(),
            address,
            len,
            owned: false,
            values: PhantomData,
        }
    }

    /// Copies `values` to it, after what was launched on `stream`, and waits for that.
    ///
    /// # Errors
    /// [`GpuError::Length`] for another number of values; [`GpuError::Context`] for another
    /// context's stream; [`GpuError::Driver`].
    pub fn copy_from_slice(&mut self, stream: &Stream, values: &[T]) -> Result<(), GpuError> {
        self.slice_mut(..).copy_from_slice(stream, values)
    }

    /// Copies another buffer's values to it, after what was launched on `stream`. The call returns at
    /// once.
    ///
    /// # Errors
    /// As [`copy_from_slice`](Self::copy_from_slice).
    pub fn copy_from<'a>(
        &mut self,
        stream: &Stream,
        values: impl Into<View<'a, T>>,
    ) -> Result<(), GpuError>
    where
        T: 'a,
    {
        let values = values.into();
        check_len(Operand::Data, Need::Exactly(self.len), values.len)?;
        same_context(&self.device, stream.device(), Operand::Stream)?;
        same_context(&self.device, values.device, Operand::Data)?;
        if values.len == 0 {
            return Ok(());
        }
        let _current = self.device.enter()?;
        // SAFETY: lengths are right.
        check("cuMemcpyDtoDAsync", unsafe {
            let to = stream.raw().cast();
            sys::cuMemcpyDtoDAsync_v2(self.address, values.address, self.bytes(), to)
        })
    }

    /// Its values, after what was launched on `stream`.
    ///
    /// # Errors
    /// [`GpuError::Context`] for another context's stream; [`GpuError::Driver`].
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>, GpuError> {
        self.slice(..).to_vec(stream)
    }

    /// Part of it, to read.
    ///
    /// # Panics
    /// When the range is not within the buffer.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> View<'_, T> {
        let Range { start, end } = within(range, self.len);
        View {
            device: &self.device,
            address: self.address + (start * size_of::<T>()) as u64,
            len: end - start,
            values: PhantomData,
        }
    }

    /// Part of it, to write.
    ///
    /// # Panics
    /// When the range is not within the buffer.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> ViewMut<'_, T> {
        ViewMut {
            view: self.slice(range),
            alone: PhantomData,
        }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Values that it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address on the device; 0 where there are no values.
    pub fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if !self.owned || self.address == 0 {
            return;
        }
        if let Ok(_relaxed) = self.device.enter_relaxed() {
            // SAFETY: freed once. Nothing can be done about an error.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} values at {:#x} of {:?}",
            self.len, self.address, self.device
        )
    }
}

impl<'a, T: Pod> View<'a, T> {
    /// The caller's memory.
    ///
    /// # Safety
    /// As [`Buffer::borrowed`], as long as the view lives and kernels that use it run.
    pub unsafe fn from_raw(device: &'a Device, address: u64, len: usize) -> Self {
        Self {
            device,
            address,
            len,
            values: PhantomData,
        }
    }

    /// Part of it.
    ///
    /// # Panics
    /// When the range is not within the view.
    pub fn slice(self, range: impl RangeBounds<usize>) -> Self {
        let Range { start, end } = within(range, self.len);
        Self {
            address: self.address + (start * size_of::<T>()) as u64,
            len: end - start,
            ..self
        }
    }

    /// Its values, after what was launched on `stream`.
    ///
    /// # Errors
    /// [`GpuError::Context`] for another context's stream; [`GpuError::Driver`].
    pub fn to_vec(self, stream: &Stream) -> Result<Vec<T>, GpuError> {
        same_context(self.device, stream.device(), Operand::Stream)?;
        let mut values = vec![T::zeroed(); self.len];
        if self.len == 0 {
            return Ok(values);
        }
        let _current = self.device.enter()?;
        // SAFETY: the length is right, and the host's memory lives until the wait is over.
        check("cuMemcpyDtoHAsync", unsafe {
            let (to, bytes) = (values.as_mut_ptr().cast(), size_of_val(&values[..]));
            sys::cuMemcpyDtoHAsync_v2(to, self.address, bytes, stream.raw().cast())
        })?;
        stream.synchronize()?;
        Ok(values)
    }
}

impl<T> View<'_, T> {
    /// The device.
    pub fn device(&self) -> &Device {
        self.device
    }

    /// Values that it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl<'a, T: Pod> ViewMut<'a, T> {
    /// The caller's memory.
    ///
    /// # Safety
    /// As [`View::from_raw`]; nothing else reads the memory meanwhile.
    pub unsafe fn from_raw(device: &'a Device, address: u64, len: usize) -> Self {
        Self {
            // SAFETY: the caller's promise.
            view: unsafe { View::from_raw(device, address, len) },
            alone: PhantomData,
        }
    }

    /// Copies `values` to it, after what was launched on `stream`, and waits for that.
    ///
    /// # Errors
    /// As [`Buffer::copy_from_slice`].
    pub fn copy_from_slice(self, stream: &Stream, values: &[T]) -> Result<(), GpuError> {
        let expected = Need::Exactly(self.len());
        check_len(Operand::Data, expected, values.len())?;
        same_context(self.device(), stream.device(), Operand::Stream)?;
        if values.is_empty() {
            return Ok(());
        }
        let _current = self.device().enter()?;
        // SAFETY: lengths are right, and the host's values live until the wait is over.
        check("cuMemcpyHtoDAsync", unsafe {
            let (from, bytes) = (values.as_ptr().cast(), size_of_val(values));
            sys::cuMemcpyHtoDAsync_v2(self.address(), from, bytes, stream.raw().cast())
        })?;
        stream.synchronize()
    }

    /// Two parts that do not overlap: the first `mid` values, and the others.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn split_at(self, mid: usize) -> (Self, Self) {
        let part = |view| Self {
            view,
            alone: PhantomData,
        };
        (part(self.view.slice(..mid)), part(self.view.slice(mid..)))
    }

    /// Part of it.
    ///
    /// # Panics
    /// When the range is not within the view.
    pub fn slice(self, range: impl RangeBounds<usize>) -> Self {
        Self {
            view: self.view.slice(range),
            ..self
        }
    }

    /// The device.
    pub fn device(&self) -> &'a Device {
        self.view.device
    }

    /// Values that it has.
    pub fn len(&self) -> usize {
        self.view.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.view.len == 0
    }

    /// The address on the device.
    pub fn address(&self) -> u64 {
        self.view.address
    }

    /// The same to read, as long as it is not written.
    pub fn as_view(&self) -> View<'_, T> {
        self.view
    }
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'a, T: Pod> From<&'a Buffer<T>> for View<'a, T> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        buffer.slice(..)
    }
}

impl<'a, T: Pod> From<&'a mut Buffer<T>> for ViewMut<'a, T> {
    fn from(buffer: &'a mut Buffer<T>) -> Self {
        buffer.slice_mut(..)
    }
}

/// Copies `values` to the device and waits for that, and for no stream but that for copies.
///
/// # Safety
/// There is room for them at `address`.
pub(super) unsafe fn write<T: Pod>(
    device: &Device,
    address: u64,
    values: &[T],
) -> Result<(), GpuError> {
    if values.is_empty() {
        return Ok(());
    }
    let _current = device.enter()?;
    // SAFETY: the caller's promise; the host's values live until the wait is over.
    check("cuMemcpyHtoDAsync", unsafe {
        let (from, bytes) = (values.as_ptr().cast(), size_of_val(values));
        sys::cuMemcpyHtoDAsync_v2(address, from, bytes, device.copies())
    })?;
    synchronize(device, device.copies())
}

/// An error unless both devices hold one context.
pub(super) fn same_context(
    device: &Device,
    other: &Device,
    operand: Operand,
) -> Result<(), GpuError> {
    match device.shares_context(other) {
        true => Ok(()),
        false => Err(GpuError::Context { operand }),
    }
}

/// An error unless as many values are there as are needed.
pub(super) fn check_len(operand: Operand, expected: Need, got: usize) -> Result<(), GpuError> {
    let fits = match expected {
        Need::Exactly(values) => got == values,
        Need::AtLeast(values) => got >= values,
        Need::MultipleOf(values) => got > 0 && values > 0 && got.is_multiple_of(values),
        Need::Overflow => false,
    };
    match fits {
        true => Ok(()),
        false => Err(GpuError::Length {
            operand,
            expected,
            got,
        }),
    }
}

fn within(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(
        start <= end && end <= len,
        "{start}..{end} is not within {len} values"
    );
    start..end
}
