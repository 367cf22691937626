//! Tells the sources which compiler and which architecture they are built for.

fn main() {
    println!("cargo::rerun-if-env-changed=ZIPSERV_SM");
    println!("cargo::rustc-check-cfg=cfg(zipserv_nvvm)");
    println!("cargo::rustc-check-cfg=cfg(zipserv_sm, values(\"80\", \"90a\"))");
    println!("cargo::rustc-check-cfg=cfg(zipserv_entries)");
    println!("cargo::rustc-cfg=zipserv_nvvm");
    // These sources are built for their own kernels.
    println!("cargo::rustc-cfg=zipserv_entries");
    if let Ok(sm) = std::env::var("ZIPSERV_SM") {
        println!("cargo::rustc-cfg=zipserv_sm=\"{sm}\"");
    }
}
