use std::ptr;

use cudarc::driver::sys;

use crate::cuda::{CudaError, RawStream, check};

/// Times launches by replaying them as a CUDA graph.
pub struct Timer {
    stream: RawStream,
    start: sys::CUevent,
    end: sys::CUevent,
}

impl Timer {
    /// A timer on `stream` of the current context.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn new(stream: RawStream) -> Result<Self, CudaError> {
        let event = || {
            let mut event = ptr::null_mut();
            // SAFETY: writes the new event.
            check("cuEventCreate", unsafe {
                sys::cuEventCreate(&mut event, 0)
            })?;
            Ok::<_, CudaError>(event)
        };
        Ok(Self {
            stream,
            start: event()?,
            end: event()?,
        })
    }

    /// Median microseconds of one of the `launches` that `record` puts on the stream, over
    /// `replays` replays.
    ///
    /// # Errors
    /// [`CudaError`] from the driver or from `record`.
    pub fn median(
        &self,
        launches: usize,
        replays: usize,
        mut record: impl FnMut() -> Result<(), CudaError>,
    ) -> Result<f64, CudaError> {
        let (mut graph, mut replay) = (ptr::null_mut(), ptr::null_mut());
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream and the events live as long as `self`; the graph is destroyed once,
        // after the stream is idle.
        unsafe {
            check(
                "cuStreamBeginCapture",
                sys::cuStreamBeginCapture_v2(self.stream, mode),
            )?;
            let recorded = record();
            check(
                "cuStreamEndCapture",
                sys::cuStreamEndCapture(self.stream, &mut graph),
            )?;
            recorded?;
            check(
                "cuGraphInstantiate",
                sys::cuGraphInstantiateWithFlags(&mut replay, graph, 0),
            )?;
            let mut times = Vec::with_capacity(replays);
            for i in 0..replays + 2 {
                check("cuEventRecord", sys::cuEventRecord(self.start, self.stream))?;
                check("cuGraphLaunch", sys::cuGraphLaunch(replay, self.stream))?;
                check("cuEventRecord", sys::cuEventRecord(self.end, self.stream))?;
                check("cuEventSynchronize", sys::cuEventSynchronize(self.end))?;
                let mut milliseconds = 0.0;
                check(
                    "cuEventElapsedTime",
                    sys::cuEventElapsedTime_v2(&mut milliseconds, self.start, self.end),
                )?;
                // The first replays warm up.
                if i >= 2 {
                    times.push(f64::from(milliseconds) * 1e3 / launches as f64);
                }
            }
            check("cuGraphExecDestroy", sys::cuGraphExecDestroy(replay))?;
            check("cuGraphDestroy", sys::cuGraphDestroy(graph))?;
            times.sort_by(f64::total_cmp);
            Ok(times[times.len() / 2])
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe {
            let _ = sys::cuEventDestroy_v2(self.start);
            let _ = sys::cuEventDestroy_v2(self.end);
        }
    }
}
