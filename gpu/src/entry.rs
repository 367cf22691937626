//! The entries of the PTX: one for each kernel and shape.
//!
//! A target may lack some of [`crate::launch::KERNELS`]; the host asks the module what it has.

macro_rules! zipgemm {
    ($($sm:literal: $($name:ident: {
        n_tiles: $n_tiles:literal, warps_m: $warps_m:literal, warps_k: $warps_k:literal,
        consumer_groups: $consumer_groups:literal, stages: $stages:literal, sum_stages: $sum_stages:literal, blocks: $blocks:literal
    };)*)*) => {$($(
        kernel! {
            /// `zipgemm` of one shape, see [`crate::launch::Gemm`].
            ///
            /// # Safety
            /// As [`crate::kernels::mma::zipgemm`].
            #[cfg(zipserv_sm = $sm)]
            fn $name(args: crate::args::GemmArgs) {
                // SAFETY: the caller's promise.
                unsafe { crate::kernels::mma::zipgemm::<$n_tiles, $warps_m, $warps_k, $consumer_groups, $stages, $sum_stages>(&args) }
            }
        }
    )*)*};
}

crate::gemm_kernels!(zipgemm);

macro_rules! zipgemm_grouped {
    ($($sm:literal: $($name:ident: {
        n_tiles: $n_tiles:literal, warps_m: $warps_m:literal, warps_k: $warps_k:literal,
        consumer_groups: $consumer_groups:literal, stages: $stages:literal, sum_stages: $sum_stages:literal, blocks: $blocks:literal
    };)*)*) => {$($(
        kernel! {
            /// `zipgemm_grouped` of one shape, see [`crate::launch::Gemm`].
            ///
            /// # Safety
            /// As [`crate::kernels::mma::zipgemm_grouped`].
            #[cfg(zipserv_sm = $sm)]
            fn $name(args: crate::args::GroupedArgs) {
                // SAFETY: the caller's promise.
                unsafe { crate::kernels::mma::zipgemm_grouped::<$n_tiles, $warps_m, $warps_k, $consumer_groups, $stages, $sum_stages>(&args) }
            }
        }
    )*)*};
}

crate::grouped_kernels!(zipgemm_grouped);

kernel! {
    /// Sorts assignments by expert, see [`crate::kernels::experts`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::experts::route`].
    fn route(args: crate::args::RouteArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::experts::route::route(&args) }
    }
}

kernel! {
    /// Puts activations into the order of experts, see [`crate::kernels::experts`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::experts::arrange`].
    #[cfg(zipserv_sm = "90a")]
    fn arrange(args: crate::args::ArrangeArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::experts::arrange::arrange(&args) }
    }
}

kernel! {
    /// Adds up the outputs of a token's experts, see [`crate::kernels::experts`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::experts::combine`].
    fn combine(args: crate::args::CombineArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::experts::combine::combine(&args) }
    }
}

macro_rules! prefill {
    ($($name:ident: { tokens: $tokens:literal, stages: $stages:literal, cluster: $cluster:literal };)*) => {$(
        kernel! {
            /// `prefill` of one shape, see [`crate::launch::Prefill`].
            ///
            /// # Safety
            /// As [`crate::kernels::wgmma::prefill`].
            #[cfg(zipserv_sm = "90a")]
            fn $name(args: crate::args::PrefillArgs) {
                // SAFETY: the caller's promise; the tensor maps are the parameter's first fields.
                unsafe {
                    let maps = parameter_address!($name);
                    crate::kernels::wgmma::prefill::<{ $tokens / 2 }, $stages, $cluster>(&args, maps)
                }
            }
        }
    )*};
}

crate::prefill_kernels!(prefill);

macro_rules! prefill_grouped {
    ($($name:ident: { tokens: $tokens:literal, stages: $stages:literal, cluster: $cluster:literal };)*) => {$(
        kernel! {
            /// `prefill_grouped` of one shape, see [`crate::launch::Prefill`].
            ///
            /// # Safety
            /// As [`crate::kernels::wgmma::prefill_grouped`].
            #[cfg(zipserv_sm = "90a")]
            fn $name(args: crate::args::GroupedPrefillArgs) {
                // SAFETY: the caller's promise; the tensor maps are the parameter's first fields.
                unsafe {
                    let maps = parameter_address!($name);
                    crate::kernels::wgmma::prefill_grouped::<{ $tokens / 2 }, $stages, $cluster>(&args, maps)
                }
            }
        }
    )*};
}

crate::grouped_prefill_kernels!(prefill_grouped);

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
    /// Counts exponents, see [`crate::kernels::encode`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::encode::histogram`].
    fn encode_histogram(args: crate::args::EncodeArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::encode::histogram::encode_histogram(&args) }
    }
}

kernel! {
    /// Chooses the window, see [`crate::kernels::encode`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::encode::histogram`].
    fn encode_window(args: crate::args::EncodeArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::encode::histogram::encode_window(&args) }
    }
}

kernel! {
    /// Counts patches, see [`crate::kernels::encode`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::encode::tiles`].
    fn encode_counts(args: crate::args::EncodeArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::encode::tiles::encode_counts(&args) }
    }
}

kernel! {
    /// Adds up numbers of patches, see [`crate::kernels::encode`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::encode::tiles`].
    fn encode_offsets(args: crate::args::EncodeArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::encode::tiles::encode_offsets(&args) }
    }
}

kernel! {
    /// Encodes tiles, see [`crate::kernels::encode`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::encode::tiles`].
    fn encode_tiles(args: crate::args::EncodeArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::encode::tiles::encode_tiles(&args) }
    }
}

kernel! {
    /// Checksum of the payload, see [`crate::kernels::encode`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::encode::checksum`].
    fn encode_checksum(args: crate::args::EncodeArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::encode::checksum::encode_checksum(&args) }
    }
}

kernel! {
    /// Writes the header, see [`crate::kernels::encode`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::encode::checksum`].
    fn encode_header(args: crate::args::EncodeArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::encode::checksum::encode_header(&args) }
    }
}

kernel! {
    /// Between the products of a gated MLP, see [`crate::kernels::gate`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::gate`].
    fn gate(args: crate::args::GateArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::gate::gate(&args) }
    }
}

kernel! {
    /// Rows of a matrix, see [`crate::kernels::gather`].
    ///
    /// # Safety
    /// As the function of that name in [`crate::kernels::gather`].
    fn gather(args: crate::args::GatherArgs) {
        // SAFETY: the caller's promise.
        unsafe { crate::kernels::gather::gather(&args) }
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
