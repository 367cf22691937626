use zipserv::{HEADER_BYTES, LAYOUT_ID, VERSION};

/// Makes all right that a mutation is unlikely to: magic, versions, length, checksums.
pub fn sign(blob: &mut Vec<u8>, crc32: fn(&[u8]) -> u32) {
    if blob.len() < HEADER_BYTES {
        blob.resize(HEADER_BYTES, 0);
    }
    blob[..8].copy_from_slice(b"ZIPSERV\0");
    blob[8..10].copy_from_slice(&VERSION.to_le_bytes());
    blob[10..12].copy_from_slice(&LAYOUT_ID.to_le_bytes());
    if let Some(len) = declared_len(blob) {
        blob.resize(len, 0);
    }
    let payload = crc32(&blob[HEADER_BYTES..]);
    blob[40..44].copy_from_slice(&payload.to_le_bytes());
    let header = crc32(&blob[..44]);
    blob[44..48].copy_from_slice(&header.to_le_bytes());
}

/// The length that the header asks for, when it is small.
fn declared_len(blob: &[u8]) -> Option<usize> {
    let count = |at: usize| {
        let bytes = blob[at..at + 8].try_into().expect("eight bytes");
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let tiles = count(16)?
        .div_ceil(32)
        .checked_mul(count(24)?.div_ceil(64))
        .filter(|&tiles| tiles < 8)?;
    let patches = count(32).filter(|&patches| patches < 4096)?;
    let offsets = (4 * (tiles + 1)).next_multiple_of(16);
    Some((HEADER_BYTES + 2816 * tiles + offsets + 2 * patches).next_multiple_of(16))
}
