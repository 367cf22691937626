use std::{
    fs,
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy;

use super::{CudaError, DeviceMatrix, Gpu, MAX_TOKENS, Plan, driver, zipgemm_plan};
use crate::results::{TunedLaunch, TuningError, TuningKey, TuningTable};

/// A [`TuningTable`] of the device at hand. Nothing is read unless one is loaded:
///
/// ```no_run
/// # use zipserv::cuda::{DeviceMatrix, Gpu, Tuning, zipgemm_plan_tuned};
/// # fn plan(weights: &DeviceMatrix) -> Result<(), zipserv::cuda::CudaError> {
/// let gpu = Gpu::new(0)?;
/// let tuning = Tuning::load(&gpu, "results/tuned-h200.json")?; // or `cached`, or `from_json`
/// let plan = zipgemm_plan_tuned(&gpu, weights, 8, &tuning)?;
/// println!("{plan}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Tuning {
    table: TuningTable,
}

impl Tuning {
    /// Reads a table that `zipserv tune` wrote, such as one that is built in by `include_bytes!`.
    ///
    /// # Errors
    /// [`CudaError::Tuning`] when it is damaged, of another version, or for another device, driver
    /// or PTX than `gpu` has; [`CudaError`] from the driver.
    pub fn from_json(gpu: &Gpu, json: &[u8]) -> Result<Self, CudaError> {
        let table = TuningTable::from_json(json)?;
        table.check(&Self::key(gpu)?)?;
        for row in table.rows() {
            if row.n > MAX_TOKENS || !gpu.has(&row.launch.kernel) {
                return Err(TuningError::Damaged(format!("an impossible row: {row}")).into());
            }
        }
        Ok(Self { table })
    }

    /// Reads a file that `zipserv tune` wrote.
    ///
    /// # Errors
    /// As [`Tuning::from_json`]; [`CudaError::Tuning`] also when the file cannot be read.
    pub fn load(gpu: &Gpu, path: impl AsRef<Path>) -> Result<Self, CudaError> {
        let json = fs::read(path).map_err(TuningError::Io)?;
        Self::from_json(gpu, &json)
    }

    /// Reads what `zipserv tune` left in the [user's cache](Self::cache_path).
    ///
    /// # Errors
    /// As [`Tuning::load`].
    pub fn cached(gpu: &Gpu) -> Result<Self, CudaError> {
        Self::load(gpu, Self::cache_path(gpu)?)
    }

    /// Where `zipserv tune` keeps the table of this device, driver and PTX: in the folder `zipserv`
    /// of the user's cache (`XDG_CACHE_HOME`, or `~/.cache`).
    ///
    /// # Errors
    /// [`CudaError::Tuning`] when there is no such folder; [`CudaError`] from the driver.
    pub fn cache_path(gpu: &Gpu) -> Result<PathBuf, CudaError> {
        let strategy = etcetera::choose_base_strategy();
        let strategy = strategy.map_err(|error| TuningError::NoCache(error.to_string()))?;
        Ok(strategy
            .cache_dir()
            .join("zipserv")
            .join(file_name(&Self::key(gpu)?)))
    }

    /// What tables for `gpu` are for.
    ///
    /// # Errors
    /// [`CudaError`] from the driver.
    pub fn key(gpu: &Gpu) -> Result<TuningKey, CudaError> {
        Ok(TuningKey {
            device: gpu.name()?,
            multiprocessors: gpu.multiprocessors(),
            driver: driver()?,
            ptx_crc32: gpu.ptx_crc32(),
        })
    }

    /// The table.
    pub fn table(&self) -> &TuningTable {
        &self.table
    }
}

/// Another one for every key.
fn file_name(key: &TuningKey) -> String {
    let json = serde_json::to_vec(key).expect("names are strings");
    format!("tuned-{:08x}.json", crc32fast::hash(&json))
}

/// Chooses as [`zipgemm_plan`], unless `tuning`, a table for `gpu`, has weights of this shape: then
/// it takes the launch that was measured to be the fastest for `n` tokens. Where the table has more
/// tokens only, their launch counts if the plan of [`zipgemm_plan`] is the same for both numbers.
///
/// # Errors
/// As [`zipgemm_plan`].
pub fn zipgemm_plan_tuned(
    gpu: &Gpu,
    weights: &DeviceMatrix,
    n: usize,
    tuning: &Tuning,
) -> Result<Plan, CudaError> {
    choose_tuned(
        &tuning.table,
        (weights.rows(), weights.cols()),
        n,
        |n| zipgemm_plan(gpu, weights, n),
        |launch| Plan::tuned(gpu, weights, n, launch),
    )
}

/// The rule of [`zipgemm_plan_tuned`], whatever plans are.
fn choose_tuned<P: PartialEq, E>(
    table: &TuningTable,
    (rows, cols): (usize, usize),
    n: usize,
    default: impl Fn(usize) -> Result<P, E>,
    tuned: impl FnOnce(&TunedLaunch) -> Result<P, E>,
) -> Result<P, E> {
    let plan = default(n)?;
    match table.at_least(rows, cols, n) {
        Some(row) if row.n == n || default(row.n)? == plan => tuned(&row.launch),
        _ => Ok(plan),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::TunedRow;

    fn key(device: &str) -> TuningKey {
        TuningKey {
            device: device.to_owned(),
            multiprocessors: 132,
            driver: "1.2.3".to_owned(),
            ptx_crc32: 7,
        }
    }

    #[test]
    fn each_device_has_a_file() {
        assert_eq!(file_name(&key("a")), file_name(&key("a")));
        assert_ne!(file_name(&key("a")), file_name(&key("b")));
    }

    #[test]
    fn fewer_tokens_take_the_next_row_of_the_same_plan() {
        let mut table = TuningTable::new(key("a"));
        for n in [1, 8, 64] {
            let launch = |kernel: String| TunedLaunch {
                kernel,
                blocks: 1,
                split: None,
            };
            table.insert(TunedRow {
                rows: 100,
                cols: 64,
                n,
                launch: launch(format!("tuned for {n}")),
                default: launch("default".to_owned()),
                before_us: 2.0,
                after_us: 1.0,
            });
        }
        // The default changes after 4, 8 and 32 tokens.
        let default = |n: usize| {
            let most = [4, 8, 32, 64, 1000].into_iter().find(|&most| n <= most);
            most.map(|most| format!("up to {most}")).ok_or(())
        };
        let chosen = |shape, n| {
            choose_tuned(&table, shape, n, default, |launch| {
                Ok(launch.kernel.clone())
            })
        };
        for (n, plan) in [
            (1, "tuned for 1"),
            (2, "up to 4"),
            (5, "tuned for 8"),
            (8, "tuned for 8"),
            (9, "up to 32"),
            (33, "tuned for 64"),
            (64, "tuned for 64"),
            (65, "up to 1000"),
        ] {
            assert_eq!(chosen((100, 64), n).unwrap(), plan, "{n}");
        }
        assert_eq!(chosen((64, 100), 8).unwrap(), "up to 8");
        assert!(chosen((100, 64), 1001).is_err());
    }
}
