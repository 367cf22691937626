//! Sums over several devices of one process, by NVIDIA's [NCCL](https://docs.nvidia.com/deeplearning/nccl), loaded when
//! it is first used.
//!
//! Its kernels are plain launches on a rank's own stream: each waits for all before it there, and what follows starts
//! after it has ended. They can be captured into a graph.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
    sync::OnceLock,
};

use zipserv::gpu::{Buffer, Device, Stream};

use crate::{Error, Result};

/// `ncclComm_t`.
type Handle = *mut c_void;

/// Functions of `nccl.h`, whose results are an `ncclResult_t`.
struct Library {
    init_all: unsafe extern "C" fn(*mut Handle, c_int, *const c_int) -> c_int,
    all_reduce: AllReduce,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    /// It is never unloaded.
    _library: libloading::Library,
}

/// From, to, count, type, operation, communicator, stream.
type AllReduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    Handle,
    *mut c_void,
) -> c_int;

/// What is made of all ranks' values, with its type: numbers of `nccl.h`.
#[derive(Clone, Copy)]
pub enum Reduction {
    /// Sums of FP32.
    SumF32,
    /// The largest of 64 bits without a sign.
    MaxU64,
}

impl Reduction {
    fn numbers(self) -> (c_int, c_int) {
        match self {
            Self::SumF32 => (7, 0),
            Self::MaxU64 => (5, 2),
        }
    }
}

/// One rank's part in what all ranks do together.
pub struct Communicator {
    library: &'static Library,
    /// Null after an abort.
    handle: Handle,
    device: Device,
}

// SAFETY: any thread may use a communicator, one at a time.
unsafe impl Send for Communicator {}

impl Library {
    fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        // SAFETY: loading NVIDIA's library; the types are those of `nccl.h`.
        let library = LIBRARY.get_or_init(|| unsafe { Self::load() });
        library.as_ref().ok_or(Error::NoNccl)
    }

    /// # Safety
    /// The library of this name is NCCL.
    unsafe fn load() -> Option<Self> {
        let mut names = ["libnccl.so.2", "libnccl.so"].into_iter();
        // SAFETY: the caller's promise.
        unsafe {
            let library = names.find_map(|name| libloading::Library::new(name).ok())?;
            Some(Self {
                init_all: *library.get("ncclCommInitAll").ok()?,
                all_reduce: *library.get("ncclAllReduce").ok()?,
                destroy: *library.get("ncclCommDestroy").ok()?,
                abort: *library.get("ncclCommAbort").ok()?,
                error: *library.get("ncclGetErrorString").ok()?,
                _library: library,
            })
        }
    }

    fn check(&self, call: &'static str, result: c_int) -> Result<()> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: the call gives a static text for any number.
        let text = unsafe { CStr::from_ptr((self.error)(result)) };
        let reason = text.to_string_lossy().into_owned();
        Err(Error::Nccl { call, reason })
    }
}

impl Communicator {
    /// One for each of these devices, in their order.
    ///
    /// # Errors
    /// [`Error::NoNccl`], [`Error::Nccl`].
    pub fn all(devices: &[Device]) -> Result<Vec<Self>> {
        let library = Library::get()?;
        let numbers: Vec<_> = devices.iter().map(|d| d.ordinal() as c_int).collect();
        let mut handles = vec![ptr::null_mut(); devices.len()];
        // SAFETY: there is a place for each handle, and devices are numbered as the driver does.
        let made = unsafe {
            (library.init_all)(
                handles.as_mut_ptr(),
                numbers.len() as c_int,
                numbers.as_ptr(),
            )
        };
        library.check("ncclCommInitAll", made)?;
        let all = handles.into_iter().zip(devices);
        Ok(all
            .map(|(handle, device)| Self {
                library,
                handle,
                device: device.clone(),
            })
            .collect())
    }

    /// Sums as many zeros as one of `counts` says, so that what is connected and allocated for it is there.
    ///
    /// # Errors
    /// Those of [`reduce`](Self::reduce).
    pub fn connect(&self, stream: &Stream, counts: &[usize]) -> Result<()> {
        let most = counts.iter().copied().max().unwrap_or(0);
        let zeros = Buffer::<f32>::zeroed(&self.device, most)?;
        for &count in counts {
            // SAFETY: so many are there until they have been waited for.
            unsafe { self.reduce(stream, zeros.address(), count, Reduction::SumF32)? };
        }
        Ok(stream.synchronize()?)
    }

    /// Puts at `address` what all ranks, which all call this with the same count, have there together. The call returns
    /// at once.
    ///
    /// # Errors
    /// [`Error::Nccl`]; [`Error::OtherDevice`] after an [abort](Self::abort).
    ///
    /// # Safety
    /// The stream is of the communicator's device. When the kernel runs, `count` values of the type are there.
    pub unsafe fn reduce(
        &self,
        stream: &Stream,
        address: u64,
        count: usize,
        reduction: Reduction,
    ) -> Result<()> {
        let call = "ncclAllReduce";
        if self.handle.is_null() {
            return Err(Error::OtherDevice);
        }
        let (of, operation) = reduction.numbers();
        let _current = self.device.enter()?;
        // SAFETY: the communicator lives; the rest is the caller's promise.
        let reduced = unsafe {
            (self.library.all_reduce)(
                address as *const c_void,
                address as *mut c_void,
                count,
                of,
                operation,
                self.handle,
                stream.raw(),
            )
        };
        self.library.check(call, reduced)
    }

    /// Ends kernels that wait for another rank, which has failed.
    pub fn abort(&mut self) {
        self.end(self.library.abort);
    }

    fn end(&mut self, how: unsafe extern "C" fn(Handle) -> c_int) {
        let handle = std::mem::replace(&mut self.handle, ptr::null_mut());
        if !handle.is_null() {
            // SAFETY: it is ended once. Nothing can be done about an error.
            let _ = unsafe { how(handle) };
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.end(self.library.destroy);
    }
}
