//! The codec, on bytes in the memory of the host.
//!
//! Tensors hold a matrix in the stored form, and behind it zeros: what kernels may read past the end, and spare
//! room. Addresses and lengths are those of contiguous CPU tensors, which Python keeps alive and lends alone.

use std::ptr;

use pyo3::prelude::*;
use rayon::prelude::*;
use zipserv::{CompressedMatrix, HEADER_BYTES, Matrix, MatrixHeader, Planes, gpu::DeviceMatrix};

use crate::error;

/// Bytes that a thread copies at a time.
const COPIED_AT_ONCE: usize = 1 << 20;

/// Bytes of a tensor that holds a matrix of so many stored bytes, at least.
#[pyfunction]
pub fn capacity(stored_bytes: usize) -> usize {
    stored_bytes + DeviceMatrix::TAIL_BYTES
}

/// # Safety
/// At `address` there are `len` bytes, which nobody writes as long as the slice is used.
unsafe fn bytes<'a>(address: usize, len: usize) -> &'a [u8] {
    match len {
        0 => &[],
        // SAFETY: the caller's promise; an address of a tensor that is not empty is not null.
        _ => unsafe { std::slice::from_raw_parts(address as *const u8, len) },
    }
}

/// # Safety
/// At `address` there are `len` bytes, which nobody else uses as long as the slice is used.
unsafe fn bytes_mut<'a>(address: usize, len: usize) -> &'a mut [u8] {
    match len {
        0 => &mut [],
        // SAFETY: as above.
        _ => unsafe { std::slice::from_raw_parts_mut(address as *mut u8, len) },
    }
}

/// Reads the header at the start of a tensor's bytes.
fn header(bytes: &[u8]) -> Result<MatrixHeader, zipserv::Error> {
    let Some(first) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(zipserv::Error::Truncated {
            expected: HEADER_BYTES as u64,
            found: bytes.len() as u64,
        });
    };
    MatrixHeader::parse_prefix(first, bytes.len())
}

/// The matrix at the start of a tensor's bytes, all of it checked.
fn matrix(bytes: &[u8]) -> Result<CompressedMatrix<'_>, zipserv::Error> {
    let stored = header(bytes)?.stored_bytes();
    CompressedMatrix::from_bytes(&bytes[..stored])
}

/// (rows, cols, stored bytes) of the matrix at the start of `len` bytes, by its header alone.
#[pyfunction]
pub fn shape(py: Python, address: usize, len: usize) -> PyResult<(usize, usize, usize)> {
    // SAFETY: the bytes of a tensor that the caller lends.
    let header =
        header(unsafe { bytes(address, len) }).map_err(|error| error::of_matrix(py, &error))?;
    Ok((header.rows(), header.cols(), header.stored_bytes()))
}

/// As `shape`, of a copy of `len` bytes that it makes and checks: those of a mapped file may be others later.
#[pyfunction]
pub fn copy_checked(
    py: Python,
    from: usize,
    to: usize,
    len: usize,
) -> PyResult<(usize, usize, usize)> {
    // SAFETY: as in `store`.
    let to = unsafe { bytes_mut(to, len) };
    let found = py.detach(|| {
        let pieces = to.par_chunks_mut(COPIED_AT_ONCE).enumerate();
        pieces.for_each(|(piece, to)| {
            let from = (from + piece * COPIED_AT_ONCE) as *const u8;
            // SAFETY: `from` has as many bytes, of another tensor. If a mapped file is written to meanwhile, what was
            // copied is what is checked.
            unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        });
        matrix(to).map(|matrix| (matrix.rows(), matrix.cols(), matrix.stored_bytes()))
    });
    found.map_err(|error| error::of_matrix(py, &error))
}

/// Compresses `rows` by `cols` BF16 that follow one another; Python takes the result by `store`.
#[pyclass(frozen)]
pub struct Encoded(CompressedMatrix<'static>);

#[pymethods]
impl Encoded {
    /// Bytes that `store` writes.
    #[getter]
    fn stored_bytes(&self) -> usize {
        self.0.stored_bytes()
    }
}

/// See [`Encoded`].
#[pyfunction]
pub fn encode(py: Python, address: usize, rows: usize, cols: usize) -> PyResult<Encoded> {
    let len = 2 * rows * cols;
    // SAFETY: as in `shape`; Python checked the size.
    let bytes = unsafe { bytes(address, len) };
    let matrix = py.detach(|| zipserv::encode(&Matrix::from_le_bytes(rows, cols, bytes)?));
    matrix
        .map(Encoded)
        .map_err(|error| error::of_matrix(py, &error))
}

/// Writes a matrix to the start of `len` bytes, which suffice, and zeros behind it.
#[pyfunction]
pub fn store(matrix: &Encoded, address: usize, len: usize) {
    // SAFETY: the bytes of a tensor that the caller lends alone.
    let to = unsafe { bytes_mut(address, len) };
    let (to, rest) = to.split_at_mut(matrix.0.stored_bytes());
    to.copy_from_slice(matrix.0.as_bytes());
    rest.fill(0);
}

/// Restores all weights of the matrix at the start of `len` bytes to `out_len` bytes.
#[pyfunction]
pub fn decode(py: Python, address: usize, len: usize, out: usize, out_len: usize) -> PyResult<()> {
    // SAFETY: as in `shape`, and `store`.
    let (bytes, out) = unsafe { (bytes(address, len), bytes_mut(out, out_len)) };
    let done = py.detach(|| zipserv::decode_into(&matrix(bytes)?, out));
    done.map_err(|error| error::of_matrix(py, &error))
}

/// Restores some rows of the matrix at the start of `len` bytes, in the order given.
#[pyfunction]
pub fn decode_rows(
    py: Python,
    address: usize,
    len: usize,
    rows: Vec<usize>,
    out: usize,
    out_len: usize,
) -> PyResult<()> {
    // SAFETY: as in `shape`, and `store`.
    let (bytes, out) = unsafe { (bytes(address, len), bytes_mut(out, out_len)) };
    let done = py.detach(|| zipserv::decode_rows(&matrix(bytes)?, &rows, out));
    done.map_err(|error| error::of_matrix(py, &error))
}

/// Whether the bytes of a tensor of a file start as those of byte planes do.
#[pyfunction]
pub fn is_planes(address: usize, len: usize) -> bool {
    // SAFETY: as in `shape`.
    Planes::is_at(unsafe { bytes(address, len) })
}

/// Restores a tensor of any dtype from the byte planes that `len` bytes are to `out_len` bytes.
#[pyfunction]
pub fn unpack(py: Python, address: usize, len: usize, out: usize, out_len: usize) -> PyResult<()> {
    // SAFETY: as in `shape`, and `store`.
    let (bytes, out) = unsafe { (bytes(address, len), bytes_mut(out, out_len)) };
    let done = py.detach(|| Planes::from_bytes(bytes)?.decode_into(out));
    done.map_err(|error| error::of_matrix(py, &error))
}
