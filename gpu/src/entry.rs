//! The entries of the PTX: one for each kernel and shape.
//!
//! A target may lack some of [`crate::launch::KERNELS`]; the host asks the module what it has.

macro_rules! zipgemm {
    ($($sm:literal: $($name:ident: $n_tiles:literal $strips:literal $groups:literal $stages:literal $sum_stages:literal $blocks:literal;)*)*) => {$($(
        kernel! {
            /// `zipgemm` of one shape, see [`crate::launch::Gemm`].
            ///
            /// # Safety
            /// As [`crate::kernels::zipgemm::zipgemm`].
            #[cfg(zipserv_sm = $sm)]
            fn $name(args: crate::args::GemmArgs) {
                // SAFETY: the caller's promise.
                unsafe { crate::kernels::zipgemm::zipgemm::<$n_tiles, $strips, $groups, $stages, $sum_stages>(&args) }
            }
        }
    )*)*};
}

crate::gemm_kernels!(zipgemm);

kernel! {
    /// Restores a matrix, see [`crate::kernels::decompress`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::decompress`].
    fn decompress(args: crate::args::DecompressArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::decompress::decompress(&args) }
    }
}

kernel! {
    /// Reads memory, see [`crate::kernels::read`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::read`].
    fn read(args: crate::args::ReadArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::read::read(&args) }
    }
}
