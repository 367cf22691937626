//! Tensor cores, asynchronous: four warps multiply from registers and shared memory.
//!
//! A warpgroup is four warps that start at a multiple of four; all their threads run each
//! function. The PTX ISA lets no instruction touch accumulators or A registers from the
//! multiplication on until a wait has seen its group complete.

use core::arch::asm;

/// Bytes of the eight rows over which the 128-byte swizzle repeats.
const SWIZZLE_ATOM: u32 = 8 * 128;

/// Describes an operand in shared memory: rows (the N of the product for B, the M for A) of 128 bytes,
/// from `address` on, K along the row, in the 128-byte swizzle. Groups of eight rows start at multiples
/// of 1024. [`kstep`] goes on along K.
#[inline(always)]
pub fn swizzled_rows(address: u32) -> u64 {
    // Bits 16..30 are not used with a swizzle along K.
    swizzled(address, 16)
}

/// Describes a transposed B operand in shared memory: rows (the K of the product) of 64 columns (of its
/// N), 128 bytes each, from `address` on, in the 128-byte swizzle; the rows' next 64 columns are
/// `next` bytes further on. Groups of eight rows start at multiples of 1024. [`row_step`] goes on along K.
#[inline(always)]
pub fn swizzled_columns(address: u32, next: u32) -> u64 {
    swizzled(address, next)
}

/// `leading` is the descriptor's offset in bytes from which it follows along a row.
#[inline(always)]
fn swizzled(address: u32, leading: u32) -> u64 {
    const SWIZZLE_128: u64 = 1 << 62;
    let low = leading >> 4 << 16 | (address & 0x3_FFFF) >> 4;
    SWIZZLE_128 | u64::from(SWIZZLE_ATOM / 16) << 32 | u64::from(low)
}

/// The `step`-th 16 columns of [`swizzled_rows`].
#[inline(always)]
pub fn kstep(rows: u64, step: u32) -> u64 {
    on(rows, 2 * step)
}

/// The `step`-th 16 rows of [`swizzled_columns`].
#[inline(always)]
pub fn row_step(columns: u64, step: u32) -> u64 {
    on(columns, 2 * SWIZZLE_ATOM / 16 * step)
}

/// An operand `by` 16 bytes further on. The address is far below its field's end, so the upper word stays.
#[inline(always)]
fn on(operand: u64, by: u32) -> u64 {
    operand >> 32 << 32 | u64::from(operand as u32 + by)
}

/// Makes a group of the multiplications since the last one.
#[inline(always)]
pub fn commit() {
    // SAFETY: all threads of the warpgroup run this.
    unsafe {
        asm!(
            "wgmma.commit_group.sync.aligned;",
            options(nostack, preserves_flags)
        )
    }
}

/// Waits until at most the `LEFT` latest groups are incomplete.
#[inline(always)]
pub fn wait<const LEFT: u32>() {
    // SAFETY: all threads of the warpgroup run this.
    unsafe {
        asm!("wgmma.wait_group.sync.aligned {};", const LEFT, options(nostack, preserves_flags))
    }
}

/// A thread's part of a 64 x N accumulator, N = 2 * length. With `lane = 4 * g + t`, entry
/// `4j + 2i + h` is row `16 * warp + g + 8i`, column `8j + 2t + h`.
pub trait Accumulator: Sized {
    /// Registers that hold anything, for a first multiplication that does not add.
    fn undefined() -> Self;

    /// Starts `self += a * b`, or `self = a * b` if not `add`, for 64 x 16 BF16 times 16 x N BF16, in
    /// FP32. `a` is the warp's 16 rows as in [`crate::layout`], `b` as [`swizzled_rows`] describes it.
    ///
    /// A in registers has just been written, so the fence that this asks for is part of it.
    ///
    /// # Safety
    /// `b` describes shared memory whose contents the asynchronous proxy sees, and that stays as
    /// it is until a wait has seen the group complete.
    unsafe fn multiply(&mut self, a: [u32; 4], b: u64, add: bool);

    /// Lets multiplications that follow use registers as they have been written, `self` and A.
    fn fence(&mut self);

    /// [`multiply`](Self::multiply) with a transposed B, as [`swizzled_columns`] describes it. The fence is the caller's: with
    /// one before each multiplication, a wait counts each as a group of its own.
    ///
    /// # Safety
    /// As that, and there was a [`fence`](Self::fence) since `self` and `a` were written.
    unsafe fn multiply_transposed(&mut self, a: [u32; 4], b: u64, add: bool);

    /// [`multiply`](Self::multiply) with A in shared memory, 64 rows as [`swizzled_rows`] describes them. The fence is the
    /// caller's.
    ///
    /// # Safety
    /// As that, of both operands, and there was a [`fence`](Self::fence) since `self` was written.
    unsafe fn multiply_shared(&mut self, a: u64, b: u64, add: bool);

    /// Has what was last written to `self` worked out ahead of all waits that follow.
    fn pin(&mut self);

    /// Waits until at most the `LEFT` latest groups are incomplete; if its own is none of them, `self` may be read.
    fn settle<const LEFT: u32>(&mut self);

    /// Waits for all multiplications, after which `self` may be read, and multiplies it by `factor`.
    fn finish(&mut self, factor: f32);
}

