//! Loads and stores.

use core::arch::asm;

pub use crate::backend::shared;

macro_rules! shared_access {
    ($($(#[$doc:meta])* $load:ident $store:ident $class:ident $type:ty, $suffix:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// `address` lies in the block's shared memory, aligned to the access.
        #[inline(always)]
        pub unsafe fn $load(address: u32) -> $type {
            let mut value: $type;
            // SAFETY: the caller's promise.
            unsafe {
                asm!(concat!("ld.shared.", $suffix, " {}, [{}];"),
                    out($class) value, in(reg32) address,
                    options(readonly, nostack, preserves_flags));
            }
            value
        }

        /// The store beside it.
        ///
        /// # Safety
        /// `address` lies in the block's shared memory, aligned to the access.
        #[inline(always)]
        pub unsafe fn $store(address: u32, value: $type) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(concat!("st.shared.", $suffix, " [{}], {};"),
                    in(reg32) address, in($class) value, options(nostack, preserves_flags));
            }
        }
    )*};
}

shared_access! {
    /// Loads 16 bits from shared memory.
    load_u16 store_u16 reg16 u16, "u16";
    /// Loads 32 bits from shared memory.
    load_u32 store_u32 reg32 u32, "u32";
}

/// Adds `value` to a word of shared memory, as one.
///
/// # Safety
/// `address` lies in the block's shared memory, aligned, and nothing accesses it meanwhile but by this function.
#[inline(always)]
pub unsafe fn add_u32(address: u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("red.shared.add.u32 [{}], {};", in(reg32) address, in(reg32) value,
            options(nostack, preserves_flags));
    }
}

/// The same, and gives what was there.
///
/// # Safety
/// As [`add_u32`].
#[inline(always)]
pub unsafe fn fetch_add_u32(address: u32, value: u32) -> u32 {
    let mut before: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("atom.shared.add.u32 {}, [{}], {};", out(reg32) before, in(reg32) address, in(reg32) value,
            options(nostack, preserves_flags));
    }
    before
}

/// Stores a float to shared memory.
///
/// # Safety
/// `address` lies in the block's shared memory, aligned to the access.
#[inline(always)]
pub unsafe fn store_f32(address: u32, value: f32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.shared.f32 [{}], {};", in(reg32) address, in(reg32) value,
            options(nostack, preserves_flags));
    }
}

/// Loads a byte from shared memory.
///
/// # Safety
/// `address` lies in the block's shared memory.
#[inline(always)]
pub unsafe fn load_u8(address: u32) -> u32 {
    let mut value: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.shared.u8 {}, [{}];", out(reg32) value, in(reg32) address,
            options(readonly, nostack, preserves_flags));
    }
    value
}

/// Stores the low byte of `value` to shared memory.
///
/// # Safety
/// `address` lies in the block's shared memory.
#[inline(always)]
pub unsafe fn store_u8(address: u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.shared.u8 [{}], {};", in(reg32) address, in(reg32) value,
            options(nostack, preserves_flags));
    }
}

/// [`store_u8`] if `really`, without a branch.
///
/// # Safety
/// As [`store_u8`], if `really`.
#[inline(always)]
pub unsafe fn store_u8_if(address: u32, value: u32, really: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred really;",
            "setp.ne.u32 really, {}, 0;",
            "@really st.shared.u8 [{}], {}; }}",
            in(reg32) u32::from(really), in(reg32) address, in(reg32) value,
            options(nostack, preserves_flags));
    }
}

/// Loads a byte from shared memory if `is_byte` is not 0, or else the `AT`-th 16 bits from `whole`
/// on, without a branch.
///
/// # Safety
/// What is loaded lies in the block's shared memory, aligned to the access.
#[inline(always)]
pub unsafe fn load_byte_or_u16<const AT: usize>(is_byte: u32, byte: u32, whole: u32) -> u32 {
    let mut value: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred byte;",
            "setp.ne.u32 byte, {is_byte}, 0;",
            "@byte ld.shared.u8 {value}, [{byte}];",
            "@!byte ld.shared.u16 {value}, [{whole} + {at}]; }}",
            is_byte = in(reg32) is_byte, value = out(reg32) value, byte = in(reg32) byte,
            whole = in(reg32) whole, at = const 2 * AT,
            options(readonly, nostack, preserves_flags));
    }
    value
}

