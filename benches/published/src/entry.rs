//! The entries of the PTX.

macro_rules! gemm {
    ($($name:ident: { n_tiles: $n_tiles:literal, blocks: $blocks:literal };)*) => {$(
        zipserv_gpu::kernel! {
            /// `published_gemm` of one shape, see [`crate::launch::Gemm`].
            ///
            /// # Safety
            /// As [`crate::kernels::gemm::gemm`].
            fn $name(args: crate::args::GemmArgs) {
                // SAFETY: the caller's promise.
                unsafe { crate::kernels::gemm::gemm::<$n_tiles>(&args) }
            }
        }
    )*};
}

crate::launch::gemm_kernels!(gemm);

zipserv_gpu::kernel! {
    /// Restores a matrix.
    ///
    /// # Safety
    /// As [`crate::kernels::decompress::decompress`].
    fn published_decompress(args: crate::args::DecompressArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::decompress::decompress(&args) }
    }
}
