//! Functions of one number, as fast as the GPU has them.

use core::arch::asm;

/// Two to the power of `x`, to 2^-22 of it.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let mut y: f32;
    // SAFETY: computes a number.
    unsafe {
        asm!("ex2.approx.ftz.f32 {}, {};", out(reg32) y, in(reg32) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    y
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

/// x / (1 + e^-x), to a few units in the last place.
#[inline(always)]
fn silu(x: f32) -> f32 {
    x * reciprocal(1.0 + exp2(-core::f32::consts::LOG2_E * x))
}

/// silu(gate) x up, of pairs of BF16: what a gated MLP has between its products.
#[inline(always)]
pub fn gated(gate: u32, up: u32) -> [f32; 2] {
    // A BF16 is the upper half of an FP32.
    let value = |bits: u32| f32::from_bits(bits & 0xFFFF_0000);
    [
        silu(value(gate << 16)) * value(up << 16),
        silu(value(gate)) * value(up),
    ]
}