/// A register that holds anything, the `_I`-th.
#[inline(always)]
fn any<const _I: usize>() -> f32 {
    let float;
    // SAFETY: any bits are a float.
    unsafe { asm!("// {}", out(reg32) float, options(nomem, nostack, preserves_flags)) }
    float
}

/// Starts a multiplication: the accumulator, whether it adds, its width, what comes first, how the instruction names A, what it
/// says of transposition, then the operands.
macro_rules! start {
    ($acc:ident, $add:ident, $n:literal: $first:literal $($i:literal)*, $fence:literal, $a:literal, $transposed:literal, $($operands:tt)*) => {
        asm!(
            "{{ .reg .pred add;",
            "setp.ne.u32 add, {add}, 0;",
            $fence,
            concat!(
                "wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.bf16.bf16 {{",
                "{", $first, "}" $(, ", {", $i, "}")*, "}}, ", $a, ", {b}, add, 1, 1, ", $transposed, "; }}"
            ),
            inout(reg32) $acc[$first], $(inout(reg32) $acc[$i],)*
            $($operands)*, add = in(reg32) u32::from($add),
            options(nostack, preserves_flags))
    };
}

macro_rules! accumulator {
    ($n:literal: $first:literal $($i:literal)*) => {
        impl Accumulator for [f32; $n / 2] {
            #[inline(always)]
            fn undefined() -> Self {
                // A loop would go over memory.
                [any::<$first>(), $(any::<$i>(),)*]
            }

            #[inline(always)]
            unsafe fn multiply(&mut self, a: [u32; 4], b: u64, add: bool) {
                // SAFETY: the caller's promise.
                unsafe {
                    start!(self, add, $n: $first $($i)*, "wgmma.fence.sync.aligned;", "{{{a0}, {a1}, {a2}, {a3}}}", "0",
                        a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3], b = in(reg64) b);
                }
            }

            #[inline(always)]
            fn fence(&mut self) {
                // The comment ties the registers to the fence, so that nothing writes them behind it.
                // SAFETY: all threads of the warpgroup run this.
                unsafe {
                    asm!(
                        concat!("wgmma.fence.sync.aligned; // {", $first, "}" $(, " {", $i, "}")*),
                        inout(reg32) self[$first], $(inout(reg32) self[$i],)*
                        options(nostack, preserves_flags));
                }
            }

            #[inline(always)]
            unsafe fn multiply_transposed(&mut self, a: [u32; 4], b: u64, add: bool) {
                // SAFETY: the caller's promise.
                unsafe {
                    start!(self, add, $n: $first $($i)*, "", "{{{a0}, {a1}, {a2}, {a3}}}", "1",
                        a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3], b = in(reg64) b);
                }
            }

            #[inline(always)]
            unsafe fn multiply_shared(&mut self, a: u64, b: u64, add: bool) {
                // SAFETY: the caller's promise.
                unsafe {
                    start!(self, add, $n: $first $($i)*, "", "{a}", "0, 0", a = in(reg64) a, b = in(reg64) b);
                }
            }

            #[inline(always)]
            fn pin(&mut self) {
                // SAFETY: a comment.
                unsafe {
                    asm!(
                        concat!("// {", $first, "}" $(, " {", $i, "}")*),
                        inout(reg32) self[$first], $(inout(reg32) self[$i],)*
                        options(nostack, preserves_flags));
                }
            }

            #[inline(always)]
            fn settle<const LEFT: u32>(&mut self) {
                // The comment ties the registers to the wait, so that no use of them moves ahead.
                // SAFETY: all threads of the warpgroup run this.
                unsafe {
                    asm!(
                        concat!("wgmma.wait_group.sync.aligned {left}; // {", $first, "}" $(, " {", $i, "}")*),
                        inout(reg32) self[$first], $(inout(reg32) self[$i],)*
                        left = const LEFT, options(nostack, preserves_flags));
                }
            }

            #[inline(always)]
            fn finish(&mut self, factor: f32) {
                self.settle::<0>();
                // In place: the compiler would want as many registers again.
                // SAFETY: arithmetic.
                unsafe {
                    asm!("mul.f32 {0}, {0}, {1};", inout(reg32) self[$first], in(reg32) factor, options(nostack, preserves_flags));
                    $(asm!("mul.f32 {0}, {0}, {1};", inout(reg32) self[$i], in(reg32) factor, options(nostack, preserves_flags));)*
                }
            }
        }
    };
}

/// One [`accumulator`] for each width, which has the registers of those before it and some more.
macro_rules! accumulators {
    ([$($all:literal)*]) => {};
    ([$($all:literal)*] $n:literal: $($more:literal)*; $($rest:tt)*) => {
        accumulator!($n: $($all)* $($more)*);
        accumulators!([$($all)* $($more)*] $($rest)*);
    };
}

accumulators!([]
    16:
        0 1 2 3 4 5 6 7;
    32:
        8 9 10 11 12 13 14 15;
    64:
        16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31;
    128:
        32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61
        62 63;
    144:
        64 65 66 67 68 69 70 71;
    176:
        72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87;
    192:
        88 89 90 91 92 93 94 95;
    224:
        96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111;
    256:
        112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127;
);
