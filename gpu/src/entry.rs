//! The entries of the PTX: one for each kernel and shape.

use crate::{
    args::{DecompressArgs, GemmArgs},
    kernels::zipgemm::zipgemm,
};

macro_rules! zipgemm {
    ($($name:ident: $n_tiles:literal $strips:literal $groups:literal $stages:literal;)*) => {$(
        /// `zipgemm` of one shape, see [`crate::launch::Gemm`].
        ///
        /// # Safety
        /// As [`zipgemm()`].
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name(args: GemmArgs) {
            // SAFETY: the caller's promise.
            unsafe { zipgemm::<$n_tiles, $strips, $groups, $stages>(&args) }
        }
    )*};
}

crate::gemm_kernels!(zipgemm);

/// Restores a matrix, see [`crate::kernels::decompress`].
///
/// # Safety
/// As the function of that name in [`crate::kernels::decompress`].
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn decompress(args: DecompressArgs) {
    // SAFETY: the caller's promise.
    unsafe { crate::kernels::decompress::decompress(&args) }
}
