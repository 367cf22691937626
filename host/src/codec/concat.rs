use rayon::prelude::*;
use zipserv_gpu::layout::TILE_ROWS;

use super::{CompressedMatrix, HEADER_BYTES, MatrixHeader, compressed::crc, memory::zeroed};
use crate::Error;

/// Puts matrices of one width and one window below each other, each from a strip of its own on. Tiles and patches stay
/// as they are; what fills up the last strip of a matrix counts as rows of the whole.
///
/// # Errors
/// [`Error::MatrixTooLarge`] when all together are.
pub(super) fn concat(parts: &[CompressedMatrix]) -> Result<CompressedMatrix<'static>, Error> {
    let (base, cols) = parts
        .first()
        .map_or((0, 0), |part| (part.base(), part.cols()));
    debug_assert!(
        parts
            .iter()
            .all(|part| (part.base(), part.cols()) == (base, cols))
    );
    let rows = parts
        .iter()
        .map(|part| part.rows().next_multiple_of(TILE_ROWS));
    let patches = parts.iter().map(|part| part.outliers() as u64).sum();
    let header = MatrixHeader::new(rows.sum(), cols, base, patches)?;
    let mut bytes = zeroed(header.stored_bytes());
    let [mut dense_left, offsets, mut patches_left] = header.sections_mut(&mut bytes);

    let mut copies = Vec::with_capacity(parts.len());
    let mut slots = offsets[4..].chunks_exact_mut(4);
    let mut before = 0;
    for part in parts {
        let (dense, patches) = (part.dense(), &part.patches()[..2 * part.outliers()]);
        let to_dense = dense_left.split_off_mut(..dense.len()).expect("laid out");
        let to_patches = patches_left
            .split_off_mut(..patches.len())
            .expect("laid out");
        copies.extend([(to_dense, dense), (to_patches, patches)]);
        for (tile, slot) in (1..=part.header().tiles()).zip(&mut slots) {
            let offset = before + part.patch_offset(tile);
            slot.copy_from_slice(&(offset as u32).to_le_bytes());
        }
        before += part.outliers();
    }
    copies
        .into_par_iter()
        .for_each(|(to, from)| to.copy_from_slice(from));
    let payload_crc = crc(&bytes[HEADER_BYTES..]);
    Ok(CompressedMatrix::new(header, bytes, payload_crc))
}
