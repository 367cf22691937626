//! All that differs between the compilers of device code: rustc's own NVPTX backend, which
//! `builder` runs, and Rust-CUDA's (`zipserv_nvvm`), which `builder/nvvm` runs.

use core::arch::asm;

/// Makes a function an entry of the PTX. How it is launched, by `KERNELS` of the crate, goes there
/// as a comment, which the builder reads.
#[cfg(not(zipserv_nvvm))]
#[macro_export]
macro_rules! kernel {
    ($(#[$attribute:meta])* fn $name:ident($args:ident: $type:ty) $body:block) => {
        $(#[$attribute])*
        mod $name {
            const LAUNCH: $crate::launch::Launch =
                $crate::launch::find(crate::KERNELS, stringify!($name));
            core::arch::global_asm!(
                concat!("// launch: ", stringify!($name), " threads={} min_blocks={} shared={} cluster={}"),
                const LAUNCH.threads,
                const LAUNCH.min_blocks,
                const LAUNCH.shared_bytes,
                const LAUNCH.cluster,
            );
        }

        $(#[$attribute])*
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name($args: $type) $body
    };
}

/// Makes a function an entry of the PTX.
#[cfg(zipserv_nvvm)]
#[macro_export]
macro_rules! kernel {
    ($(#[$attribute:meta])* fn $name:ident($args:ident: $type:ty) $body:block) => {
        $(#[$attribute])*
        #[cuda_std::kernel]
        pub unsafe fn $name($args: $type) $body
    };
}

/// Generic address of the parameter of the entry in which this stands, as instructions that read
/// a tensor map want it. A reference to the parameter would be one to a copy.
#[cfg(all(zipserv_entries, zipserv_sm = "90a"))]
macro_rules! parameter_address {
    ($name:ident) => {{
        let mut address: u64;
        core::arch::asm!(
            concat!("mov.b64 {0}, ", stringify!($name), "_param_0;"),
            "cvta.param.u64 {0}, {0};",
            out(reg64) address, options(pure, nomem, nostack, preserves_flags));
        address
    }};
}

// The 128-byte swizzle of tensor copies repeats every 1024 bytes.
#[cfg(not(zipserv_nvvm))]
core::arch::global_asm!(".extern .shared .align 1024 .b8 zipserv_shared[];");

/// Address of the block's dynamic shared memory.
#[cfg(not(zipserv_nvvm))]
#[inline(always)]
pub fn shared() -> u32 {
    let mut address: u32;
    // SAFETY: takes an address.
    unsafe {
        asm!("mov.u32 {}, zipserv_shared;", out(reg32) address,
            options(pure, nomem, nostack, preserves_flags));
    }
    address
}

/// Address of the block's dynamic shared memory.
#[cfg(zipserv_nvvm)]
#[inline(always)]
pub fn shared() -> u32 {
    let generic = cuda_std::shared::dynamic_shared_mem::<u8>();
    let mut address: u64;
    // SAFETY: converts an address.
    unsafe {
        asm!("cvta.to.shared.u64 {}, {};", out(reg64) address, in(reg64) generic,
            options(pure, nomem, nostack, preserves_flags));
    }
    address as u32
}

// Rust-CUDA's comes with `cuda_std`.
#[cfg(not(zipserv_nvvm))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
