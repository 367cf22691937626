//! The token of a sequence that is sampled, as [`sampling`](crate::sampling) says, by radix selection.
//!
//! ```text
//! largest logit -----+
//! logits --LDG--> what each token counts --> bins in shared memory --red--> bins of the sequence            tally
//!
//! bins --sums--> the bin in which the goal is reached
//! logits --LDG--> tokens of that bin --> list --last block: 11 bits at a time--> threshold, or the token    settle
//! ```
//!
//! A pass is a goal for sums: `k` for counts of the largest logits, top-p's part of the weights of the largest logits, a
//! random part of the weights of the first tokens. Where they are reached, exactly, is found in two launches: `tally` sums
//! up coarse bins, and `settle` looks at the tokens of one of them. A sequence of top-k needs one pass, for few tokens are
//! above its bin, and the last block does the rest with these; top-p alone needs two, temperature alone one.
//!
//! Sums are integers, so it does not matter who adds first. [`BLOCKS`] blocks a sequence read its logits once a launch, from
//! the L2 cache: bound by the time of some loads, barriers and launches one after the other. Where the list is too short,
//! as for many equal logits or a large `k`, the last block looks at all logits instead, which takes long.

use zipserv_gpu::launch::Launch;

use crate::sampling::Settings;

/// Threads of a block.
pub const THREADS: usize = 256;
/// Blocks of a sequence.
pub const BLOCKS: usize = 32;
/// Bins of a sequence.
pub const BINS: usize = 1 << DIGIT_BITS;
/// Bits of a digit of the radix selection.
const DIGIT_BITS: u32 = 11;
/// Tokens of the list.
pub const LISTED: usize = 1 << 14;

/// Bins, a sum for each warp, and what is found.
const SHARED_BYTES: usize = 8 * BINS + 8 * (THREADS / 32) + 16;

/// [`BLOCKS`] blocks a sequence.
pub const TALLY: Launch = launch("tally", 4);
/// [`BLOCKS`] blocks a sequence.
pub const SETTLE: Launch = launch("settle", 3);

const fn launch(name: &'static str, min_blocks: usize) -> Launch {
    Launch {
        name,
        threads: THREADS,
        min_blocks,
        shared_bytes: SHARED_BYTES,
        cluster: 1,
    }
}

/// What is looked for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The token of sequences with top-k.
    TopK,
    /// The threshold of those with top-p alone.
    TopP,
    /// The token of those without top-k.
    Token,
}

impl Pass {
    /// In their order.
    pub const ALL: [Self; 3] = [Self::TopK, Self::TopP, Self::Token];

    /// Whether a sequence takes part.
    pub const fn is_for(self, settings: Settings) -> bool {
        !settings.is_greedy()
            && match self {
                Self::TopK => settings.top_k != 0,
                Self::TopP => settings.top_k == 0 && settings.top_p != 0,
                Self::Token => settings.top_k == 0,
            }
    }
}

/// What kernels keep of a sequence. Starts as zeros, and each pass leaves it so, but for `least`.
#[repr(C, align(16))]
pub struct State {
    /// Sums of each bin.
    pub bins: [u64; BINS],
    /// Tokens of a bin, in any order.
    pub list: [u32; LISTED],
    /// How many there are, also those that have no room.
    pub count: u32,
    /// Blocks that have come.
    pub blocks: u32,
    /// The [order](crate::choose::order) of the smallest logit that top-p keeps.
    pub least: u32,
}

