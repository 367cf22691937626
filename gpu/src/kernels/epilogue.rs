//! From sums to outputs, the same for all multiplications:
//!
//! ```text
//! sum over K ---> + bias ---> + old output ---> round, if outputs are BF16 ---> store
//!  FP32            BF16        BF16 or FP32
//! ```
//!
//! In this order, each addition in FP32. An earlier kernel of the stream may have written the bias
//! and the old outputs, so only threads that have called [`crate::arch::grid::wait_dependencies`]
//! themselves load them. What they load stays bits until it is added, for a conversion would wait
//! for it.

use crate::{
    arch::{math, memory, mma, thread},
    args::Output,
};

/// The outputs of a launch.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    output: &'a Output,
    pitch: u32,
    m: u32,
    n: u32,
}

impl<'a> Epilogue<'a> {
    /// The outputs of `m` features and `n` tokens.
    #[inline(always)]
    pub fn new(output: &'a Output, m: u32, n: u32) -> Self {
        Self {
            output,
            // Or else the compiler would keep its multiples in registers from the kernel's start.
            pitch: thread::opaque(output.pitch),
            m,
            n,
        }
    }

    /// Where eight features from `feature` on of every `STEP`-th token from `token` on go, if outputs are
    /// [plain](Self::is_plain).
    #[inline(always)]
    pub fn lines<const STEP: u32>(&self, token: u32, feature: u32) -> Lines<STEP> {
        Lines {
            to: self.row(token).wrapping_add(2 * feature as usize),
            step: u64::from(STEP) * u64::from(self.pitch),
            left: self.n as i32 - token as i32,
        }
    }

    /// Whether there is a bias to [add](Self::add_bias).
    #[inline(always)]
    pub fn has_bias(&self) -> bool {
        !self.output.bias.is_null()
    }

    /// Whether there are old outputs to [add](Self::add_old).
    #[inline(always)]
    pub fn accumulates(&self) -> bool {
        self.output.accumulate
    }

    /// Whether outputs are FP32.
    #[inline(always)]
    pub fn is_f32(&self) -> bool {
        self.output.is_f32
    }

    /// Whether outputs are sums, rounded, and all of `features` from a multiple of eight on can be stored
    /// eight at a time.
    #[inline(always)]
    pub fn is_plain(&self, feature: u32, features: u32) -> bool {
        let aligned = (self.output.y as u64 | u64::from(self.pitch)).is_multiple_of(16);
        let special = self.has_bias() | self.accumulates() | self.is_f32();
        aligned & !special & (feature + features <= self.m)
    }

    /// How many features of a token there are from `feature` on.
    #[inline(always)]
    fn left(&self, token: u32, feature: u32) -> u32 {
        match token < self.n {
            true => self.m.saturating_sub(feature),
            false => 0,
        }
    }

    /// Where a token's outputs start.
    #[inline(always)]
    fn row(&self, token: u32) -> *mut u8 {
        self.output
            .y
            .wrapping_add(token as usize * self.pitch as usize)
    }

    /// Starts to load the bias of feature `feature + AT`, if there are both.
    ///
    /// # Safety
    /// The bias is readable, and this thread has waited for earlier kernels.
    #[inline(always)]
    pub unsafe fn bias<const AT: usize>(&self, feature: u32) -> u32 {
        let there = self.has_bias() && self.m.saturating_sub(feature) > AT as u32;
        let bias = self.output.bias.wrapping_add(feature as usize);
        // SAFETY: the caller's promise.
        unsafe { memory::load_written_u16::<AT>(bias, there) }
    }

    /// Starts to load the old output of feature `feature + AT`, if there is one, where outputs
    /// are FP32 or not as `F32` says.
    ///
    /// # Safety
    /// The outputs are readable, and this thread has waited for earlier kernels.
    #[inline(always)]
    pub unsafe fn old<const F32: bool, const AT: usize>(&self, token: u32, feature: u32) -> u32 {
        let there = self.left(token, feature) > AT as u32;
        let (row, feature) = (self.row(token), feature as usize);
        // SAFETY: the caller's promise.
        unsafe {
            if F32 {
                memory::load_written_u32::<AT>(row.cast::<u32>().wrapping_add(feature), there)
            } else {
                memory::load_written_u16::<AT>(row.cast::<u16>().wrapping_add(feature), there)
            }
        }
    }

    /// Adds a [`bias`](Self::bias).
    #[inline(always)]
    pub fn add_bias(&self, sum: &mut f32, bias: u32) {
        *sum += f32::from_bits(bias << 16);
    }

    /// Adds an [`old`](Self::old) output.
    #[inline(always)]
    pub fn add_old(&self, sum: &mut f32, old: u32) {
        *sum += f32::from_bits(if self.is_f32() { old } else { old << 16 });
    }

