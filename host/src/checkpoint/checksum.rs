use std::sync::Mutex;

use super::source::Piece;
use crate::codec::combine_crcs;

/// The CRC-32 of a file whose pieces come in any order.
#[derive(Default)]
pub(crate) struct Checksum {
    pieces: Mutex<Vec<(u64, u32, u64)>>,
}

impl Checksum {
    pub fn add(&self, offset: u64, bytes: &[u8]) {
        self.add_crc(offset, crc32fast::hash(bytes), bytes.len() as u64);
    }

    /// Adds a piece whose checksum is known.
    pub fn add_crc(&self, offset: u64, crc: u32, bytes: u64) {
        let piece = (offset, crc, bytes);
        self.pieces.lock().expect("no panic").push(piece);
    }

    /// Adds a piece of an original file.
    pub fn add_piece(&self, piece: &Piece) {
        let crc = piece.crc.unwrap_or_else(|| crc32fast::hash(piece.bytes));
        self.add_crc(piece.offset, crc, piece.bytes.len() as u64);
    }

    /// The checksum of the pieces in the order of their offsets.
    pub fn finish(self) -> u32 {
        let mut pieces = self.pieces.into_inner().expect("no panic");
        pieces.sort_unstable();
        combine_crcs(pieces.into_iter().map(|(_, crc, len)| (crc, len)))
    }
}