/// Loads 128 bits from shared memory where it is written: the assembler keeps volatile loads in order,
/// and would put others off.
///
/// # Safety
/// As [`load_u32`].
#[inline(always)]
pub unsafe fn load_u32x4_in_order(address: u32) -> [u32; 4] {
    let mut value = [0; 4];
    // SAFETY: the caller's promise.
    unsafe { load_u32x4_if(&mut value, address, true) };
    value
}

/// [`load_u32x4_in_order`] into `value` if `really`, without a branch.
///
/// # Safety
/// As [`load_u32`], if `really`.
#[inline(always)]
pub unsafe fn load_u32x4_if(value: &mut [u32; 4], address: u32, really: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred really;",
            "setp.ne.u32 really, {}, 0;",
            "@really ld.volatile.shared.v4.u32 {{{}, {}, {}, {}}}, [{}]; }}",
            in(reg32) u32::from(really),
            inout(reg32) value[0], inout(reg32) value[1], inout(reg32) value[2], inout(reg32) value[3],
            in(reg32) address, options(nostack, preserves_flags));
    }
}

/// Loads 32 bits from shared memory into `value` if `really`, as [`load_u32x4_if`] does.
///
/// # Safety
/// As [`load_u32`], if `really`.
#[inline(always)]
pub unsafe fn load_u32_if(value: &mut u32, address: u32, really: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred really;",
            "setp.ne.u32 really, {}, 0;",
            "@really ld.volatile.shared.u32 {}, [{}]; }}",
            in(reg32) u32::from(really), inout(reg32) *value, in(reg32) address,
            options(nostack, preserves_flags));
    }
}

/// Loads 128 bits from shared memory.
///
/// # Safety
/// As [`load_u32`].
#[inline(always)]
pub unsafe fn load_u32x4(address: u32) -> [u32; 4] {
    let (mut a, mut b, mut c, mut d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.shared.v4.u32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address,
            options(readonly, nostack, preserves_flags));
    }
    [a, b, c, d]
}

/// Loads 64 bits from shared memory.
///
/// # Safety
/// As [`load_u32`].
#[inline(always)]
pub unsafe fn load_u32x2(address: u32) -> [u32; 2] {
    let (mut a, mut b): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.shared.v2.u32 {{{}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, in(reg32) address, options(readonly, nostack, preserves_flags));
    }
    [a, b]
}

/// Stores 128 bits to shared memory.
///
/// # Safety
/// As [`store_u32`].
#[inline(always)]
pub unsafe fn store_u32x4(address: u32, [a, b, c, d]: [u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.shared.v4.u32 [{}], {{{}, {}, {}, {}}};",
            in(reg32) address, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
            options(nostack, preserves_flags));
    }
}

/// Loads 128 bits of global memory that nothing writes while the kernel runs.
///
/// # Safety
/// `address` is readable for 16 bytes and 16-byte aligned.
#[inline(always)]
pub unsafe fn load_global_u32x4(address: *const u8) -> [u32; 4] {
    let (mut a, mut b, mut c, mut d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.nc.L1::no_allocate.v4.u32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    [a, b, c, d]
}

/// Loads 32 bits of global memory that nothing writes while the kernel runs.
///
/// # Safety
/// `address` is readable for 4 bytes and aligned.
#[inline(always)]
pub unsafe fn load_global_u32(address: *const u32) -> u32 {
    let mut value: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.nc.u32 {}, [{}];", out(reg32) value, in(reg64) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    value
}

/// [`load_global_u32`] if `really`, without a branch, or else 0.
///
/// # Safety
/// As [`load_global_u32`], if `really`.
#[inline(always)]
pub unsafe fn load_global_u32_if(address: *const u32, really: bool) -> u32 {
    let mut value = 0;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred really;",
            "setp.ne.u32 really, {}, 0;",
            "@really ld.global.nc.u32 {}, [{}]; }}",
            in(reg32) u32::from(really), inout(reg32) value, in(reg64) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    value
}

macro_rules! load_written {
    ($(#[$doc:meta])* $name:ident $type:ty, $suffix:literal) => {
        $(#[$doc])*
        /// Without a branch, so that many can be under way.
        ///
        /// # Safety
        /// What is loaded is readable and aligned.
        #[inline(always)]
        pub unsafe fn $name<const AT: usize>(address: *const $type, really: bool) -> u32 {
            let mut value: u32;
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "{{ .reg .pred really;",
                    "setp.ne.u32 really, {really}, 0;",
                    "mov.u32 {value}, 0;",
                    concat!("@really ld.global.", $suffix, " {value}, [{address} + {at}]; }}"),
                    really = in(reg32) u32::from(really), value = out(reg32) value,
                    address = in(reg64) address, at = const AT * size_of::<$type>(),
                    options(readonly, nostack, preserves_flags));
            }
            value
        }
    };
}

load_written! {
    /// Loads, if `really`, else zero, the `AT`-th value of 16 bits from `address` on, in global
    /// memory that an earlier kernel of the stream may have written while this one was there:
    /// after a wait for that one, by the same thread.
    load_written_u16 u16, "u16"
}
load_written! {
    /// [`load_written_u16`] of 32 bits.
    load_written_u32 u32, "u32"
}

/// Loads 128 bits of global memory that an earlier kernel of the stream may have written while this one was there: after
/// a wait for that one, by the same thread.
///
/// # Safety
/// `address` is readable for 16 bytes and 16-byte aligned.
#[inline(always)]
pub unsafe fn load_written_u32x4(address: *const u16) -> [u32; 4] {
    let (mut a, mut b, mut c, mut d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.v4.u32 {{{}, {}, {}, {}}}, [{}];", out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d,
            in(reg64) address, options(readonly, nostack, preserves_flags));
    }
    [a, b, c, d]
}

