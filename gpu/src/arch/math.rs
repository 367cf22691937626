//! Functions of one number, as fast as the GPU has them.

use core::arch::asm;

/// Two to the power of `x`, to 2^-22 of it.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let mut y: f32;
    // SAFETY: computes a number.
    unsafe {
        asm!("ex2.approx.ftz.f32 {}, {};", out(reg32) y, in(reg32) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    y
}

/// `x * y + z`, rounded once.
#[inline(always)]
pub fn multiply_add(x: f32, y: f32, z: f32) -> f32 {
    let mut sum: f32;
    // SAFETY: computes a number.
    unsafe {
        asm!("fma.rn.f32 {}, {}, {}, {};", out(reg32) sum, in(reg32) x, in(reg32) y, in(reg32) z,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// One over `x`, to one unit in the last place.
#[inline(always)]
fn reciprocal(x: f32) -> f32 {
    let mut y: f32;
    // SAFETY: computes a number.
    unsafe {
        asm!("rcp.approx.ftz.f32 {}, {};", out(reg32) y, in(reg32) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    y
}

/// One over the square root of `x`, to a unit in the last place.
#[inline(always)]
pub fn rsqrt(x: f32) -> f32 {
    let mut y: f32;
    // SAFETY: computes a number.
    unsafe {
        asm!("rsqrt.approx.ftz.f32 {}, {};", out(reg32) y, in(reg32) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    y
}

/// The larger of two, or the one that is a number.
#[inline(always)]
pub fn max(x: f32, y: f32) -> f32 {
    let mut z: f32;
    // SAFETY: computes a number.
    unsafe {
        asm!("max.f32 {}, {}, {};", out(reg32) z, in(reg32) x, in(reg32) y,
            options(pure, nomem, nostack, preserves_flags));
    }
    z
}

/// x / (1 + e^-x), to a few units in the last place.
#[inline(always)]
fn silu(x: f32) -> f32 {
    x * reciprocal(1.0 + exp2(-core::f32::consts::LOG2_E * x))
}

/// silu(gate) x up, of pairs of BF16: what a gated MLP has between its products.
#[inline(always)]
pub fn gated(gate: u32, up: u32) -> [f32; 2] {
    let (gate, up) = (from_bf16_pair(gate), from_bf16_pair(up));
    [silu(gate[0]) * up[0], silu(gate[1]) * up[1]]
}

/// The values of a pair of BF16, that of the low half first.
#[inline(always)]
pub fn from_bf16_pair(pair: u32) -> [f32; 2] {
    // A BF16 is the upper half of an FP32.
    [
        f32::from_bits(pair << 16),
        f32::from_bits(pair & 0xFFFF_0000),
    ]
}

/// Two pairs of 16 bits from the low halves of two words, or from their high halves.
#[inline(always)]
pub fn join_halves<const HIGH: bool>(first: u32, second: u32) -> u32 {
    let mut pair: u32;
    let selector: u32 = if HIGH { 0x7632 } else { 0x5410 };
    // SAFETY: picks bytes.
    unsafe {
        asm!("prmt.b32 {}, {}, {}, {};", out(reg32) pair, in(reg32) first, in(reg32) second, in(reg32) selector,
            options(pure, nomem, nostack, preserves_flags));
    }
    pair
}
