//! x = h g / sqrt(mean(h^2) + e): RMSNorm of a token's state, to which something may be added first.
//!
//! ```text
//! gains --cp.async, before the wait--> shared memory ---------------------------------+
//! h, FP32, or zero --cp.async--> shared memory -+                                     |
//! addend, BF16 -------LDG-----------------------+--> h --> squares --block's sum--> x, BF16 --> store; h, if changed
//! ```
//!
//! A block has a token. Bound by the time of one load, a sum over the block, one store. A product has a block on each SM
//! and leaves 4096 registers there: those of a block here, which may have its SM together with one of the product behind
//! it, whose weights are on their way then, or ahead of it. So what is on its way is in shared memory and not in
//! registers. A thread copies what it reads itself: none waits for another's.

use zipserv_gpu::launch::Launch;

use crate::blocks_of_32_registers;

/// Threads of a block.
pub const THREADS: usize = 128;
/// Features, at most; a multiple of 4.
pub const MOST_FEATURES: usize = 16_384;
/// Bytes of a sum for each warp.
pub(crate) const SUMS_BYTES: usize = 4 * THREADS / 32;

/// Bytes of shared memory for so many features: sums, states, gains.
pub const fn shared_bytes(features: usize) -> usize {
    SUMS_BYTES + 4 * features + 2 * features
}

/// As many registers as a product's block leaves. Shared memory is what a row has, [`shared_bytes`].
pub const LAUNCH: Launch = Launch {
    name: "norm",
    threads: THREADS,
    min_blocks: blocks_of_32_registers(THREADS),
    shared_bytes: shared_bytes(MOST_FEATURES),
    cluster: 1,
};

/// The kernel's one parameter: a block a row.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// Outputs, rows of BF16, aligned to 8 bytes.
    pub x: *mut u16,
    /// States, rows of FP32, aligned to 16 bytes.
    pub h: *mut f32,
    /// What is added to states first, rows of BF16, aligned to 8 bytes; null if nothing.
    pub added: *const u16,
    /// BF16, aligned to 8 bytes.
    pub gains: *const u16,
    /// The row of states of each output's; its own if null.
    pub rows: *const u32,
    /// Whether states start, from zero; else they are there.
    pub starts: bool,
    /// Features, at most [`MOST_FEATURES`], a multiple of 4.
    pub features: u32,
    /// What is added to the mean.
    pub epsilon: f32,
}

#[cfg(target_arch = "nvptx64")]
pub(crate) mod device {
    use zipserv_gpu::{
        arch::{copy, grid, math, memory, mma, thread},
        unroll,
    };

    use super::{Args, SUMS_BYTES, THREADS};

    const WARPS: u32 = THREADS as u32 / 32;

    zipserv_gpu::kernel! {
        /// Norms the row of this block.
        ///
        /// # Safety
        /// `args` have as many rows as there are blocks, which are launched as [`super::LAUNCH`] has them, with
        /// [`super::shared_bytes`].
        fn norm(args: super::Args) {
            // SAFETY: ranges are the caller's promise; all threads meet at the block's barriers.
            unsafe {
                grid::launch_dependents();
                let row = Row::<8>::new(&args);
                row.copy_gains(&args);
                grid::wait_dependencies();
                let state = row.state(&args);
                let h = args.h.add(state);
                if !args.starts {
                    row.copy_state(h);
                }
                copy::commit_chunks();
                if args.added.is_null() {
                    copy::wait_chunks::<0>();
                    row.finish(&args, None, row.squares());
                } else {
                    let sum = row.add(&args, args.added.add(state));
                    row.finish(&args, Some(h), sum);
                }
            }
        }
    }

    /// Fours of gains in a line of the L2 cache.
    const LINE_FOURS: u32 = 128 / 8;

