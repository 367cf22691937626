use std::sync::Mutex;

use zipserv_gpu::layout::TILE_BYTES;

use super::{
    Error, checksum::Checksum, error::At, header::Tensor, options::Progress, source::Source,
};
use crate::{HEADER_BYTES, Histogram};

/// A compressed matrix has more bytes than this, so that it need not be known what is in smaller ones: there may be many,
/// and each histogram takes two kilobytes.
pub(crate) const SMALL_BYTES: u64 = (HEADER_BYTES + TILE_BYTES) as u64;

/// What one pass over an original file tells.
pub(crate) struct Scan {
    /// CRC-32 of the file.
    pub crc: u32,
    /// The exponents of each tensor, if it is BF16 and not small.
    pub exponents: Vec<Option<Box<Histogram>>>,
}

impl Scan {
    pub fn of(source: &dyn Source, progress: &dyn Progress) -> Result<Self, Error> {
        let checksum = Checksum::default();
        checksum.add(0, &source.header_bytes());
        let is_counted = |tensor: &Tensor| tensor.dtype == "BF16" && tensor.bytes() > SMALL_BYTES;
        let exponents: Vec<_> = source
            .header()
            .tensors
            .iter()
            .map(|tensor| is_counted(tensor).then(|| Mutex::new(Box::new(Histogram::empty()))))
            .collect();
        source.for_each_piece(&|piece| {
            checksum.add_piece(&piece);
            if let Some(exponents) = &exponents[piece.tensor] {
                let more = Histogram::of_piece(piece.bytes);
                **exponents.lock().expect("no panic") += &more;
            }
            progress.step(piece.bytes.len() as u64).at(source.path())
        })?;
        Ok(Self {
            crc: checksum.finish(),
            exponents: exponents
                .into_iter()
                .map(|exponents| Some(exponents?.into_inner().expect("no panic")))
                .collect(),
        })
    }
}