/// The parameter of both kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// Rows of FP32.
    pub logits: *const f32,
    /// The largest key of each sequence, of which the last pass leaves the token alone: that of none, if the largest logit
    /// is not finite.
    pub keys: *mut u64,
    /// Of each sequence.
    pub states: *mut State,
    /// Of each sequence.
    pub settings: *const Settings,
    /// Random numbers: a row for each step, of `sequences`.
    pub random: *const u64,
    /// The step.
    pub step: *const u32,
    /// Logits of a row, at most [`MOST_TOKENS`](crate::sampling::MOST_TOKENS).
    pub vocabulary: u32,
    /// Sequences.
    pub sequences: u32,
    /// Rows of random numbers; later steps take the last.
    pub steps: u32,
    /// What is looked for.
    pub pass: Pass,
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use zipserv_gpu::{
        arch::{grid, memory, thread},
        unroll,
    };

    use super::{Args, BINS, BLOCKS, DIGIT_BITS, LISTED, Pass, THREADS};
    use crate::{
        choose::{logit, order},
        sampling::{self, Settings},
    };

    const WARPS: usize = THREADS / 32;
    /// Bins of a thread.
    const OWN: usize = BINS / THREADS;
    /// Bins of a unit of logits, from the largest on. The last bin has all that are smaller.
    const BINS_PER_UNIT: f32 = 32.0;

    /// A sequence in a pass.
    struct Sequence {
        logits: *const f32,
        vocabulary: u32,
        largest: f32,
        settings: Settings,
        random: u64,
        pass: Pass,
        /// The order of the smallest logit that counts; that of NaN is less.
        least: u32,
        /// Tokens of a warp, and so of a bin, when the token is looked for.
        chunk: u32,
    }

    impl Sequence {
        /// That of this block, if the pass is for it.
        #[inline(always)]
        unsafe fn begin(args: &Args) -> Option<Self> {
            // SAFETY: the caller's promise.
            unsafe {
                let row = thread::block() as usize / BLOCKS;
                let settings = memory::observe_u32x4(args.settings.add(row).cast());
                let step = memory::observe_u32(args.step).min(args.steps - 1);
                let largest = memory::observe_u32(args.keys.add(row).cast::<u32>().add(1));
                let settings = Settings::from_words(settings);
                if !args.pass.is_for(settings) {
                    return None;
                }
                let random = args.random.add((step * args.sequences) as usize + row);
                let least = &raw const (*args.states.add(row)).least;
                let has_threshold = args.pass == Pass::Token && settings.top_p != 0;
                Some(Self {
                    logits: args.logits.add(row * args.vocabulary as usize),
                    vocabulary: args.vocabulary,
                    largest: logit(largest),
                    settings,
                    random: observe_u64(random),
                    pass: args.pass,
                    least: if has_threshold {
                        memory::observe_u32(least)
                    } else {
                        1
                    },
                    chunk: args.vocabulary.div_ceil(32 * (BLOCKS * WARPS) as u32) * 32,
                })
            }
        }

        /// Whether the largest logit is finite.
        #[inline(always)]
        fn has_weights(&self) -> bool {
            const INFINITE: u32 = f32::INFINITY.to_bits();
            self.largest.to_bits() & INFINITE != INFINITE
        }

        /// What a token adds to sums.
        #[inline(always)]
        fn count(&self, logit: f32) -> u64 {
            let weight = match self.pass {
                Pass::TopK => 1,
                _ => sampling::weight(logit, self.largest, self.settings.scale),
            };
            if order(logit) >= self.least {
                weight
            } else {
                0
            }
        }

        /// The bin of a logit that is a number.
        #[inline(always)]
        fn bin(&self, logit: f32) -> u32 {
            let below = (self.largest - logit) * BINS_PER_UNIT;
            (below as u32).min(BINS as u32 - 1)
        }

        /// What sums have to reach, of all together.
        #[inline(always)]
        fn goal(&self, sum: u64) -> u64 {
            match self.pass {
                Pass::TopK => u64::from(self.settings.top_k),
                Pass::TopP => sampling::enough(self.settings.top_p, sum),
                Pass::Token => sampling::drawn(self.random, sum),
            }
        }

        /// The number of this warp among those of the sequence.
        #[inline(always)]
        unsafe fn warp(&self) -> u32 {
            // SAFETY: all lanes run this.
            unsafe { (thread::block() as usize % BLOCKS * WARPS) as u32 + thread::warp() }
        }

        /// The tokens of this thread, and their logits: of a warp they follow one another. Where there is none, the logit is
        /// NaN.
        #[inline(always)]
        unsafe fn each(&self, mut take: impl FnMut(u32, f32)) {
            // SAFETY: what is loaded is there.
            unsafe {
                let mut first = self.warp() * self.chunk;
                let end = (first + self.chunk).min(self.vocabulary);
                while first < end {
                    let own = first + thread::lane();
                    let from = self.logits.wrapping_add(own as usize).cast();
                    let mut logits = [0; 8];
                    unroll!(I < 8 => {
                        const AT: usize = 32 * I;
                        let is_there = own + (AT as u32) < end;
                        let bits = memory::load_written_u32::<AT>(from, is_there);
                        logits[I] = if is_there { bits } else { f32::NAN.to_bits() };
                    });
                    unroll!(I < 8 => { take(own + 32 * I as u32, f32::from_bits(logits[I])); });
                    first += 256;
                }
            }
        }
    }

    /// The tokens that a block looks at alone.
    struct Candidates {
        /// The first and the last number of the pass's bins or tokens.
        range: [u32; 2],
        /// Whether these are tokens.
        by_token: bool,
        /// The list, or null where all tokens are looked at.
        list: *const u32,
        /// Tokens of the list, or of the vocabulary.
        len: u32,
    }

    impl Candidates {
        #[inline(always)]
        fn has(&self, sequence: &Sequence, token: u32, logit: f32) -> bool {
            let place = if self.by_token {
                token
            } else {
                sequence.bin(logit)
            };
            self.range[0] <= place && place <= self.range[1]
        }

        /// Calls for each of this thread's that counts, with what it does.
        #[inline(always)]
        unsafe fn each(&self, sequence: &Sequence, mut take: impl FnMut(u32, f32, u64)) {
            // SAFETY: what is loaded is there.
            unsafe {
                let mut first = thread::thread() as u32;
                while first < self.len {
                    let (mut tokens, mut logits) = ([0; 4], [0; 4]);
                    unroll!(I < 4 => {
                        let at = first + (I * THREADS) as u32;
                        let is_there = at < self.len && !self.list.is_null();
                        let from = self.list.wrapping_add(at as usize);
                        let listed = memory::load_written_u32::<0>(from, is_there);
                        tokens[I] = if is_there { listed } else { at };
                    });
                    unroll!(I < 4 => {
                        let is_there = first + ((I * THREADS) as u32) < self.len;
                        let from = sequence.logits.wrapping_add(tokens[I] as usize).cast();
                        logits[I] = memory::load_written_u32::<0>(from, is_there);
                    });
                    unroll!(I < 4 => {
                        // Most lists are short.
                        if first + ((I * THREADS) as u32) < self.len {
                            let logit = f32::from_bits(logits[I]);
                            let count = sequence.count(logit);
                            if count != 0 && self.has(sequence, tokens[I], logit) {
                                take(tokens[I], logit, count);
                            }
                        }
                    });
                    first += (4 * THREADS) as u32;
                }
            }
        }
    }

    /// The first rank up to which sums reach the goal, if they do: of tokens their number, of logits the complement of their
    /// order. The goal is one for all candidates together if it is 0. All threads of the block run this.
    #[inline(always)]
    unsafe fn select(sequence: &Sequence, candidates: &Candidates, goal: u64) -> u32 {
        // SAFETY: the caller's promise.
        unsafe {
            let mut shift = match sequence.pass {
                Pass::Token => DIGIT_BITS,
                _ => 2 * DIGIT_BITS,
            };
            let (mut rank, mut goal) = (0, goal);
            loop {
                clear();
                thread::sync_block();
                candidates.each(sequence, |token, logit, count| {
                    let own = match sequence.pass {
                        Pass::Token => token,
                        _ => !order(logit),
                    };
                    let digits = own >> shift;
                    if digits >> DIGIT_BITS == rank {
                        add(digits % BINS as u32, count);
                    }
                });
                thread::sync_block();
                let found = find(|sum| if goal == 0 { sequence.goal(sum) } else { goal });
                if !found.is_reached {
                    return u32::MAX;
                }
                (rank, goal) = (rank << DIGIT_BITS | found.bin, found.left);
                if shift == 0 {
                    return rank;
                }
                shift -= DIGIT_BITS;
            }
        }
    }

    /// Where the goal is reached.
    struct Found {
        is_reached: bool,
        /// The last one if it is not.
        bin: u32,
        /// What of it is left for that bin, at least 1.
        left: u64,
    }

    /// The first bin up to which the sum reaches a goal, which depends on the sum of all. All threads of the block run this,
    /// after a barrier.
    #[inline(always)]
    unsafe fn find(goal: impl FnOnce(u64) -> u64) -> Found {
        const SUMS: u32 = 8 * BINS as u32;
        const RESULT: u32 = SUMS + 8 * WARPS as u32;
        let (shared, own) = (memory::shared(), OWN as u32 * thread_index());
        let (lane, warp) = (thread::lane(), thread::warp());
        // SAFETY: all lie in shared memory; threads meet between writing and reading.
        unsafe {
            const { assert!(OWN == 8 && WARPS == 8) };
            let mut bins = [0; OWN];
            unroll!(I < 4 => {
                let [a, b, c, d] = memory::load_u32x4(shared + 8 * own + 16 * I as u32);
                bins[2 * I] = join(a, b);
                bins[2 * I + 1] = join(c, d);
            });
            let mut sum = 0;
            unroll!(I < 8 => { sum += bins[I]; });
            let mut upto = sum;
            for distance in [1, 2, 4, 8, 16] {
                let other = shuffle(upto, lane.wrapping_sub(distance) % 32);
                upto += if lane >= distance { other } else { 0 };
            }
            if lane == 31 {
                store_u64(shared + SUMS + 8 * warp, upto);
            }
            thread::sync_block();
            let (mut before, mut all) = (upto - sum, 0);
            unroll!(I < 8 => {
                let sum = load_u64(shared + SUMS + 8 * I as u32);
                before += if (I as u32) < warp { sum } else { 0 };
                all += sum;
            });
            let goal = goal(all);
            let is_reached = goal <= all;
            let mut left = goal.wrapping_sub(before);
            if is_reached && before < goal && left <= sum {
                let (mut bin, mut is_found) = (own, false);
                unroll!(I < 8 => {
                    is_found |= left <= bins[I];
                    if !is_found {
                        left -= bins[I];
                        bin += 1;
                    }
                });
                memory::store_u32x4(shared + RESULT, [bin, 0, left as u32, (left >> 32) as u32]);
            }
            thread::sync_block();
            let [bin, _, low, high] = memory::load_u32x4(shared + RESULT);
            Found {
                is_reached,
                bin: if is_reached { bin } else { BINS as u32 - 1 },
                left: join(low, high),
            }
        }
    }

    /// Empties the bins of this thread in shared memory.
    #[inline(always)]
    unsafe fn clear() {
        unroll!(I < 4 => {
            let at = 16 * (thread_index() + (I * THREADS) as u32);
            // SAFETY: lies there.
            unsafe { memory::store_u32x4(memory::shared() + at, [0; 4]) };
        });
    }

    /// Adds to a bin in shared memory. (Of 64 bits together, the hardware compares and swaps.)
    #[inline(always)]
    unsafe fn add(bin: u32, value: u64) {
        let at = memory::shared() + 8 * bin;
        // SAFETY: the caller's promise: there is such a bin, and threads only add to it.
        unsafe {
            let before = memory::fetch_add_u32(at, value as u32);
            let (_, carry) = before.overflowing_add(value as u32);
            let high = (value >> 32) as u32 + u32::from(carry);
            if high != 0 {
                memory::add_u32(at + 4, high);
            }
        }
    }

    #[inline(always)]
    fn thread_index() -> u32 {
        // SAFETY: every thread has one.
        unsafe { thread::thread() as u32 }
    }

    #[inline(always)]
    fn join(low: u32, high: u32) -> u64 {
        u64::from(high) << 32 | u64::from(low)
    }

    #[inline(always)]
    fn shuffle(value: u64, lane: u32) -> u64 {
        let high = thread::shuffle((value >> 32) as u32, lane);
        join(thread::shuffle(value as u32, lane), high)
    }

    #[inline(always)]
    unsafe fn load_u64(address: u32) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { join(memory::load_u32(address), memory::load_u32(address + 4)) }
    }

    #[inline(always)]
    unsafe fn store_u64(address: u32, value: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            memory::store_u32(address, value as u32);
            memory::store_u32(address + 4, (value >> 32) as u32);
        }
    }

    #[inline(always)]
    unsafe fn observe_u64(address: *const u64) -> u64 {
        let words = address.cast::<u32>();
        // SAFETY: the caller's promise.
        unsafe {
            join(
                memory::observe_u32(words),
                memory::observe_u32(words.add(1)),
            )
        }
    }

    zipserv_gpu::kernel! {
        /// Sums up the bins of this block's sequence.
        ///
        /// # Safety
        /// `args` have as many rows as there are blocks for, which are launched as [`super::TALLY`] has them.
        fn tally(args: super::Args) {
            grid::launch_dependents();
            grid::wait_dependencies();
            // SAFETY: ranges are the caller's promise; all threads meet at the block's barriers.
            unsafe {
                let Some(sequence) = Sequence::begin(&args) else {
                    return;
                };
                if !sequence.has_weights() {
                    return;
                }
                let state = args.states.add(thread::block() as usize / BLOCKS);
                let bins = (&raw mut (*state).bins).cast::<u64>();
                if sequence.pass == Pass::Token {
                    let mut sum = 0;
                    sequence.each(|_, logit| sum += sequence.count(logit));
                    for distance in [16, 8, 4, 2, 1] {
                        sum += shuffle(sum, thread::lane() ^ distance);
                    }
                    let warp = sequence.warp();
                    if thread::lane() == 0 {
                        *bins.add(warp as usize) = sum;
                    }
                    return;
                }
                clear();
                thread::sync_block();
                sequence.each(|_, logit| {
                    let count = sequence.count(logit);
                    if count != 0 {
                        add(sequence.bin(logit), count);
                    }
                });
                thread::sync_block();
                unroll!(I < 8 => {
                    let bin = thread_index() + (I * THREADS) as u32;
                    let sum = load_u64(memory::shared() + 8 * bin);
                    if sum != 0 {
                        memory::add_global_u64(bins.add(bin as usize), sum);
                    }
                });
            }
        }
    }

    zipserv_gpu::kernel! {
        /// Finds the threshold or the token of this block's sequence.
        ///
        /// # Safety
        /// As `tally`, which has run.
        fn settle(args: super::Args) {
            grid::launch_dependents();
            grid::wait_dependencies();
            // SAFETY: ranges are the caller's promise; all threads meet at the block's barriers.
            unsafe {
                let Some(mut sequence) = Sequence::begin(&args) else {
                    return;
                };
                let (row, part) = (thread::block() as usize / BLOCKS, thread::block() as usize % BLOCKS);
                let own = thread_index();
                let key = args.keys.add(row);
                if !sequence.has_weights() {
                    if part == 0 && own == 0 && args.pass != Pass::TopP {
                        *key = 0;
                    }
                    return;
                }
                let state = args.states.add(row);
                let bins = (&raw mut (*state).bins).cast::<u64>();
                let list = (&raw mut (*state).list).cast::<u32>();
                let count = &raw mut (*state).count;
                unroll!(I < 4 => {
                    let at = own as usize + I * THREADS;
                    let words = memory::observe_u32x4(bins.add(2 * at).cast());
                    memory::store_u32x4(memory::shared() + 16 * at as u32, words);
                });
                thread::sync_block();
                let found = find(|sum| sequence.goal(sum));
                let bin = found.bin;
                let mut candidates = Candidates {
                    range: match args.pass {
                        Pass::TopK => [0, bin],
                        Pass::TopP => [bin, bin],
                        Pass::Token => [bin * sequence.chunk, (bin + 1) * sequence.chunk - 1],
                    },
                    by_token: args.pass == Pass::Token,
                    list,
                    len: 0,
                };
                sequence.each(|token, logit| {
                    if sequence.count(logit) != 0 && candidates.has(&sequence, token, logit) {
                        let at = memory::fetch_add_global_u32(count, 1) as usize;
                        if at < LISTED {
                            *list.add(at) = token;
                        }
                    }
                });

                thread::sync_block();
                const FLAG: u32 = 0;
                if own == 0 {
                    let before = memory::count_block(&raw mut (*state).blocks);
                    memory::store_u32(memory::shared() + FLAG, before);
                }
                thread::sync_block();
                if memory::load_u32(memory::shared() + FLAG) + 1 != BLOCKS as u32 {
                    return;
                }
                candidates.len = memory::observe_u32(count);
                if candidates.len > LISTED as u32 {
                    candidates.list = core::ptr::null();
                    candidates.len = sequence.vocabulary;
                }
                thread::sync_block();
                // For the next pass.
                unroll!(I < 4 => {
                    let at = own as usize + I * THREADS;
                    memory::leave_u32x4(bins.add(2 * at).cast(), [0; 4]);
                });
                if own == 0 {
                    *count = 0;
                    (*state).blocks = 0;
                }

                let mut goal = match args.pass {
                    Pass::TopK => u64::from(sequence.settings.top_k),
                    _ => found.left,
                };
                loop {
                    let rank = select(&sequence, &candidates, goal);
                    if sequence.pass == Pass::Token {
                        if own == 0 {
                            *key = u64::from(u32::MAX - rank);
                        }
                        return;
                    }
                    sequence.least = (!rank).max(1);
                    if args.pass == Pass::TopP {
                        if own == 0 {
                            (*state).least = sequence.least;
                        }
                        return;
                    }
                    let has_share = sequence.pass == Pass::TopK && sequence.settings.top_p != 0;
                    sequence.pass = if has_share { Pass::TopP } else { Pass::Token };
                    goal = 0;
                }
            }
        }
    }
}
