use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use etcetera::BaseStrategy;

use crate::gpu::table::{TunedLaunch, TuningError, TuningKey, TuningTable};
use crate::gpu::{Device, GpuError, MAX_TOKENS, driver};

/// A [`TuningTable`](crate::gpu::tuning::TuningTable) of the device at hand, for [`PlanOptions::tuning`](super::PlanOptions::tuning).
/// Nothing is read unless one is loaded:
///
/// ```no_run
/// # use zipserv::gpu::{Device, DeviceMatrix, GpuError, Plan, PlanOptions, Tuning};
/// # fn plan(weights: &DeviceMatrix) -> Result<(), GpuError> {
/// let tuning = Tuning::load(weights.device(), "results/h200-2026-11-29-tune.json")?; // or `cached`, or `from_json`
/// let plan = Plan::new(weights, 8, &PlanOptions::default().tuning(&tuning))?;
/// println!("{plan}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Tuning {
    table: Arc<TuningTable>,
}

impl Tuning {
    /// Reads a table that `zipserv tune` wrote, such as one that is built in by `include_bytes!`.
    ///
    /// # Errors
    /// [`GpuError::Tuning`] when it is damaged, of another version, or for another device, driver
    /// or PTX than `gpu` has; [`GpuError`] from the driver.
    pub fn from_json(gpu: &Device, json: &[u8]) -> Result<Self, GpuError> {
        let table = TuningTable::from_json(json)?;
        table.check(&Self::key(gpu)?)?;
        for row in table.rows() {
            if row.n > MAX_TOKENS || !gpu.has(&row.launch.kernel) {
                return Err(TuningError::Damaged(format!("an impossible row: {row}")).into());
            }
        }
        let table = Arc::new(table);
        Ok(Self { table })
    }

    /// Reads a file that `zipserv tune` wrote.
    ///
    /// # Errors
    /// As [`Tuning::from_json`]; [`GpuError::Tuning`] also when the file cannot be read.
    pub fn load(gpu: &Device, path: impl AsRef<Path>) -> Result<Self, GpuError> {
        let json = fs::read(path).map_err(TuningError::Io)?;
        Self::from_json(gpu, &json)
    }

    /// Reads what `zipserv tune` left in the [user's cache](Self::cache_path).
    ///
    /// # Errors
    /// As [`Tuning::load`].
    pub fn cached(gpu: &Device) -> Result<Self, GpuError> {
        Self::load(gpu, Self::cache_path(gpu)?)
    }

    /// Where `zipserv tune` keeps the table of this device, driver and PTX: in the folder `zipserv`
    /// of the user's cache (`XDG_CACHE_HOME`, or `~/.cache`).
    ///
    /// # Errors
    /// [`GpuError::Tuning`] when there is no such folder; [`GpuError`] from the driver.
    pub fn cache_path(gpu: &Device) -> Result<PathBuf, GpuError> {
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
    /// [`GpuError`] from the driver.
    pub fn key(gpu: &Device) -> Result<TuningKey, GpuError> {
        Ok(TuningKey {
            device: gpu.name().to_owned(),
            sms: gpu.sms(),
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

/// The launch of a table for `n` tokens, where it has weights of this shape, and else what plans are
/// without. Where the table has more tokens only, their launch counts if the plan without is the same
/// for both numbers.
pub fn choose_tuned<P: PartialEq, E>(
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
    use crate::gpu::table::TunedRow;

    fn key(device: &str) -> TuningKey {
        TuningKey {
            device: device.to_owned(),
            sms: 132,
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
                shared_tiles: None,
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
