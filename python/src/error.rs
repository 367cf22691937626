//! Errors of the library as exceptions of `zipserv._errors`, which carry what the errors know.

use std::error::Error;

use pyo3::prelude::*;
use zipserv::{checkpoint, gpu::GpuError};

/// An error and its causes in one line.
fn message(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

/// An exception of a class of `zipserv._errors`.
fn raise<A>(py: Python, class: &str, arguments: A) -> PyErr
where
    A: for<'py> pyo3::call::PyCallArgs<'py>,
{
    let make = || {
        let module = py.import("zipserv._errors")?;
        module.getattr(class)?.call1(arguments)
    };
    match make() {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// `zipserv.Error` of a file or folder.
pub fn of_file(py: Python, error: &checkpoint::Error) -> PyErr {
    let file = error.path().to_string_lossy().into_owned();
    let tensor = error.tensor().map(str::to_owned);
    raise(py, "Error", (message(error), file, tensor, error.offset()))
}

/// `zipserv.Error` of a matrix in memory.
pub fn of_matrix(py: Python, error: &zipserv::Error) -> PyErr {
    raise(py, "Error", (message(error),))
}

/// `zipserv.GpuError`.
pub fn of_gpu(py: Python, error: &GpuError) -> PyErr {
    raise(py, "GpuError", (message(error),))
}
