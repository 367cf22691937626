//! The entries of the PTX: one for each kernel and shape.

use crate::kernels::zipgemm::{Args, zipgemm};

macro_rules! zipgemm {
    ($($name:ident: $n_tiles:literal $strips:literal $groups:literal $stages:literal;)*) => {$(
        /// `zipgemm` of one shape, see [`crate::launch::Gemm`].
        ///
        /// # Safety
        /// As [`zipgemm()`].
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name(args: Args) {
            // SAFETY: the caller's promise.
            unsafe { zipgemm::<$n_tiles, $strips, $groups, $stages>(&args) }
        }
    )*};
}

zipgemm! {
    zipgemm_n8_m32: 1 1 8 3;
    zipgemm_n8_m64: 1 2 4 3;
}
