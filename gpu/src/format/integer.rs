//! The integer operations of the decodes: one instruction each on the GPU, plain Rust elsewhere. The
//! compiler would take them apart on the GPU, so they are spelt out there.

/// `factor * value + addend`, wrapping.
#[inline(always)]
pub fn multiply_add<const FACTOR: u32>(value: u32, addend: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let mut result: u32;
        // SAFETY: arithmetic.
        unsafe {
            core::arch::asm!("mad.lo.u32 {}, {}, {}, {};",
                out(reg32) result, in(reg32) value, const FACTOR, in(reg32) addend,
                options(pure, nomem, nostack, preserves_flags));
        }
        result
    }
    #[cfg(not(target_arch = "nvptx64"))]
    value.wrapping_mul(FACTOR).wrapping_add(addend)
}

/// The low two bytes of `low`, each with that of `high` above it, or the high two with `HIGH`.
#[inline(always)]
pub fn interleave<const HIGH: bool>(low: u32, high: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let mut result: u32;
        // SAFETY: arithmetic.
        unsafe {
            core::arch::asm!("prmt.b32 {}, {}, {}, {};",
                out(reg32) result, in(reg32) low, in(reg32) high, const if HIGH { 0x7362 } else { 0x5140 },
                options(pure, nomem, nostack, preserves_flags));
        }
        result
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let at = if HIGH { 16 } else { 0 };
        let half = |value: u32| (value >> at & 0xFF) | (value >> at & 0xFF00) << 8;
        half(low) | half(high) << 8
    }
}

/// The bits of `MASK` of `value`, and all of `rest`.
#[inline(always)]
pub fn masked_or<const MASK: u32>(value: u32, rest: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let mut result: u32;
        // SAFETY: arithmetic.
        unsafe {
            core::arch::asm!("lop3.b32 {}, {}, {}, {}, 0xf8;",
                out(reg32) result, in(reg32) rest, in(reg32) value, const MASK,
                options(pure, nomem, nostack, preserves_flags));
        }
        result
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        value & MASK | rest
    }
}

/// The lowest byte of `first` twice, then that of `second` twice.
#[inline(always)]
pub fn double_low_bytes(first: u32, second: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let mut result: u32;
        // SAFETY: arithmetic.
        unsafe {
            core::arch::asm!("prmt.b32 {}, {}, {}, 0x4400;",
                out(reg32) result, in(reg32) first, in(reg32) second,
                options(pure, nomem, nostack, preserves_flags));
        }
        result
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        ((first & 0xFF) * 0x0101) | ((second & 0xFF) * 0x0101_0000)
    }
}

/// The bits of `MASK` from `ones`, the others from `zeros`.
#[inline(always)]
pub fn select_bits<const MASK: u32>(ones: u32, zeros: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let mut result: u32;
        // SAFETY: arithmetic.
        unsafe {
            core::arch::asm!("lop3.b32 {}, {}, {}, {}, 0xe4;",
                out(reg32) result, in(reg32) ones, in(reg32) zeros, const MASK,
                options(pure, nomem, nostack, preserves_flags));
        }
        result
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        ones & MASK | zeros & !MASK
    }
}
