//! Files of results: JSON, a row a line, and six digits of each figure, for no clock gives more.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use tempfile::NamedTempFile;

/// The file of a report, which appears under its name when it is whole. Made before a run, it
/// tells at once when it cannot be.
pub struct ReportFile {
    path: PathBuf,
    force: bool,
    temporary: NamedTempFile,
}

impl ReportFile {
    /// Prepares the file; with `force`, it is going to replace what is there.
    ///
    /// # Errors
    /// When the file cannot be written, or exists and is not to be replaced.
    pub fn create(path: impl AsRef<Path>, force: bool) -> io::Result<Self> {
        let path = path.as_ref();
        if !force && path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        let folder = match path.parent() {
            Some(parent) if parent != "" => parent,
            _ => Path::new("."),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".results-")
            .suffix(".partial")
            .tempfile_in(folder);
        Ok(Self {
            path: path.to_owned(),
            force,
            temporary: temporary.map_err(|error| at(path, error))?,
        })
    }

    /// Writes `report`, a [`Report`](super::Report), [`Steps`](super::Steps) or
    /// [`TuningTable`](zipserv::gpu::tuning::TuningTable), as [`json`] does.
    ///
    /// # Errors
    /// As [`ReportFile::create`].
    pub fn write(mut self, report: &impl Serialize) -> io::Result<()> {
        let path = &self.path;
        let written = writeln!(self.temporary, "{}", json(report));
        written.map_err(|error| at(path, error))?;
        let kept = match self.force {
            true => self.temporary.persist(path),
            false => self.temporary.persist_noclobber(path),
        };
        match kept {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Err(exists(path)),
            Err(error) => Err(at(path, error.error)),
        }
    }
}

fn exists(path: &Path) -> io::Error {
    let what = format!("{}: already exists; --force replaces it", path.display());
    io::Error::new(io::ErrorKind::AlreadyExists, what)
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// What is to be kept as JSON: a line for each field, and in a field that is a list, for each row.
///
/// # Panics
/// When it is not a struct of what JSON has.
pub fn json(report: &impl Serialize) -> String {
    let mut json = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut json, Lines::default());
    report
        .serialize(&mut serializer)
        .expect("names are strings");
    String::from_utf8(json).expect("JSON is UTF-8")
}

/// Where the serializer is.
#[derive(Default)]
struct Lines {
    /// Objects and lists around it.
    depth: usize,
    /// The one at the second depth is a list, and so has a line for each element.
    rows: bool,
    /// Something has been written in the list.
    any: bool,
}

impl Lines {
    fn between<W: ?Sized + Write>(&self, to: &mut W, first: bool, lines: bool) -> io::Result<()> {
        match (first, lines) {
            (true, true) => to.write_all(b"\n"),
            (true, false) => Ok(()),
            (false, true) => to.write_all(b",\n"),
            (false, false) => to.write_all(b", "),
        }
    }
}

impl Formatter for Lines {
    fn begin_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth += 1;
        to.write_all(b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth -= 1;
        to.write_all(if self.depth == 0 { b"\n}" } else { b"}" })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.between(to, first, self.depth == 1)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }

    fn begin_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth += 1;
        if self.depth == 2 {
            (self.rows, self.any) = (true, false);
        }
        to.write_all(b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        let whole = self.depth == 2;
        self.depth -= 1;
        if whole {
            self.rows = false;
        }
        to.write_all(if whole && self.any { b"\n]" } else { b"]" })
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        let lines = self.rows && self.depth == 2;
        self.any |= lines;
        self.between(to, first, lines)
    }

    fn write_f64<W: ?Sized + Write>(&mut self, to: &mut W, value: f64) -> io::Result<()> {
        let rounded: f64 = format!("{value:.5e}").parse().expect("just written");
        write!(to, "{rounded:?}")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[derive(Serialize)]
    struct Some {
        name: &'static str,
        key: Key,
        rows: Vec<Row>,
        none: Vec<Row>,
    }

    #[derive(Serialize)]
    struct Key {
        a: u64,
        b: Option<u32>,
    }

    #[derive(Serialize)]
    struct Row {
        us: f64,
        list: Vec<u32>,
    }

    fn report() -> Some {
        let row = |us| Row {
            us,
            list: vec![1, 2],
        };
        Some {
            name: "a report",
            key: Key {
                a: u64::MAX,
                b: None,
            },
            rows: vec![row(123.456_789), row(2.0)],
            none: Vec::new(),
        }
    }

    const JSON: &str = r#"{
"name": "a report",
"key": {"a": 18446744073709551615, "b": null},
"rows": [
{"us": 123.457, "list": [1, 2]},
{"us": 2.0, "list": [1, 2]}
],
"none": []
}"#;

    #[test]
    fn a_row_is_a_line() {
        assert_eq!(json(&report()), JSON);
    }

    #[test]
    fn a_file_appears_whole_and_replaces_only_with_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let file = ReportFile::create(&path, false).unwrap();
        assert!(!path.exists());
        file.write(&report()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{JSON}\n"));
        assert!(ReportFile::create(&path, false).is_err());
        let file = ReportFile::create(&path, true).unwrap();
        file.write(&report()).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
