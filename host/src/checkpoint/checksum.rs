use std::sync::Mutex;

use crate::codec::combine_crcs;

/// The CRC-32 of a file whose pieces come in any order.
#[derive(Default)]
pub(crate) struct Checksum {
    pieces: Mutex<Vec<(u64, u32, u64)>>,
}

impl Checksum {
    pub fn add(&self, offset: u64, bytes: &[u8]) {
        let piece = (offset, crc32fast::hash(bytes), bytes.len() as u64);
        self.pieces.lock().expect("no panic").push(piece);
    }

    /// The checksum of the pieces in the order of their offsets.
    pub fn finish(self) -> u32 {
        let mut pieces = self.pieces.into_inner().expect("no panic");
        pieces.sort_unstable();
        combine_crcs(pieces.into_iter().map(|(_, crc, len)| (crc, len)))
    }
}
