use std::{collections::BTreeMap, fmt, io};

use serde::{Deserialize, Serialize};

/// The version of a [`TuningTable`]'s file that this build writes and reads.
pub const TUNING_VERSION: u32 = 1;

/// The fastest launches that `zipserv tune` found on one device, by shape of the weights and number
/// of tokens. Where the dispatch's own choice could not be beaten, that is the launch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TuningTable {
    tuning_version: u32,
    key: TuningKey,
    rows: Vec<TunedRow>,
}

/// What a [`TuningTable`] is for, and for nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TuningKey {
    /// The device.
    pub device: String,
    /// Its streaming multiprocessors.
    pub sms: u32,
    /// The driver's version, and the CUDA version that it knows.
    pub driver: String,
    /// CRC-32 of the kernels' PTX, but for its comments.
    pub ptx_crc32: u32,
}

/// How a kernel is launched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunedLaunch {
    /// Its name.
    pub kernel: String,
    /// Thread blocks.
    pub blocks: u32,
    /// Output tiles that they share along K, where the kernel has output tiles.
    pub shared_tiles: Option<u32>,
}

/// The fastest launch for one shape and number of tokens. Both times are medians of the same
/// comparison, in turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunedRow {
    /// Output features, M.
    pub rows: usize,
    /// Input features, K.
    pub cols: usize,
    /// Tokens.
    pub n: usize,
    /// The launch.
    pub launch: TunedLaunch,
    /// What the dispatch had chosen; the same launch where nothing was faster.
    pub default: TunedLaunch,
    /// Microseconds of that.
    pub before_us: f64,
    /// Microseconds of the launch.
    pub after_us: f64,
}

/// Geometric means over the rows of one number of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuningMean {
    /// Tokens.
    pub n: usize,
    /// Shapes.
    pub shapes: usize,
    /// Those with another launch than before.
    pub changed: usize,
    /// Microseconds of the dispatch's own choices.
    pub before_us: f64,
    /// Microseconds of the tuned launches.
    pub after_us: f64,
}

/// Why a table is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuningError {
    /// It cannot be read.
    #[error("the table of tuned launches cannot be read: {0}")]
    Io(#[from] io::Error),
    /// There is no folder for it.
    #[error("there is no folder for the user's cache: {0}")]
    NoCache(String),
    /// It is not what `zipserv tune` writes.
    #[error("not a table of tuned launches, or a damaged one: {0}")]
    Damaged(String),
    /// A version that this build does not read.
    #[error(
        "the table of tuned launches has version {0}; this build reads version {TUNING_VERSION}"
    )]
    Version(u64),
    /// It is for another device, driver or build of the kernels.
    #[error("the launches were tuned for the {what} {table}, not {here}; run `zipserv tune` again")]
    Key {
        /// What differs.
        what: &'static str,
        /// What the table says.
        table: String,
        /// What is here.
        here: String,
    },
}

impl TuningTable {
    /// A table without rows.
    pub fn new(key: TuningKey) -> Self {
        Self {
            tuning_version: TUNING_VERSION,
            key,
            rows: Vec::new(),
        }
    }

