//! A decoder written from `docs/FORMAT.md` alone. It is slow and plain, shares no code and no
//! constant with the crates under test, and asks for each weight in turn where it is stored,
//! where they ask for each stored word which weights it holds.

/// A decoded matrix: bit patterns of BF16 weights, row after row.
#[derive(Debug, PartialEq, Eq)]
pub struct Weights {
    pub rows: usize,
    pub cols: usize,
    pub bits: Vec<u16>,
}

/// Checks and decodes a compressed matrix, or says what is wrong with it.
pub fn decode(blob: &[u8]) -> Result<Weights, &'static str> {
    if blob.len() < 128 {
        return Err("shorter than a header");
    }
    if &blob[..8] != b"ZIPSERV\0" {
        return Err("magic");
    }
    if u16_at(blob, 8) != 1 {
        return Err("version");
    }
    if u16_at(blob, 10) != 1 {
        return Err("layout");
    }
    if u32_at(blob, 44) != crc32(&blob[..44]) {
        return Err("header checksum");
    }
    if blob[48..128].iter().any(|&byte| byte != 0) {
        return Err("reserved bytes");
    }
    let base = u32_at(blob, 12);
    let scale = (8 - base % 8) % 8;
    let (rows, cols, patches) = (u64_at(blob, 16), u64_at(blob, 24), u64_at(blob, 32));
    if base > 240 && base != 248 {
        return Err("base");
    }
    if rows > 0xFFFF_FFFF || cols > 0xFFFF_FFFF || patches > 0x7FFF_FFFF {
        return Err("counts");
    }

    // 64-bit counts of 32-bit numbers: the sums below stay under 2^77.
    let (rows, cols, patches) = (u128::from(rows), u128::from(cols), u128::from(patches));
    let tile_cols = cols.div_ceil(64);
    let tiles = rows.div_ceil(32) * tile_cols;
    if tiles >= 0xFFFF_FFFF {
        return Err("tiles");
    }
    let offsets_at = 128 + 2816 * tiles;
    let patches_at = (offsets_at + 4 * (tiles + 1)).next_multiple_of(16);
    let end = (patches_at + 2 * patches).next_multiple_of(16);
    if blob.len() as u128 != end {
        return Err("length");
    }
    if u32_at(blob, 40) != crc32(&blob[128..]) {
        return Err("payload checksum");
    }

    let (rows, cols, tile_cols) = (rows as usize, cols as usize, tile_cols as usize);
    let (tiles, patches) = (tiles as usize, patches as usize);
    let (offsets_at, patches_at) = (offsets_at as usize, patches_at as usize);
    let offset = |tile: usize| u32_at(blob, offsets_at + 4 * tile) as usize;
    let patch = |index: usize| u16_at(blob, patches_at + 2 * index);
    if offset(0) != 0 || offset(tiles) != patches {
        return Err("patch offsets");
    }
    if (0..tiles).any(|tile| offset(tile) > offset(tile + 1)) {
        return Err("patch offsets");
    }
    for tile in 0..tiles {
        let mut last = None;
        for index in offset(tile)..offset(tile + 1) {
            let position = patch(index) & 2047;
            if last.is_some_and(|last| last >= position) {
                return Err("patch order");
            }
            last = Some(position);
        }
    }

    let mut used = 0;
    let mut bits = Vec::new();
    for index in 0..rows * cols {
        let (row, col) = (index / cols, index % cols);
        let tile = row / 32 * tile_cols + col / 64;
        let place = Place::of(row % 32, col % 64);
        let band = &blob[128 + 2816 * tile + 1408 * place.band..][..1408];

        let low = u16::from(band[place.byte()]);
        let words = [0, 1, 2].map(|w| u32_at(band, 1024 + 128 * w + 4 * place.lane));
        let (sign, exponent) = code(words, place.pair, place.second);
        let mut of_tile = (offset(tile)..offset(tile + 1)).map(patch);
        let patch = of_tile.find(|patch| patch & 2047 == place.position());
        used += usize::from(patch.is_some());
        let rest = patch.map_or((base + scale) as u16 >> 3, |patch| patch >> 11);
        let stored = sign << 15 | rest << 10 | exponent << 8 | low;
        bits.push(unscale(stored, scale));
    }
    if used != patches {
        return Err("a patch outside the matrix");
    }
    Ok(Weights { rows, cols, bits })
}

/// The weights of a tensor of some shape, of which the matrix in a container is decoded, or what is wrong with that.
pub fn tensor(matrix: &Weights, shape: &[usize]) -> Result<Vec<u16>, &'static str> {
    let (&cols, leading) = shape.split_last().ok_or("no dimensions")?;
    let (&last, outer) = leading.split_last().ok_or("one dimension")?;
    let (rows, experts) = (
        leading.iter().product::<usize>(),
        outer.iter().product::<usize>(),
    );
    if matrix.cols != cols {
        return Err("columns");
    }
    if matrix.rows == rows {
        return Ok(matrix.bits.clone());
    }
    let stride = 32 * last.div_ceil(32);
    if outer.is_empty() || matrix.rows != experts * stride {
        return Err("rows");
    }
    let mut bits = Vec::new();
    for expert in 0..experts {
        for row in 0..last {
            let start = (expert * stride + row) * cols;
            bits.extend_from_slice(&matrix.bits[start..start + cols]);
        }
    }
    Ok(bits)
}

