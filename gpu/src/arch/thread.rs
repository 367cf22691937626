//! Who am I, and execution barriers.
//!
//! The compiler does not know that `asm!` in which lanes meet (`sync_warp`, `shuffle`, `mma`,
//! `wgmma`) must stay in one place: it may make a copy for each side of a branch before it. So no
//! branch that parts the lanes of a warp may end right at one, unless the two sides come together
//! by other means; the machine code tells. Nor is such `asm!` ever `pure`: the compiler would move it
//! into the one branch that needs its result, where some of the lanes are missing.

use core::arch::asm;
pub use core::arch::nvptx::{
    _block_dim_x as threads, _block_idx_x as block, _grid_dim_x as blocks, _syncthreads,
    _thread_idx_x as thread,
};

/// Lane of this thread in its warp.
#[inline(always)]
pub fn lane() -> u32 {
    // SAFETY: every thread has an index.
    unsafe { thread() as u32 % 32 }
}

/// Warp of this thread in its block, the same in all lanes.
#[inline(always)]
pub fn warp() -> u32 {
    // SAFETY: every thread has an index.
    let warp = unsafe { thread() as u32 / 32 };
    broadcast(warp)
}

/// The value of lane 0, which lets the compiler keep it in a uniform register.
#[inline(always)]
pub fn broadcast(value: u32) -> u32 {
    let mut result: u32;
    // SAFETY: all lanes of the warp run this.
    unsafe {
        asm!("shfl.sync.idx.b32 {}, {}, 0, 31, 0xffffffff;", out(reg32) result, in(reg32) value,
            options(nomem, nostack, preserves_flags));
    }
    result
}

/// The value of another lane.
#[inline(always)]
pub fn shuffle(value: u32, lane: u32) -> u32 {
    let mut result: u32;
    // SAFETY: all lanes of the warp run this.
    unsafe {
        asm!("shfl.sync.idx.b32 {}, {}, {}, 31, 0xffffffff;",
            out(reg32) result, in(reg32) value, in(reg32) lane,
            options(nomem, nostack, preserves_flags));
    }
    result
}

/// Whether it is so in any lane.
#[inline(always)]
pub fn any(so: bool) -> bool {
    let mut any: u32;
    // SAFETY: all lanes of the warp run this.
    unsafe {
        asm!("{{ .reg .pred so;",
            "setp.ne.u32 so, {}, 0;",
            "vote.sync.any.pred so, so, 0xffffffff;",
            "selp.u32 {}, 1, 0, so; }}",
            in(reg32) u32::from(so), out(reg32) any, options(nomem, nostack, preserves_flags));
    }
    any != 0
}

/// The lanes that have the same value, a bit each.
#[inline(always)]
pub fn lanes_with(value: u32) -> u32 {
    let mut lanes: u32;
    // SAFETY: all lanes of the warp run this.
    unsafe {
        asm!("match.any.sync.b32 {}, {}, 0xffffffff;", out(reg32) lanes, in(reg32) value,
            options(nomem, nostack, preserves_flags));
    }
    lanes
}

/// [`lane`], for which the assembler, when it is short of registers, can ask again instead of keeping it.
#[inline(always)]
pub fn lane_id() -> u32 {
    let mut lane: u32;
    // SAFETY: every thread has a lane.
    unsafe {
        asm!("mov.u32 {}, %laneid;", out(reg32) lane,
            options(pure, nomem, nostack, preserves_flags));
    }
    lane
}

/// [`lane`] in a register: the assembler, when it is short of them, would ask for it again and
/// again, which takes long.
#[inline(always)]
pub fn fixed_lane() -> u32 {
    let lane = lane();
    shuffle(lane, lane)
}

/// The same value, of which the compiler does not know that it is.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    let mut result: u32;
    // SAFETY: moves a number.
    unsafe {
        asm!("mov.u32 {}, {};", out(reg32) result, in(reg32) value,
            options(nostack, preserves_flags));
    }
    result
}

/// Orders the shared-memory accesses of a warp's lanes before it against those after it.
#[inline(always)]
pub fn sync_warp() {
    // SAFETY: all lanes of the warp run this.
    unsafe {
        asm!(
            "bar.warp.sync 0xffffffff;",
            options(nostack, preserves_flags)
        )
    }
}

/// Waits for all threads of the block.
#[inline(always)]
pub fn sync_block() {
    // SAFETY: all threads of the block run this. The intrinsic, unlike `asm!`, tells the compiler
    // that it is one for all of them.
    unsafe { _syncthreads() }
}

/// Waits for the `THREADS` threads that run this with the same `barrier`, 1 to 15.
#[inline(always)]
pub fn sync_threads<const THREADS: u32>(barrier: u32) {
    // SAFETY: the caller's threads all run this; `asm!` keeps memory accesses on their side.
    unsafe {
        asm!("bar.sync {}, {};", in(reg32) barrier, const THREADS,
            options(nostack, preserves_flags))
    }
}

/// Asks for so many registers a thread; waits until other warps have given up enough.
#[inline(always)]
pub fn grow_registers<const REGISTERS: u32>() {
    // SAFETY: all warps of the warpgroup run this.
    unsafe {
        asm!("setmaxnreg.inc.sync.aligned.u32 {};", const REGISTERS,
            options(nostack, preserves_flags))
    }
}

/// Gives up all but so many registers a thread.
#[inline(always)]
pub fn shrink_registers<const REGISTERS: u32>() {
    // SAFETY: all warps of the warpgroup run this.
    unsafe {
        asm!("setmaxnreg.dec.sync.aligned.u32 {};", const REGISTERS,
            options(nostack, preserves_flags))
    }
}
