//! How bulk tensor copies find what they copy. All of it is for the current context.

use std::mem::MaybeUninit;

use cudarc::driver::sys;
use zipserv_gpu::{
    args::TensorMap,
    launch::Prefill,
    layout::{TILE_BYTES, TILE_COLS, tile_grid},
};

use super::{driver::check, error::GpuError};
use crate::MatrixHeader;

/// Describes `n` rows of `k` activations, so many from row to row, as boxes of 64 columns by `tokens`. What lies between rows is
/// outside.
pub fn activations(
    x: u64,
    x_stride: usize,
    [n, k]: [usize; 2],
    tokens: usize,
) -> Result<TensorMap, GpuError> {
    tensor_map(
        sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        x,
        [k as u64, n as u64],
        &[2 * x_stride as u64],
        [TILE_COLS as u32, tokens as u32],
    )
}

/// Describes the dense part of a matrix, as [`Prefill::DENSE_BOX`] says.
pub fn dense_tiles(header: &MatrixHeader, dense: u64) -> Result<TensorMap, GpuError> {
    let (strips, tile_cols) = tile_grid(header.rows(), header.cols());
    let [elements, bands, _, _] = Prefill::DENSE_BOX.map(u64::from);
    let tile = TILE_BYTES as u64;
    tensor_map(
        sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_INT64,
        sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        dense,
        [elements, bands, tile_cols as u64, strips as u64],
        &[tile / bands, tile, tile * tile_cols as u64],
        Prefill::DENSE_BOX,
    )
}

/// Describes, in the current context, a tensor of `sizes`, from the dimension without gaps on, and `strides` in bytes of the
/// others, and boxes of it that are copied at a time.
fn tensor_map<const RANK: usize>(
    element: sys::CUtensorMapDataType,
    swizzle: sys::CUtensorMapSwizzle,
    address: u64,
    sizes: [u64; RANK],
    strides: &[u64],
    boxes: [u32; RANK],
) -> Result<TensorMap, GpuError> {
    assert_eq!(strides.len() + 1, RANK);
    let mut map = MaybeUninit::<sys::CUtensorMap>::uninit();
    // SAFETY: the call reads so many sizes, one stride less, and as many of the others as sizes; it
    // writes the map.
    unsafe {
        check(
            "cuTensorMapEncodeTiled",
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                element,
                RANK as u32,
                address as *mut _,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                [1; RANK].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ),
        )?;
        Ok(TensorMap(map.assume_init().opaque))
    }
}
