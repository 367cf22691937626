use std::ptr;

use cudarc::driver::sys;

use super::{driver::check, error::GpuError, stream::Stream};

/// Launches of a stream as a CUDA graph: recorded once, replayed with one call.
#[derive(Debug)]
pub struct Graph {
    stream: Stream,
    graph: sys::CUgraph,
    replay: sys::CUgraphExec,
}

// SAFETY: the driver lets any thread use a graph, one at a time: it is not `Sync`.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `launch` launches on `stream`, without running it. Kernels are loaded before, as when the same was
    /// launched once, and nothing may wait for the stream meanwhile.
    ///
    /// # Errors
    /// Those of `launch`, and [`GpuError::Driver`].
    pub fn record<E: From<GpuError>>(
        stream: &Stream,
        launch: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let mut this = Self {
            stream: stream.clone(),
            graph: ptr::null_mut(),
            replay: ptr::null_mut(),
        };
        let _current = stream.device().enter()?;
        let raw = stream.raw().cast();
        // SAFETY: a live stream; the calls write the handles, which `drop` destroys.
        unsafe {
            check(
                "cuStreamBeginCapture",
                sys::cuStreamBeginCapture_v2(raw, mode),
            )?;
            let launched = launch();
            let ended = check(
                "cuStreamEndCapture",
                sys::cuStreamEndCapture(raw, &mut this.graph),
            );
            launched?;
            ended?;
            check(
                "cuGraphInstantiate",
                sys::cuGraphInstantiateWithFlags(&mut this.replay, this.graph, 0),
            )?;
        }
        Ok(this)
    }

    /// The stream on which it was recorded and is replayed.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Launches all of it, behind what was launched on the stream before. The call returns at once.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    ///
    /// # Safety
    /// What the launches use is there until they have run, as launching them asks.
    pub unsafe fn replay(&self) -> Result<(), GpuError> {
        let _current = self.stream.device().enter()?;
        // SAFETY: stream and graph live.
        check("cuGraphLaunch", unsafe {
            sys::cuGraphLaunch(self.replay, self.stream.raw().cast())
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let Ok(_current) = self.stream.device().enter() else {
            return;
        };
        // SAFETY: destroyed once; the driver keeps what still runs. Nothing can be done about an error.
        unsafe {
            if !self.replay.is_null() {
                let _ = sys::cuGraphExecDestroy(self.replay);
            }
            if !self.graph.is_null() {
                let _ = sys::cuGraphDestroy(self.graph);
            }
        }
    }
}
