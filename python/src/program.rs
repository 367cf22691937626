use std::{ffi::OsString, process::ExitCode};

use pyo3::prelude::*;

/// Runs the program `zipserv` on arguments, of which the first is its name; gives its exit code.
#[pyfunction]
pub fn run(py: Python, arguments: Vec<OsString>) -> u8 {
    // An exit code tells no number.
    py.detach(|| {
        let code = zipserv_cli::run(arguments);
        (0..=u8::MAX)
            .find(|&n| code == ExitCode::from(n))
            .unwrap_or(2)
    })
}