/// Stores 128 bits to global memory that this kernel will not read.
///
/// # Safety
/// `address` is writable for 16 bytes and 16-byte aligned.
#[inline(always)]
pub unsafe fn store_global_u32x4(address: *mut u8, [a, b, c, d]: [u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.global.cs.v4.u32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) address, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
            options(nostack, preserves_flags));
    }
}

/// Stores 128 bits to global memory if `really`, without a branch.
///
/// # Safety
/// As [`store_global_u32x4`], if `really`.
#[inline(always)]
pub unsafe fn store_global_u32x4_if(address: *mut u8, [a, b, c, d]: [u32; 4], really: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred really;",
            "setp.ne.u32 really, {}, 0;",
            "@really st.global.cs.v4.u32 [{}], {{{}, {}, {}, {}}}; }}",
            in(reg32) u32::from(really), in(reg64) address, in(reg32) a, in(reg32) b, in(reg32) c,
            in(reg32) d, options(nostack, preserves_flags));
    }
}

/// Stores four words to global memory, each visible by itself to other blocks that
/// [`observe_u32x4`].
///
/// # Safety
/// `address` is writable for 16 bytes and 16-byte aligned.
#[inline(always)]
pub unsafe fn publish_u32x4(address: *mut f32, [a, b, c, d]: [u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.relaxed.gpu.global.v4.u32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) address, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
            options(nostack, preserves_flags));
    }
}

/// Loads four words of global memory as other blocks [`publish_u32x4`] them.
///
/// # Safety
/// `address` is readable for 16 bytes and 16-byte aligned.
#[inline(always)]
pub unsafe fn observe_u32x4(address: *const f32) -> [u32; 4] {
    let (mut a, mut b, mut c, mut d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.relaxed.gpu.global.v4.u32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) address,
            options(nostack, preserves_flags));
    }
    [a, b, c, d]
}

/// Loads a word of global memory as it is, whatever earlier loads have left in the first-level cache.
///
/// # Safety
/// `address` is readable and aligned.
#[inline(always)]
pub unsafe fn observe_u32(address: *const u32) -> u32 {
    let mut value: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.relaxed.gpu.global.u32 {}, [{}];", out(reg32) value, in(reg64) address,
            options(nostack, preserves_flags));
    }
    value
}

/// Stores a word where another device may see it; one that [sees it](acquire_u32) finds all that this thread knows to be
/// there.
///
/// # Safety
/// `address` is writable and aligned, of this device's memory or a peer's.
#[inline(always)]
pub unsafe fn release_u32(address: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.release.sys.global.u32 [{}], {};", in(reg64) address, in(reg32) value,
            options(nostack, preserves_flags));
    }
}

/// Loads a word that another device may [release](release_u32).
///
/// # Safety
/// `address` is readable and aligned.
#[inline(always)]
pub unsafe fn acquire_u32(address: *const u32) -> u32 {
    let mut value: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.acquire.sys.global.u32 {}, [{}];", out(reg32) value, in(reg64) address,
            options(nostack, preserves_flags));
    }
    value
}

/// Stores four words to global memory, which another block may have bulk copies read after
/// [`count_warp`] here and [`await_count`] there.
///
/// # Safety
/// `address` is writable for 16 bytes and 16-byte aligned.
#[inline(always)]
pub unsafe fn leave_u32x4(address: *mut f32, [a, b, c, d]: [u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.global.v4.u32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) address, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
            options(nostack, preserves_flags));
    }
}

