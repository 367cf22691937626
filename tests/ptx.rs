//! The committed PTX, which the host embeds, was built from the sources beside it.
//!
//! Only hashes are compared, so no compiler of device code is needed; `builder check` compares bytes.

#[test]
fn no_file_is_stale() {
    for target in builder::target::targets().unwrap() {
        target
            .read_fresh()
            .unwrap_or_else(|reason| panic!("{reason:#}"));
    }
}

/// Rows that no kernel has would never be noticed otherwise: kernels without a row do not compile.
#[test]
fn every_row_has_a_kernel() {
    let own = [zipserv_gpu::ptx::SM_80, zipserv_gpu::ptx::SM_90A];
    let published = [published_kernels::PTX];
    let tables = [
        (zipserv_gpu::KERNELS, &own[..]),
        (published_kernels::KERNELS, &published),
        (example_kernels::KERNELS, &[EXAMPLE]),
    ];
    for (kernels, files) in tables {
        for launch in kernels {
            let has = |ptx: &&str| builder::ptx::entry(ptx, launch.name).is_some();
            assert!(files.iter().any(has), "{} has no kernel", launch.name);
        }
    }
}

const EXAMPLE: &str = include_str!("../examples/kernels/ptx/example_sm_80.ptx");
