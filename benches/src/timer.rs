use std::{
    marker::PhantomData,
    ptr,
    time::{Duration, Instant},
};

use cudarc::driver::sys;
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use zipserv::gpu::{GpuError, Graph, Stream};

use super::driver::check;

/// Times launches by replaying them as CUDA graphs.
pub struct Timer {
    stream: Stream,
    start: sys::CUevent,
    end: sys::CUevent,
}

// SAFETY: the driver lets any thread use any event.
unsafe impl Send for Timer {}

/// Launches that were recorded as a CUDA graph. It borrows what they use.
pub struct Recording<'a> {
    graph: Graph,
    launches: usize,
    operands: PhantomData<&'a ()>,
}

impl Timer {
    /// A timer on `stream`.
    ///
    /// # Errors
    /// [`GpuError::Driver`].
    pub fn new(stream: &Stream) -> Result<Self, GpuError> {
        let _current = stream.device().enter()?;
        let event = || {
            let mut event = ptr::null_mut();
            // SAFETY: writes the new event.
            check("cuEventCreate", unsafe {
                sys::cuEventCreate(&mut event, 0)
            })?;
            Ok::<_, GpuError>(event)
        };
        Ok(Self {
            stream: stream.clone(),
            start: event()?,
            end: event()?,
        })
    }

    /// Records the `launches` that `record` puts on the stream. None of them runs yet. What
    /// `record` borrows, and so the memory that the launches use, is borrowed by the recording.
    ///
    /// # Errors
    /// [`GpuError::Driver`], and what `record` fails with.
    ///
    /// # Safety
    /// What the launches use is there, as launching them asks, until the last replay: what `record`
    /// borrows is, but not what it owns, or what others may take away.
    pub unsafe fn record<'a>(
        &self,
        launches: usize,
        record: impl FnOnce() -> Result<(), GpuError> + 'a,
    ) -> Result<Recording<'a>, GpuError> {
        Ok(Recording {
            graph: Graph::record(&self.stream, record)?,
            launches,
            operands: PhantomData,
        })
    }

    /// Replays a recording once, and gives the microseconds of one of its launches.
    ///
    /// # Errors
    /// [`GpuError`] from the driver.
    pub fn replay(&self, recording: &Recording) -> Result<f64, GpuError> {
        let mut milliseconds = 0.0;
        let _current = self.stream.device().enter()?;
        // Recordings of two PTX files are on a stream each.
        let stream = recording.graph.stream().raw().cast();
        // SAFETY: stream and events live, and what the launches use does, as whoever recorded them has promised.
        unsafe {
            check("cuEventRecord", sys::cuEventRecord(self.start, stream))?;
            recording.graph.replay()?;
            check("cuEventRecord", sys::cuEventRecord(self.end, stream))?;
            check("cuEventSynchronize", sys::cuEventSynchronize(self.end))?;
            check(
                "cuEventElapsedTime",
                sys::cuEventElapsedTime_v2(&mut milliseconds, self.start, self.end),
            )?;
        }
        Ok(f64::from(milliseconds) * 1e3 / recording.launches as f64)
    }

    /// Median microseconds of a launch of each recording, over `rounds` rounds in which each is
    /// replayed once: what slows the device down slows all of them. Each round has an order of its own,
    /// for clocks follow the power of what ran before. Two rounds more warm up.
    ///
    /// # Errors
    /// [`GpuError`] from the driver.
    pub fn medians(&self, recordings: &[Recording], rounds: usize) -> Result<Vec<f64>, GpuError> {
        let times = self.rounds(recordings, rounds)?;
        Ok(times.into_iter().map(median).collect())
    }

    /// The microseconds that [`medians`](Self::medians) takes the medians of: those of each recording,
    /// round by round.
    ///
    /// # Errors
    /// [`GpuError`] from the driver.
    pub fn rounds(
        &self,
        recordings: &[Recording],
        rounds: usize,
    ) -> Result<Vec<Vec<f64>>, GpuError> {
        const WARM_UP: usize = 2;
        let mut times = vec![Vec::with_capacity(rounds); recordings.len()];
        let mut order: Vec<usize> = (0..recordings.len()).collect();
        let mut rng = SmallRng::seed_from_u64(0);
        for round in 0..rounds + WARM_UP {
            order.shuffle(&mut rng);
            for &index in &order {
                let time = self.replay(&recordings[index])?;
                if round >= WARM_UP {
                    times[index].push(time);
                }
            }
        }
        Ok(times)
    }

    /// Median microseconds of a launch of each recording while nothing else runs: one after the other
    /// is replayed for `duration`, and the second half of that counts. So each has a clock that
    /// follows its own power, as far as the duration suffices for that.
    ///
    /// # Errors
    /// [`GpuError`] from the driver.
    pub fn sustained(
        &self,
        recordings: &[Recording],
        duration: Duration,
    ) -> Result<Vec<f64>, GpuError> {
        let sustained = |recording| {
            let mut times = Vec::new();
            let start = Instant::now();
            while start.elapsed() < duration {
                let time = self.replay(recording)?;
                // The last replay ends in the second half, however long it takes.
                if start.elapsed() >= duration / 2 {
                    times.push(time);
                }
            }
            Ok(median(times))
        };
        recordings.iter().map(sustained).collect()
    }
}

/// The median, of an even number the upper one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
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

impl Recording<'_> {
    /// How many launches it holds.
    pub fn launches(&self) -> usize {
        self.launches
    }
}