    /// Reads what serde writes of a table.
    ///
    /// # Errors
    /// [`TuningError::Damaged`] and [`TuningError::Version`].
    pub fn from_json(json: &[u8]) -> Result<Self, TuningError> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Versioned {
            tuning_version: u64,
        }
        #[derive(Deserialize)]
        struct Read {
            key: TuningKey,
            rows: Vec<TunedRow>,
        }
        let damaged = |error: serde_json::Error| TuningError::Damaged(error.to_string());
        let Versioned { tuning_version } = serde_json::from_slice(json).map_err(damaged)?;
        if tuning_version != u64::from(TUNING_VERSION) {
            return Err(TuningError::Version(tuning_version));
        }
        let Read { key, rows } = serde_json::from_slice(json).map_err(damaged)?;
        let mut table = Self::new(key);
        for row in rows {
            if !row.is_possible() {
                return Err(TuningError::Damaged(format!("an impossible row: {row}")));
            }
            if table.get(row.rows, row.cols, row.n).is_some() {
                return Err(TuningError::Damaged(format!("two rows: {row}")));
            }
            table.insert(row);
        }
        Ok(table)
    }

    /// Fails unless the table is for what is `here`.
    ///
    /// # Errors
    /// [`TuningError::Key`].
    pub fn check(&self, here: &TuningKey) -> Result<(), TuningError> {
        let TuningKey {
            device,
            sms,
            driver,
            ptx_crc32,
        } = &self.key;
        let same = |what, table: String, here: String| match table == here {
            true => Ok(()),
            false => Err(TuningError::Key { what, table, here }),
        };
        let size = |sms: u32| format!("of {sms} SMs");
        let kernels = |crc32: u32| format!("with CRC-32 {crc32:08x}");
        same("device", device.clone(), here.device.clone())?;
        same("device", size(*sms), size(here.sms))?;
        same("driver", driver.clone(), here.driver.clone())?;
        same("PTX", kernels(*ptx_crc32), kernels(here.ptx_crc32))
    }

    /// What the table is for.
    pub fn key(&self) -> &TuningKey {
        &self.key
    }

    /// All rows, by shape, then tokens.
    pub fn rows(&self) -> &[TunedRow] {
        &self.rows
    }

    /// Adds a row, in place of one for the same shape and number of tokens.
    pub fn insert(&mut self, row: TunedRow) {
        let place = |row: &TunedRow| (row.rows, row.cols, row.n);
        match self.rows.binary_search_by_key(&place(&row), place) {
            Ok(at) => self.rows[at] = row,
            Err(at) => self.rows.insert(at, row),
        }
    }

    /// The row for just these weights and tokens.
    pub fn get(&self, rows: usize, cols: usize, n: usize) -> Option<&TunedRow> {
        self.at_least(rows, cols, n).filter(|row| row.n == n)
    }

    /// The row for these weights and the fewest tokens that are at least `n`.
    pub fn at_least(&self, rows: usize, cols: usize, n: usize) -> Option<&TunedRow> {
        let place = |row: &TunedRow| (row.rows, row.cols, row.n);
        let first = self
            .rows
            .partition_point(|row| place(row) < (rows, cols, n));
        let row = self.rows.get(first)?;
        ((row.rows, row.cols) == (rows, cols)).then_some(row)
    }

    /// The means for each number of tokens, in order.
    pub fn means(&self) -> Vec<TuningMean> {
        let mut by_tokens: BTreeMap<usize, Vec<&TunedRow>> = BTreeMap::new();
        for row in &self.rows {
            by_tokens.entry(row.n).or_default().push(row);
        }
        let mean = |(n, rows): (usize, Vec<&TunedRow>)| TuningMean {
            n,
            shapes: rows.len(),
            changed: rows.iter().filter(|row| row.is_changed()).count(),
            before_us: geometric_mean(rows.iter().map(|row| row.before_us)),
            after_us: geometric_mean(rows.iter().map(|row| row.after_us)),
        };
        by_tokens.into_iter().map(mean).collect()
    }
}

impl TunedRow {
    /// How many times as fast the launch is as the dispatch's own choice.
    pub fn gain(&self) -> f64 {
        self.before_us / self.after_us
    }

    /// Whether the launch is another than the dispatch's own choice.
    pub fn is_changed(&self) -> bool {
        self.launch != self.default
    }

    fn is_possible(&self) -> bool {
        let time = |us: f64| us.is_finite() && us > 0.0;
        self.rows > 0
            && self.cols > 0
            && self.n > 0
            && self.launch.blocks > 0
            && time(self.before_us)
            && time(self.after_us)
            && self.after_us <= self.before_us
    }
}

impl TuningMean {
    /// How many times as fast the tuned launches are.
    pub fn gain(&self) -> f64 {
        self.before_us / self.after_us
    }
}

impl fmt::Display for TunedLaunch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            kernel,
            blocks,
            shared_tiles,
        } = self;
        write!(f, "{kernel}, {blocks} blocks")?;
        match shared_tiles {
            Some(shared_tiles) => write!(f, ", {shared_tiles} tiles shared"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for TunedRow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            rows,
            cols,
            n,
            launch,
            before_us,
            after_us,
            ..
        } = self;
        write!(f, "{rows} x {cols}, N={n}: {before_us:.2} us")?;
        match self.is_changed() {
            true => write!(f, " -> {after_us:.2} us, {:.3}x, by {launch}", self.gain()),
            false => write!(f, " as it was, by {launch}"),
        }
    }
}