    /// The row of this block, of which a thread has every `THREADS`-th four features; four gains follow four others after
    /// so many bytes.
    #[derive(Clone, Copy)]
    pub struct Row<const GAINS_BYTES: u32> {
        /// The thread's first four.
        pub own: u32,
        /// Fours of features.
        pub fours: u32,
        /// Where states are in shared memory, behind the sums.
        states: u32,
    }

    impl<const GAINS_BYTES: u32> Row<GAINS_BYTES> {
        #[inline(always)]
        pub fn new(args: &Args) -> Self {
            Self {
                // SAFETY: every thread has an index.
                own: unsafe { thread::thread() } as u32,
                fours: args.features / 4,
                states: memory::shared() + SUMS_BYTES as u32,
            }
        }

        /// Where the state's first feature is in `args.h`.
        #[inline(always)]
        pub unsafe fn state(self, args: &Args) -> usize {
            // SAFETY: the kernel's promise.
            unsafe {
                let row = thread::block() as usize;
                let state = match args.rows.is_null() {
                    true => row,
                    false => memory::observe_u32(args.rows.add(row)) as usize,
                };
                state * args.features as usize
            }
        }

        /// Address of four features of the state in shared memory.
        #[inline(always)]
        pub fn four(self, at: u32) -> u32 {
            self.states + 16 * at
        }

        /// Address of four gains, behind the states.
        #[inline(always)]
        pub fn gains(self, at: u32) -> u32 {
            self.states + 16 * self.fours + GAINS_BYTES * at
        }

        /// Has gains come to the L2 cache.
        #[inline(always)]
        pub unsafe fn prefetch_gains(self, args: &Args) {
            let mut at = LINE_FOURS * self.own;
            while at < self.fours {
                // SAFETY: the kernel's promise.
                copy::prefetch(unsafe { args.gains.add(4 * at as usize).cast() });
                at += LINE_FOURS * THREADS as u32;
            }
        }

        /// Starts to copy gains.
        #[inline(always)]
        pub unsafe fn copy_gains(self, args: &Args) {
            let mut at = self.own;
            while at < self.fours {
                // SAFETY: the kernel's promise; the place is this thread's.
                unsafe { copy::half_chunk(self.gains(at), args.gains.add(4 * at as usize).cast()) };
                at += THREADS as u32;
            }
        }

        /// Starts to copy the state.
        #[inline(always)]
        pub unsafe fn copy_state(self, h: *const f32) {
            let mut at = self.own;
            while at < self.fours {
                // SAFETY: as for gains.
                unsafe { copy::whole_chunk(self.four(at), h.add(4 * at as usize).cast()) };
                at += THREADS as u32;
            }
        }

        /// The squares of what this thread has of the state.
        #[inline(always)]
        unsafe fn squares(self) -> f32 {
            let (mut first, mut sum) = (self.own, 0.0);
            while first < self.fours {
                let mut values = [[0.0; 4]; 4];
                // SAFETY: this thread has copied it.
                unsafe {
                    unroll!(I < 4 => {
                        let at = first + (I * THREADS) as u32;
                        if at < self.fours {
                            values[I] = load(self.four(at));
                        }
                    });
                }
                unroll!(I < 4 => { sum += squares(values[I]); });
                first += 4 * THREADS as u32;
            }
            sum
        }

        /// Adds to the state, once it has been copied, or starts it; its squares then.
        #[inline(always)]
        unsafe fn add(self, args: &Args, added: *const u16) -> f32 {
            let (mut first, mut sum) = (self.own, 0.0);
            while first < self.fours {
                let mut pairs = [[0u32; 2]; 4];
                // SAFETY: the kernel's promise; what is in shared memory is this thread's.
                unsafe {
                    unroll!(I < 4 => {
                        let at = first + (I * THREADS) as u32;
                        if at < self.fours {
                            let from = added.add(4 * at as usize).cast::<u32>();
                            pairs[I] = [memory::observe_u32(from), memory::observe_u32(from.add(1))];
                        }
                    });
                    copy::wait_chunks::<0>();
                    unroll!(I < 4 => {
                        let at = first + (I * THREADS) as u32;
                        if at < self.fours {
                            let mut values = [0.0; 4];
                            if !args.starts {
                                values = load(self.four(at));
                            }
                            let [a, b] = math::from_bf16_pair(pairs[I][0]);
                            let [c, d] = math::from_bf16_pair(pairs[I][1]);
                            let added = [a, b, c, d];
                            unroll!(E < 4 => { values[E] += added[E]; });
                            memory::store_u32x4(self.four(at), values.map(f32::to_bits));
                            sum += squares(values);
                        }
                    });
                }
                first += 4 * THREADS as u32;
            }
            sum
        }

