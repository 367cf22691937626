//! CRC-32 of what is stored, and the header.
//!
//! ```text
//! payload --LDG.128--> four sums a thread, by Horner's rule with tables in shared memory --> one --> global
//! ```
//!
//! Threads take turns, 16 bytes each, so that loads are coalesced. [`crate::format::crc`] says why the parts add up.

use crate::{
    arch::{memory, thread},
    args::EncodeArgs,
    format::crc,
    launch::ENCODE_THREADS,
    layout::*,
};

/// Bytes of the header that its own checksum is of.
const HEADER_CHECKED: usize = 44;
/// The header's first words: magic, version and layout.
const MAGIC: [u32; 3] = [
    u32::from_le_bytes(*b"ZIPS"),
    u32::from_le_bytes(*b"ERV\0"),
    VERSION as u32 | (LAYOUT_ID as u32) << 16,
];

/// Adds this thread's part of the payload's checksum to `args.window`.
///
/// # Safety
/// `args` describe a complete payload, and a sum that started as zero; the launch is that of [`crate::launch`], on any
/// number of blocks.
#[inline(always)]
pub unsafe fn encode_checksum(args: &EncodeArgs) {
    const THREADS: u64 = ENCODE_THREADS as u64;
    // SAFETY: every thread has a place in the grid.
    let (thread, block, blocks) = unsafe {
        (
            thread::thread() as u64,
            thread::block() as u64,
            thread::blocks() as u64,
        )
    };
    let shared = memory::shared();
    let (threads, units) = (blocks * THREADS, args.payload_bytes / 16);
    // What a sum is multiplied by when the thread's next 16 bytes come.
    let step = crc::shift(4 * threads);
    let mut sums = [0u32; 4];
    // SAFETY: shared addresses lie in the block's; units below `units` exist; all threads meet at the barrier.
    unsafe {
        // Products of the step and each byte of a sum.
        let mut entry = thread as u32;
        while entry < 4 * 256 {
            let byte = entry % 256 << (8 * (entry / 256));
            memory::store_u32(shared + 4 * entry, crc::multiply(byte, step));
            entry += THREADS as u32;
        }
        thread::sync_block();
        let first = block * THREADS + thread;
        let mut unit = first;
        while unit < units {
            let words = memory::load_global_u32x4(args.dense.add(16 * unit as usize));
            let times_step = |sum: u32| {
                let product = |byte: u32| {
                    let at = (sum >> (8 * byte) & 0xFF) + 256 * byte;
                    memory::load_u32(shared + 4 * at)
                };
                product(0) ^ product(1) ^ product(2) ^ product(3)
            };
            let [a, b, c, d] = sums.map(times_step);
            sums = [a ^ words[0], b ^ words[1], c ^ words[2], d ^ words[3]];
            unit += threads;
        }
        // Words from the thread's last one to the end.
        let mut sum = 0;
        if first < units {
            let last = unit - threads;
            let word = crc::shift(1);
            let [a, b, c, d] = sums;
            sum = crc::multiply(a, word) ^ b;
            sum = crc::multiply(sum, word) ^ c;
            sum = crc::multiply(sum, word) ^ d;
            sum = crc::multiply(sum, crc::shift(4 * (units - last) - 3));
        }
        let lane = thread::lane();
        for distance in [16, 8, 4, 2, 1] {
            sum ^= thread::shuffle(sum, lane ^ distance);
        }
        if lane == 0 {
            memory::xor_global_u32(&raw mut (*args.window).checksum, sum);
        }
    }
}

/// Writes the header.
///
/// # Safety
/// `args` are those of [`encode_checksum`], which has run; one thread is launched.
#[inline(always)]
pub unsafe fn encode_header(args: &EncodeArgs) {
    // SAFETY: there is room for the header right before the dense part.
    unsafe {
        let header = args.dense.sub(HEADER_BYTES).cast::<u32>();
        let window = &*args.window;
        let payload = crc::checksum(window.checksum, args.payload_bytes / 4);
        let first = [MAGIC[0], MAGIC[1], MAGIC[2], window.base];
        for (word, at) in first.into_iter().zip(0..) {
            *header.add(at) = word;
        }
        *header.add(4).cast::<u64>() = args.rows;
        *header.add(6).cast::<u64>() = args.cols;
        *header.add(8).cast::<u64>() = window.patches;
        *header.add(10) = payload;
        let all = (HEADER_CHECKED / 4) as u64;
        let mut sum = 0;
        for i in 0..all {
            sum ^= crc::multiply(*header.add(i as usize), crc::shift(all - i));
        }
        *header.add(all as usize) = crc::checksum(sum, all);
        for word in all as usize + 1..HEADER_BYTES / 4 {
            *header.add(word) = 0;
        }
    }
}
