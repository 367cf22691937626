//! Builds `gpu` with Rust-CUDA's compiler: `cargo run [sm_90a|sm_80]`.

use cuda_builder::{CudaBuilder, NvvmArch};

fn main() -> Result<(), String> {
    let sm = std::env::args().nth(1).unwrap_or_else(|| "sm_90a".into());
    let arch = match sm.as_str() {
        "sm_80" => NvvmArch::Compute80,
        "sm_90a" => NvvmArch::Compute90a,
        _ => return Err(format!("there are sm_80 and sm_90a, not {sm}")),
    };
    // The kernels' build script hands this on to their sources.
    std::env::set_var("ZIPSERV_SM", sm.trim_start_matches("sm_"));
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
    let ptx = format!("{folder}/{sm}.ptx");
    CudaBuilder::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels"))
        .arch(arch)
        .build_args(&["--target-dir", &format!("{folder}/kernels")])
        .copy_to(&ptx)
        .build()
        .map_err(|error| error.to_string())?;
    println!("wrote {ptx}");
    Ok(())
}
