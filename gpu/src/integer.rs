//! The integer operations of the decodes: one instruction each on the GPU, plain Rust elsewhere. The compiler would take them apart on the GPU, so they are spelt out there.

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

/// Each of bytes 0 and 1 of `value` twice, or of bytes 2 and 3 with `HIGH`.
#[inline(always)]
pub fn double_bytes<const HIGH: bool>(value: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let mut result: u32;
        // SAFETY: arithmetic.
        unsafe {
            core::arch::asm!("prmt.b32 {}, {}, 0, {};",
                out(reg32) result, in(reg32) value, const if HIGH { 0x3322 } else { 0x1100 },
                options(pure, nomem, nostack, preserves_flags));
        }
        result
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let low = if HIGH { value >> 16 } else { value };
        ((low & 0xFF) * 0x0101) | ((low >> 8 & 0xFF) * 0x0101_0000)
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