/// Adds `value` to a word of global memory, as one, and gives what was there.
///
/// # Safety
/// `address` is aligned, and nothing accesses it meanwhile but by this function.
#[inline(always)]
pub unsafe fn fetch_add_global_u32(address: *mut u32, value: u32) -> u32 {
    let mut before: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("atom.relaxed.gpu.global.add.u32 {}, [{}], {};", out(reg32) before, in(reg64) address,
            in(reg32) value, options(nostack, preserves_flags));
    }
    before
}

/// Adds `value` to 64 bits of global memory, as one.
///
/// # Safety
/// `address` is aligned, and nothing accesses it meanwhile but by this function.
#[inline(always)]
pub unsafe fn add_global_u64(address: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("red.relaxed.gpu.global.add.u64 [{}], {};", in(reg64) address, in(reg64) value,
            options(nostack, preserves_flags));
    }
}

/// The larger of `value` and 64 bits of global memory, as one.
///
/// # Safety
/// As [`add_global_u64`].
#[inline(always)]
pub unsafe fn max_global_u64(address: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("red.relaxed.gpu.global.max.u64 [{}], {};", in(reg64) address, in(reg64) value,
            options(nostack, preserves_flags));
    }
}

/// How many blocks have come to `counter` before this one. What threads of this block have stored before they met is
/// there for those that come later, and what those before it have stored is there for threads that meet this one next.
///
/// # Safety
/// `counter` is a word of global memory; one thread of the block runs this.
#[inline(always)]
pub unsafe fn count_block(counter: *mut u32) -> u32 {
    let mut before: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("fence.acq_rel.gpu;",
            "atom.relaxed.gpu.global.add.u32 {}, [{}], 1;",
            "fence.acq_rel.gpu;",
            out(reg32) before, in(reg64) counter, options(nostack, preserves_flags));
    }
    before
}

/// The exclusive or of `value` and 32 bits of global memory, as one.
///
/// # Safety
/// As [`add_global_u64`].
#[inline(always)]
pub unsafe fn xor_global_u32(address: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("red.relaxed.gpu.global.xor.b32 [{}], {};", in(reg64) address, in(reg32) value,
            options(nostack, preserves_flags));
    }
}

/// Counts the warp at `counter`, when all that its lanes have stored is there for other blocks.
///
/// # Safety
/// `counter` is a word of global memory; all lanes of the warp run this.
#[inline(always)]
pub unsafe fn count_warp(counter: *mut u32, lane: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{{ .reg .pred first;",
            "setp.eq.u32 first, {lane}, 0;",
            "fence.proxy.async;",
            "fence.acq_rel.gpu;",
            "bar.warp.sync 0xffffffff;",
            "@first red.relaxed.gpu.global.add.u32 [{counter}], 1; }}",
            lane = in(reg32) lane, counter = in(reg64) counter, options(nostack, preserves_flags));
    }
}

/// Waits for `count` warps at `counter`, and empties it. Bulk copies that this thread starts then
/// see what they have stored.
///
/// # Safety
/// `counter` is a word of global memory for which no other thread waits.
#[inline(always)]
pub unsafe fn await_count(counter: *mut u32, count: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        loop {
            let mut value: u32;
            asm!("ld.relaxed.gpu.global.u32 {}, [{}];", out(reg32) value, in(reg64) counter,
                options(nostack, preserves_flags));
            if value == count {
                break;
            }
        }
        asm!("fence.acq_rel.gpu;", "fence.proxy.async;", "st.relaxed.gpu.global.u32 [{}], 0;",
            in(reg64) counter,
            options(nostack, preserves_flags));
    }
}

/// Loads 16 bits of global memory that nothing writes while the kernel runs.
///
/// # Safety
/// `address` is readable for 2 bytes and aligned.
#[inline(always)]
pub unsafe fn load_global_u16(address: *const u16) -> u16 {
    let mut value: u16;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.nc.u16 {}, [{}];", out(reg16) value, in(reg64) address,
            options(pure, readonly, nostack, preserves_flags));
    }
    value
}

/// Stores 64 bits to global memory that this kernel will not read.
///
/// # Safety
/// `address` is writable for 8 bytes and 8-byte aligned.
#[inline(always)]
pub unsafe fn store_global_u32x2(address: *mut u8, [a, b]: [u32; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.global.v2.u32 [{}], {{{}, {}}};",
            in(reg64) address, in(reg32) a, in(reg32) b, options(nostack, preserves_flags));
    }
}