    /// Stores the output of feature `feature + AT`, which is FP32.
    ///
    /// # Safety
    /// The outputs are writable and FP32.
    #[inline(always)]
    pub unsafe fn store_f32<const AT: usize>(&self, token: u32, feature: u32, value: f32) {
        if self.left(token, feature) > AT as u32 {
            let y = self.row(token).cast::<f32>();
            // SAFETY: the caller's promise.
            unsafe { *y.wrapping_add(feature as usize + AT) = value };
        }
    }

    /// Adds [`bias`](Self::bias) and [`old`](Self::old) outputs to the sums of four features of a
    /// token, and stores the outputs.
    ///
    /// # Safety
    /// The outputs are writable.
    #[inline(always)]
    pub unsafe fn store_four(
        &self,
        token: u32,
        feature: u32,
        mut sums: [f32; 4],
        bias: [u32; 4],
        old: [u32; 4],
    ) {
        if self.has_bias() {
            unroll!(I < 4 => { self.add_bias(&mut sums[I], bias[I]); });
        }
        if self.accumulates() {
            unroll!(I < 4 => { self.add_old(&mut sums[I], old[I]); });
        }
        let left = self.left(token, feature);
        // SAFETY: the caller's promise.
        unsafe {
            if self.is_f32() {
                let y = self.row(token).cast::<f32>().wrapping_add(feature as usize);
                if left >= 4 && y as u64 % 16 == 0 {
                    memory::store_global_u32x4(y.cast(), sums.map(f32::to_bits));
                } else {
                    unroll!(I < 4 => { self.store_f32::<I>(token, feature, sums[I]); });
                }
            } else {
                let y = self.row(token).cast::<u16>().wrapping_add(feature as usize);
                let [a, b, c, d] = sums;
                let pairs = [mma::to_bf16_pair(a, b), mma::to_bf16_pair(c, d)];
                if left >= 4 && y as u64 % 8 == 0 {
                    memory::store_global_u32x2(y.cast(), pairs);
                } else {
                    unroll!(I < 4 => { store_half(y, I, pairs[I / 2], left); });
                }
            }
        }
    }

    /// Gates eight features of a token that are BF16, and stores the outputs. Nothing is added to them.
    ///
    /// # Safety
    /// The outputs are writable.
    #[inline(always)]
    pub unsafe fn store_gated(&self, token: u32, feature: u32, gate: [u32; 4], up: [u32; 4]) {
        let mut sums = [0.0; 8];
        unroll!(I < 4 => { [sums[2 * I], sums[2 * I + 1]] = math::gated(gate[I], up[I]); });
        let [a, b, c, d, e, f, g, h] = sums;
        // SAFETY: the caller's promise.
        unsafe {
            if self.is_f32() {
                self.store_four(token, feature, [a, b, c, d], [0; 4], [0; 4]);
                self.store_four(token, feature + 4, [e, f, g, h], [0; 4], [0; 4]);
            } else {
                let pairs = [(a, b), (c, d), (e, f), (g, h)];
                let pairs = pairs.map(|(first, second)| mma::to_bf16_pair(first, second));
                self.store_eight(token, feature, pairs);
            }
        }
    }

    /// Stores eight features of a token that are BF16 already.
    ///
    /// # Safety
    /// The outputs are writable and BF16.
    #[inline(always)]
    pub unsafe fn store_eight(&self, token: u32, feature: u32, pairs: [u32; 4]) {
        let left = self.left(token, feature);
        let y = self.row(token).cast::<u16>().wrapping_add(feature as usize);
        // SAFETY: the caller's promise.
        unsafe {
            if left >= 8 && y as u64 % 16 == 0 {
                memory::store_global_u32x4(y.cast(), pairs);
            } else {
                unroll!(I < 8 => { store_half(y, I, pairs[I / 2], left); });
            }
        }
    }
}

/// Where a thread stores eight features of every `STEP`-th token.
pub struct Lines<const STEP: u32> {
    to: *mut u8,
    /// Bytes from one of these tokens to the next.
    step: u64,
    /// Tokens that are left, with the first.
    left: i32,
}

impl<const STEP: u32> Lines<STEP> {
    /// Stores the next token's.
    ///
    /// # Safety
    /// The outputs are writable.
    #[inline(always)]
    pub unsafe fn store(&mut self, pairs: [u32; 4]) {
        // SAFETY: the caller's promise.
        unsafe { memory::store_global_u32x4_if(self.to, pairs, self.left > 0) };
        self.to = self.to.wrapping_add(self.step as usize);
        self.left -= STEP as i32;
    }
}

/// Stores the `i`-th value from `y` on, its half of `pair`, if there are more than `i` left.
#[inline(always)]
unsafe fn store_half(y: *mut u16, i: usize, pair: u32, left: u32) {
    if (i as u32) < left {
        // SAFETY: the caller's promise.
        unsafe { *y.add(i) = (pair >> (16 * (i % 2))) as u16 };
    }
}
