//! What the examples multiply, and what must come out of it.

use half::bf16;

/// Values between `scale` and its negative; one in a thousand is 400 times as large, so that
/// weights have patches.
pub fn values(len: usize, scale: f32) -> Vec<bf16> {
    let value = |i: usize| {
        let scale = if i.is_multiple_of(1009) {
            400.0 * scale
        } else {
            scale
        };
        bf16::from_f32(scale * (0.7 * i as f32).sin())
    };
    (0..len).map(value).collect()
}

/// Their bits, as the GPU side takes them.
#[allow(dead_code, reason = "candle takes values")]
pub fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Compares `y`, N rows of M, with Y[N, M] = X[N, K] W[M, K]^T in FP64: an output may be off by
/// `rounding` of itself and by what FP32 sums lose.
///
/// # Errors
/// The first wrong output.
pub fn check(w: &[bf16], x: &[bf16], k: usize, y: &[f32], rounding: f64) -> Result<(), String> {
    let sums = x.chunks(k).flat_map(|x| {
        w.chunks(k).map(move |w| {
            let terms = x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64());
            terms.fold((0.0, 0.0), |(sum, all), term| {
                (sum + term, all + term.abs())
            })
        })
    });
    for (at, (exact, all)) in sums.enumerate() {
        let is = f64::from(y[at]);
        // Also false for a NaN.
        let close = (is - exact).abs() <= rounding * exact.abs() + 1e-5 * all;
        if !close {
            return Err(format!("output {at} is {is}, not {exact}"));
        }
    }
    Ok(())
}
