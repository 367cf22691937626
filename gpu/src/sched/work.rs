//! How the line of k-tiles is decomposed among thread blocks (stream-K).
//!
//! The line goes through the matrix output tile by output tile, and in each along K. A block takes a
//! contiguous *run* of it, which falls into *work tiles*, one for each output tile that it touches.
//! Where an output tile is shared, the block that has its last k-tiles reduces the others' partial sums.

/// The decomposition: the first `extra` blocks take one `unit` of k-tiles more.
#[derive(Clone, Copy, Debug)]
pub struct StreamK {
    each: u32,
    extra: u32,
    unit: u32,
}

impl StreamK {
    /// Decomposes `total` k-tiles, of all output tiles, among `blocks` thread blocks.
    #[inline(always)]
    pub fn new(total: u32, blocks: u32) -> Self {
        let each = total.checked_div(blocks).unwrap_or(0);
        Self {
            each,
            extra: total - each * blocks,
            unit: 1,
        }
    }

    /// Deals whole output tiles of `k_tiles` each, so that none is shared: the sums of each are then added in an order
    /// that depends on nothing else.
    #[inline(always)]
    pub fn whole(output_tiles: u32, blocks: u32, k_tiles: u32) -> Self {
        let Self { each, extra, .. } = Self::new(output_tiles, blocks);
        Self {
            each: each * k_tiles,
            extra,
            unit: k_tiles,
        }
    }

    /// First k-tile of `block`.
    #[inline(always)]
    fn start(self, block: u32) -> u32 {
        block * self.each + block.min(self.extra) * self.unit
    }

    /// The block that takes `k_tile`, where output tiles are shared.
    #[inline(always)]
    pub fn block_of(self, k_tile: u32) -> u32 {
        let large = self.extra * (self.each + 1);
        if k_tile < large {
            k_tile.checked_div(self.each + 1).unwrap_or(0)
        } else {
            self.extra + (k_tile - large).checked_div(self.each).unwrap_or(0)
        }
    }

    /// The work tiles of `block`, where output tiles have `k_tiles` each.
    #[inline(always)]
    pub fn work_tiles(self, block: u32, k_tiles: u32) -> WorkTiles {
        let (start, end) = (self.start(block), self.start(block + 1));
        let tile_of = |k_tile: u32| k_tile.checked_div(k_tiles).unwrap_or(0);
        WorkTiles {
            start,
            end,
            k_tiles,
            tile: tile_of(end),
            left: end - start,
        }
    }
}

/// The work tiles of one block's run, last output tile first.
///
/// So it begins with the one that a later thread block finishes, whose partial sums are thus
/// written long before they are needed, and ends with the one that needs an earlier block's.
#[derive(Clone, Copy, Debug)]
pub struct WorkTiles {
    start: u32,
    end: u32,
    k_tiles: u32,
    tile: u32,
    left: u32,
}

/// Work on one output tile: its k-tiles `from..to`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkTile {
    /// Index of the output tile in the order in which they are worked on.
    pub tile: u32,
    /// First k-tile.
    pub from: u32,
    /// Past the last k-tile.
    pub to: u32,
}

impl WorkTiles {
    /// One work tile.
    #[inline(always)]
    pub fn one(WorkTile { tile, from, to }: WorkTile, k_tiles: u32) -> Self {
        let start = tile * k_tiles;
        Self {
            start: start + from,
            end: start + to,
            k_tiles,
            tile,
            left: to - from,
        }
    }

    /// The first output tile of the run, which is the last one that is worked on.
    #[inline(always)]
    pub fn first_tile(&self) -> u32 {
        self.start.checked_div(self.k_tiles).unwrap_or(0)
    }

    /// k-tiles in all work tiles.
    #[inline(always)]
    pub fn left(&self) -> u32 {
        self.left
    }

    /// *k-blocks*, of up to `size` k-tiles that are worked on at once, in all work tiles.
    #[inline(always)]
    pub fn k_blocks(self, size: u32) -> u32 {
        let mut blocks = 0;
        for work_tile in self {
            blocks += (work_tile.to - work_tile.from).div_ceil(size);
        }
        blocks
    }
}

impl Iterator for WorkTiles {
    type Item = WorkTile;

    #[inline(always)]
    fn next(&mut self) -> Option<WorkTile> {
        if self.left == 0 {
            return None;
        }
        if self.tile * self.k_tiles >= self.end {
            self.tile -= 1;
        }
        let tile_start = self.tile * self.k_tiles;
        let work_tile = WorkTile {
            tile: self.tile,
            from: self.start.max(tile_start) - tile_start,
            to: self.k_tiles.min(self.end - tile_start),
        };
        self.end = tile_start;
        self.left -= work_tile.to - work_tile.from;
        Some(work_tile)
    }
}

/// A place in a block's run: a k-block of up to `SIZE` k-tiles.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<const SIZE: usize> {
    work_tiles: WorkTiles,
    work_tile: WorkTile,
}