/// A weight less so many factors of two; infinities and NaNs as they are.
pub fn unscale(weight: u16, scale: u32) -> u16 {
    let exponent = u32::from(weight >> 7 & 0xFF);
    if exponent == 255 || scale == 0 {
        weight
    } else if exponent > scale {
        weight - (scale << 7) as u16
    } else {
        // Multiples of the least number there is, by which the result still is one.
        let multiple = match exponent {
            0 => u32::from(weight & 0x7F),
            _ => u32::from(weight & 0x7F | 0x80) << (exponent - 1),
        };
        weight & 0x8000 | (multiple >> scale) as u16
    }
}

/// Where a weight of a tile is stored.
struct Place {
    band: usize,
    lane: usize,
    pair: usize,
    second: usize,
}

impl Place {
    fn of(row: usize, col: usize) -> Self {
        let (group, lower) = (row % 8, row % 16 / 8);
        let (thread, right) = (col % 8 / 2, col % 16 / 8);
        Self {
            band: row / 16,
            lane: 4 * group + thread,
            pair: 4 * (col / 16) + 2 * right + lower,
            second: col % 2,
        }
    }

    /// Offset of the low byte in the band.
    fn byte(&self) -> usize {
        512 * (self.pair / 8) + 16 * self.lane + 2 * (self.pair % 8) + self.second
    }

    /// What a patch of the weight has in its low eleven bits.
    fn position(&self) -> u16 {
        (1024 * self.band + self.byte()) as u16
    }
}

/// The code of one weight of a lane: its sign, and bits 9 and 8.
pub fn code(words: [u32; 3], pair: usize, second: usize) -> (u16, u16) {
    let bit = |word: usize, bit: usize| (words[word] >> (bit % 32) & 1) as u16;
    let (quad, first) = (pair / 2, 8 * (2 * (pair % 2) + second));
    match quad {
        0 | 2 | 4 => (
            bit(quad / 2, first + 7),
            bit(quad / 2, first + 1) << 1 | bit(quad / 2, first),
        ),
        1 | 3 | 5 => (
            bit(quad / 2, first + 10),
            bit(quad / 2, first + 4) << 1 | bit(quad / 2, first + 3),
        ),
        6 => (
            bit(2, first + 6),
            bit(0, first + 6) << 1 | bit(0, first + 5),
        ),
        _ => (
            bit(2, first + 5),
            bit(1, first + 6) << 1 | bit(1, first + 5),
        ),
    }
}

/// CRC-32 as in gzip, bit by bit.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                0xEDB8_8320 ^ crc >> 1
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

/// Checks and decodes byte planes, bit by bit, or says what is wrong with them. `zstd` decodes a frame.
pub fn planes(
    blob: &[u8],
    zstd: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<Vec<u8>, &'static str> {
    if blob.len() < 32 {
        return Err("shorter than a header");
    }
    if blob[..12] != *b"ZIPSERV\0\x01\0\x04\0" {
        return Err("magic, version or layout");
    }
    let (width, rotated, reserved) = (blob[12], blob[13], u16_at(blob, 14));
    let (bytes, chunk) = (u128::from(u64_at(blob, 16)), u128::from(u32_at(blob, 24)));
    let width = u128::from(width);
    if ![1, 2, 4, 8].contains(&width) || rotated > 1 || reserved != 0 || bytes % width != 0 {
        return Err("width, rotated, reserved or bytes");
    }
    if chunk == 0 || chunk * width > 4 << 20 {
        return Err("chunk");
    }
    let chunks = bytes.div_ceil(chunk * width);
    let table_end = 32 + chunks * (4 + 4 * width);
    if table_end > blob.len() as u128 {
        return Err("table");
    }
    let (table_end, width) = (table_end as usize, width as usize);
    if u32_at(blob, 28) != crc32(&[&blob[..28], &blob[32..table_end]].concat()) {
        return Err("header checksum");
    }
    // All lengths first: a reader knows them before it decodes anything.
    let mut at = table_end;
    let mut chunks_left = Vec::new();
    for (index, entry) in blob[32..table_end].chunks(4 + 4 * width).enumerate() {
        let elements = chunk.min((bytes / width as u128) - index as u128 * chunk) as usize;
        let mut planes = Vec::new();
        for plane in 0..width {
            let word = u32_at(entry, 4 + 4 * plane);
            let (coder, stored) = (word >> 24, (word & 0xFF_FFFF) as usize);
            let fits = match coder {
                0 => stored == elements,
                1 => stored == 1,
                2 => stored < elements,
                _ => return Err("coder"),
            };
            if !fits {
                return Err("length of a plane");
            }
            planes.push((coder, at, at + stored));
            at += stored;
        }
        chunks_left.push((u32_at(entry, 0), elements, planes));
    }
    if blob.len() != at.next_multiple_of(16) || blob[at..].iter().any(|&byte| byte != 0) {
        return Err("length or padding");
    }
    let mut tensor = Vec::new();
    for (crc, elements, stored) in chunks_left {
        let mut planes = Vec::new();
        for (coder, start, end) in stored {
            let stored = &blob[start..end];
            planes.push(match coder {
                0 => stored.to_vec(),
                1 => vec![stored[0]; elements],
                _ => zstd(stored).ok_or("frame")?,
            });
        }
        if planes.iter().any(|plane| plane.len() != elements) {
            return Err("bytes of a frame");
        }
        let before = tensor.len();
        let bytes = (0..elements).flat_map(|element| (0..width).map(move |byte| (element, byte)));
        for (element, byte) in bytes {
            let bit = |bit: usize| planes[bit / 8][element] >> (bit % 8) & 1;
            let bits =
                (0..8).map(|i| bit((8 * byte + i + usize::from(rotated)) % (8 * width)) << i);
            tensor.push(bits.sum());
        }
        if crc != crc32(&tensor[before..]) {
            return Err("checksum of a chunk");
        }
    }
    Ok(tensor)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
