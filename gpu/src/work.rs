//! How the line of tiles is dealt out to thread blocks (stream-K).
//!
//! The line goes through the matrix row block by row block, and in each along K. A block takes a
//! contiguous *run* of it, which falls into *segments*, one for each row block that it touches.
//! Where a row block is shared, the block that has its last columns adds up the others' sums.

/// The deal: the first `extra` blocks take one tile column more.
#[derive(Clone, Copy)]
pub struct Work {
    each: u32,
    extra: u32,
}

impl Work {
    /// Deals `columns` tile columns, over all row blocks, to `blocks` thread blocks.
    #[inline(always)]
    pub fn new(columns: u32, blocks: u32) -> Self {
        let each = columns.checked_div(blocks).unwrap_or(0);
        Self {
            each,
            extra: columns - each * blocks,
        }
    }

    /// First tile column of `block`.
    #[inline(always)]
    fn start(self, block: u32) -> u32 {
        block * self.each + block.min(self.extra)
    }

    /// The block that takes `column`.
    #[inline(always)]
    pub fn block_of(self, column: u32) -> u32 {
        let large = self.extra * (self.each + 1);
        if column < large {
            column.checked_div(self.each + 1).unwrap_or(0)
        } else {
            self.extra + (column - large).checked_div(self.each).unwrap_or(0)
        }
    }

    /// The segments of `block`, of a matrix of `tile_cols` tile columns.
    #[inline(always)]
    pub fn segments(self, block: u32, tile_cols: u32) -> Segments {
        let (start, end) = (self.start(block), self.start(block + 1));
        let row_block_of = |column: u32| column.checked_div(tile_cols).unwrap_or(0);
        Segments {
            start,
            end,
            tile_cols,
            row_block: row_block_of(end),
            left: end - start,
        }
    }
}

/// The segments of one block's run, last row block first.
///
/// So it begins with the one that a later thread block finishes, whose partial sums are thus
/// written long before they are needed, and ends with the one that needs an earlier block's.
#[derive(Clone, Copy)]
pub struct Segments {
    start: u32,
    end: u32,
    tile_cols: u32,
    row_block: u32,
    left: u32,
}

/// A block's share of one row block: its tile columns `from..to`.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Index of the row block.
    pub row_block: u32,
    /// First tile column.
    pub from: u32,
    /// Past the last tile column.
    pub to: u32,
}

impl Segments {
    /// One segment: columns of one row block.
    #[inline(always)]
    pub fn one(
        Segment {
            row_block,
            from,
            to,
        }: Segment,
        tile_cols: u32,
    ) -> Self {
        let start = row_block * tile_cols;
        Self {
            start: start + from,
            end: start + to,
            tile_cols,
            row_block,
            left: to - from,
        }
    }

    /// Tile columns in all segments.
    #[inline(always)]
    pub fn columns(&self) -> u32 {
        self.left
    }

    /// Units of up to `groups` tile columns in all segments.
    #[inline(always)]
    pub fn units(self, groups: u32) -> u32 {
        let mut units = 0;
        for segment in self {
            units += (segment.to - segment.from).div_ceil(groups);
        }
        units
    }
}

impl Iterator for Segments {
    type Item = Segment;

    #[inline(always)]
    fn next(&mut self) -> Option<Segment> {
        if self.left == 0 {
            return None;
        }
        if self.row_block * self.tile_cols >= self.end {
            self.row_block -= 1;
        }
        let row_block_start = self.row_block * self.tile_cols;
        let segment = Segment {
            row_block: self.row_block,
            from: self.start.max(row_block_start) - row_block_start,
            to: self.tile_cols.min(self.end - row_block_start),
        };
        self.end = row_block_start;
        self.left -= segment.to - segment.from;
        Some(segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_is_dealt_out_once() {
        for (tile_cols, row_blocks) in [(1, 1), (1, 9), (7, 1), (64, 5), (3, 40), (10, 33)] {
            let columns = tile_cols * row_blocks;
            for blocks in [1, 2, 3, 7, 32, 33].into_iter().filter(|&b| b <= columns) {
                let work = Work::new(columns, blocks);
                let mut next = 0;
                for block in 0..blocks {
                    let segments = work.segments(block, tile_cols);
                    let count = segments.count();
                    assert!(count > 0, "a block without work would be waited for");
                    let mut in_units = 0;
                    // The last row block comes first.
                    for segment in (0..count).rev().filter_map(|i| segments.clone().nth(i)) {
                        let from = segment.row_block * tile_cols + segment.from;
                        let to = segment.row_block * tile_cols + segment.to;
                        assert_eq!(from, next);
                        assert!(from < to && segment.to <= tile_cols);
                        for column in from..to {
                            assert_eq!(work.block_of(column), block);
                        }
                        in_units += (to - from).div_ceil(2);
                        next = to;
                    }
                    assert_eq!(segments.units(2), in_units);
                }
                assert_eq!(next, columns);
            }
        }
    }
}