impl<const SIZE: usize> Cursor<SIZE> {
    /// The first k-block.
    #[inline(always)]
    pub fn new(mut work_tiles: WorkTiles) -> Self {
        let work_tile = work_tiles.next().unwrap_or(WorkTile {
            tile: 0,
            from: 0,
            to: 0,
        });
        Self {
            work_tiles,
            work_tile,
        }
    }

    /// Output tile, first k-tile and number of k-tiles; none past the end.
    #[inline(always)]
    pub fn k_block(&self) -> (u32, u32, u32) {
        let WorkTile { tile, from, to } = self.work_tile;
        (tile, from, (to - from).min(SIZE as u32))
    }

    /// The k-block that comes `blocks` later.
    #[inline(always)]
    pub fn after(mut self, mut blocks: u32) -> Self {
        loop {
            let WorkTile { from, to, .. } = self.work_tile;
            let left = (to - from).div_ceil(SIZE as u32);
            if blocks < left {
                self.work_tile.from = from + blocks * SIZE as u32;
                return self;
            }
            blocks -= left;
            match self.work_tiles.next() {
                Some(work_tile) => self.work_tile = work_tile,
                None => {
                    self.work_tile.from = to;
                    return self;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_k_tile_is_worked_on_once() {
        for (k_tiles, output_tiles) in [(1, 1), (1, 9), (7, 1), (64, 5), (3, 40), (10, 33)] {
            let total = k_tiles * output_tiles;
            for blocks in [1, 2, 3, 7, 32, 33].into_iter().filter(|&b| b <= total) {
                let work = StreamK::new(total, blocks);
                let mut next = 0;
                for block in 0..blocks {
                    let work_tiles = work.work_tiles(block, k_tiles);
                    let count = work_tiles.count();
                    assert!(count > 0, "a block without work would be waited for");
                    let mut in_blocks = 0;
                    // The last output tile comes first.
                    for work_tile in (0..count).rev().filter_map(|i| work_tiles.clone().nth(i)) {
                        let from = work_tile.tile * k_tiles + work_tile.from;
                        let to = work_tile.tile * k_tiles + work_tile.to;
                        assert_eq!(from, next);
                        assert!(from < to && work_tile.to <= k_tiles);
                        for k_tile in from..to {
                            assert_eq!(work.block_of(k_tile), block);
                        }
                        in_blocks += (to - from).div_ceil(2);
                        next = to;
                    }
                    assert_eq!(work_tiles.k_blocks(2), in_blocks);
                }
                assert_eq!(next, total);
            }
        }
    }

    #[test]
    fn whole_tiles_are_dealt_once_and_evenly() {
        for (k_tiles, output_tiles) in [(1, 1), (1, 9), (7, 1), (64, 5), (3, 40), (10, 33), (4, 0)]
        {
            for blocks in [1, 2, 3, 7, 32, 33] {
                let work = StreamK::whole(output_tiles, blocks, k_tiles);
                let mut taken = [0; 64];
                for block in 0..blocks {
                    let own = work.work_tiles(block, k_tiles);
                    assert!(own.count() as u32 <= output_tiles.div_ceil(blocks));
                    for WorkTile { tile, from, to } in own {
                        assert_eq!((from, to), (0, k_tiles));
                        taken[tile as usize] += 1;
                    }
                }
                let (dealt, rest) = taken.split_at(output_tiles as usize);
                assert!(
                    dealt.iter().all(|&times| times == 1) && rest.iter().all(|&times| times == 0)
                );
            }
        }
    }

    /// Every start and every distance of every small case.
    fn cursors<const SIZE: usize>() {
        for (k_tiles, output_tiles) in (1..6).flat_map(|k| (1..5).map(move |tiles| (k, tiles))) {
            let total = k_tiles * output_tiles;
            for blocks in 1..=total {
                let work = StreamK::new(total, blocks);
                for block in 0..blocks {
                    let work_tiles = work.work_tiles(block, k_tiles);
                    let first = Cursor::<SIZE>::new(work_tiles);
                    let mut at = first;
                    let mut passed = 0;
                    for WorkTile { tile, from, to } in work_tiles {
                        for from in (from..to).step_by(SIZE) {
                            let expected = (tile, from, (to - from).min(SIZE as u32));
                            assert_eq!(at.k_block(), expected);
                            assert_eq!(first.after(passed).k_block(), expected);
                            for back in 0..=passed {
                                let skipped = first.after(back).after(passed - back);
                                assert_eq!(skipped.k_block(), expected);
                            }
                            at = at.after(1);
                            passed += 1;
                        }
                    }
                    assert_eq!(passed, work_tiles.k_blocks(SIZE as u32));
                    for more in 0..3 {
                        assert_eq!(first.after(passed + more).k_block().2, 0);
                    }
                }
            }
        }
    }

    #[test]
    fn cursors_pass_every_k_block() {
        cursors::<1>();
        cursors::<2>();
        cursors::<4>();
    }
}
