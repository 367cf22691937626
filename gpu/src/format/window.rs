//! Which window a matrix gets.

use super::layout::{MAX_BASE, WINDOW, is_base, scale};

/// The base of the window that leaves the fewest outliers, of those that can be stored, the lowest of equals; and how
/// many it leaves. `counts` are those of weights by exponent.
#[inline(always)]
pub fn best(counts: &[u64; 256]) -> (u8, u64) {
    // The GPU has no panics.
    let count = |exponent: u32| counts.get(exponent as usize).copied().unwrap_or(0);
    let (mut total, mut most) = (0, 0);
    for exponent in 0..256 {
        total += count(exponent);
        // No scaled weight may become infinite.
        if exponent < 255 && count(exponent) > 0 {
            most = exponent;
        }
    }
    let (mut best, mut fewest) = (0, u64::MAX);
    let mut base = 0;
    while base <= MAX_BASE {
        if is_base(base) && most + scale(base) < 255 {
            let mut inside = 0;
            for i in 0..WINDOW {
                inside += count(u32::from(base) + i);
            }
            if total - inside < fewest {
                (best, fewest) = (base, total - inside);
            }
        }
        base += 1;
    }
    (best, fewest)
}