fn geometric_mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(f64::ln).sum::<f64>() / count).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(kernel: &str, blocks: u32) -> TunedLaunch {
        TunedLaunch {
            kernel: kernel.to_owned(),
            blocks,
            shared_tiles: None,
        }
    }

    fn row(rows: usize, n: usize, before_us: f64, after_us: f64) -> TunedRow {
        TunedRow {
            rows,
            cols: 64,
            n,
            launch: launch("a kernel", if after_us < before_us { 128 } else { 132 }),
            default: launch("a kernel", 132),
            before_us,
            after_us,
        }
    }

    fn key() -> TuningKey {
        TuningKey {
            device: "a device".to_owned(),
            sms: 132,
            driver: "1.2.3".to_owned(),
            ptx_crc32: 7,
        }
    }

    fn table() -> TuningTable {
        let mut table = TuningTable::new(key());
        for row in [
            row(100, 8, 4.0, 2.0),
            row(100, 1, 3.0, 3.0),
            row(200, 8, 8.0, 8.0),
            row(100, 8, 4.0, 1.0),
        ] {
            table.insert(row);
        }
        table
    }

    #[test]
    fn comes_back_from_json() {
        let json = serde_json::to_vec(&table()).unwrap();
        let read = TuningTable::from_json(&json).unwrap();
        assert_eq!(read, table());
        assert_eq!(read.rows().len(), 3);
        read.check(&key()).unwrap();
    }

    #[test]
    fn is_refused_elsewhere() {
        let says = |change: &dyn Fn(&mut TuningKey)| {
            let mut here = key();
            change(&mut here);
            table().check(&here).unwrap_err().to_string()
        };
        let said = says(&|key| key.device = "another device".to_owned());
        assert!(
            said.contains("device a device, not another device"),
            "{said}"
        );
        let said = says(&|key| key.sms = 66);
        assert!(said.contains("132") && said.contains("66"), "{said}");
        let said = says(&|key| key.driver = "1.2.4".to_owned());
        assert!(said.contains("driver 1.2.3, not 1.2.4"), "{said}");
        let said = says(&|key| key.ptx_crc32 = 8);
        assert!(said.contains("PTX with CRC-32 00000007"), "{said}");
    }

    #[test]
    fn damage_is_an_error() {
        let json = serde_json::to_string(&table()).unwrap();
        let read = |json: &str| TuningTable::from_json(json.as_bytes());
        for end in 0..json.len() {
            assert!(matches!(read(&json[..end]), Err(TuningError::Damaged(_))));
        }
        let with = |from: &str, to: &str| {
            assert!(json.contains(from), "{from}");
            read(&json.replace(from, to))
        };
        let version = with("\"tuning_version\":1", "\"tuning_version\":2");
        assert!(matches!(version, Err(TuningError::Version(2))));
        for (from, to) in [
            ("tuning_version", "version"),
            ("\"rows\":200", "\"rows\":0"),
            ("\"rows\":200", "\"rows\":100"),
            ("\"cols\":64", "\"cols\":18446744073709551616"),
            ("\"blocks\":128", "\"blocks\":0"),
            ("\"blocks\":128", "\"blocks\":-1"),
            ("\"after_us\":1.0", "\"after_us\":0.0"),
            ("\"after_us\":1.0", "\"after_us\":4.5"),
            ("\"after_us\":1.0", "\"after_us\":1e999"),
        ] {
            let result = with(from, to);
            assert!(matches!(result, Err(TuningError::Damaged(_))), "{to}");
        }
    }

    #[test]
    fn finds_a_number_of_tokens_or_the_next() {
        let table = table();
        assert_eq!(table.get(100, 64, 8).unwrap().after_us, 1.0);
        assert!(table.get(100, 64, 4).is_none());
        let next = |rows, cols, n| table.at_least(rows, cols, n).map(|row| row.n);
        assert_eq!(next(100, 64, 1), Some(1));
        assert_eq!(next(100, 64, 2), Some(8));
        assert_eq!(next(100, 64, 9), None);
        assert_eq!(next(100, 65, 8), None);
        assert_eq!(next(200, 64, 1), Some(8));
        assert_eq!(next(201, 64, 1), None);
    }

    #[test]
    fn means_of_shapes() {
        let [one, eight] = table().means()[..] else {
            panic!("two numbers of tokens")
        };
        assert_eq!((one.n, one.shapes, one.changed), (1, 1, 0));
        assert_eq!((eight.n, eight.shapes, eight.changed), (8, 2, 1));
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(one.gain(), 1.0);
        near(eight.before_us, 32f64.sqrt());
        near(eight.after_us, 8f64.sqrt());
        near(eight.gain(), 2.0);
    }
}