        /// Norms the state in shared memory, of which this thread's squares have this sum, when gains have been copied;
        /// puts it to `h` too, if it has changed.
        #[inline(always)]
        pub unsafe fn finish(self, args: &Args, h: Option<*mut f32>, sum: f32) {
            // SAFETY: the kernel's promise; what is in shared memory is this thread's; all threads meet in the sum.
            unsafe {
                let mean = sum_of_block::<WARPS>(sum) / args.features as f32;
                copy::wait_chunks::<0>();
                let scale = math::rsqrt(mean + args.epsilon);
                let x = args
                    .x
                    .add(thread::block() as usize * args.features as usize);
                let mut first = self.own;
                while first < self.fours {
                    let (mut states, mut gains) = ([[0; 4]; 2], [[0; 2]; 2]);
                    unroll!(I < 2 => {
                        let at = first + (I * THREADS) as u32;
                        if at < self.fours {
                            states[I] = memory::load_u32x4(self.four(at));
                            gains[I] = memory::load_u32x2(self.gains(at));
                        }
                    });
                    unroll!(I < 2 => {
                        let at = first + (I * THREADS) as u32;
                        if at < self.fours {
                            let mut pairs = [0; 2];
                            unroll!(J < 2 => {
                                let gain = math::from_bf16_pair(gains[I][J]);
                                let [a, b] = [states[I][2 * J], states[I][2 * J + 1]].map(f32::from_bits);
                                pairs[J] = mma::to_bf16_pair(a * scale * gain[0], b * scale * gain[1]);
                            });
                            memory::store_global_u32x2(x.add(4 * at as usize).cast(), pairs);
                            if let Some(h) = h {
                                memory::leave_u32x4(h.add(4 * at as usize), states[I]);
                            }
                        }
                    });
                    first += 2 * THREADS as u32;
                }
            }
        }
    }

    /// Four features in shared memory.
    #[inline(always)]
    pub unsafe fn load(address: u32) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { memory::load_u32x4(address).map(f32::from_bits) }
    }

    #[inline(always)]
    pub fn squares([a, b, c, d]: [f32; 4]) -> f32 {
        (a * a + b * b) + (c * c + d * d)
    }

    /// The sum over the threads of the block, in the same order always.
    #[inline(always)]
    pub unsafe fn sum_of_block<const WARPS: u32>(value: f32) -> f32 {
        let shared = memory::shared();
        let mut sum = value;
        // All lanes ask for their warp: it is a shuffle.
        let (lane, warp) = (thread::lane(), thread::warp());
        let add = |sum: f32, distance: u32| {
            sum + f32::from_bits(thread::shuffle(sum.to_bits(), lane ^ distance))
        };
        for distance in [16, 8, 4, 2, 1] {
            sum = add(sum, distance);
        }
        // SAFETY: a word for each warp; all threads meet in between.
        unsafe {
            if lane == 0 {
                memory::store_f32(shared + 4 * warp, sum);
            }
            thread::sync_block();
            sum = f32::from_bits(memory::load_u32(shared + 4 * (lane % WARPS)));
        }
        let mut distance = WARPS / 2;
        while distance > 0 {
            sum = add(sum, distance);
            distance /= 2;
        }
        sum
    }
}
