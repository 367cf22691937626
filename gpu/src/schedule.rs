//! How output tiles for many tokens are dealt out to clusters of thread blocks.
//!
//! A cluster is persistent: it takes whole output tiles, and a run of those that are shared along K
//! ([`crate::work`]). Pure integer code, which compiles for the host too.

use core::ops::Range;

use crate::work::{Segment, Segments, Work};

/// Token blocks whose activations are to stay in the L2 cache.
const TOKEN_BLOCKS: u32 = 8;

/// How clusters share output tiles along K.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deal {
    /// So many of the last tiles are shared.
    pub split: u32,
    /// If not 0, as many clusters share each of them, and all of those but the last have so many units;
    /// else all clusters share all of them, in equal runs.
    pub early: u32,
}

impl Deal {
    /// Clusters that share a tile, where each has as many.
    #[inline(always)]
    fn parts(self, clusters: u32) -> u32 {
        clusters.checked_div(self.split).unwrap_or(1)
    }

    /// What `cluster` of `clusters` has of the shared tiles.
    #[inline(always)]
    fn segments(self, tile_cols: u32, clusters: u32, cluster: u32) -> Segments {
        if self.early == 0 {
            return Work::new(self.split * tile_cols, clusters).segments(cluster, tile_cols);
        }
        let parts = self.parts(clusters);
        let tile = cluster.checked_div(parts).unwrap_or(0);
        let part = cluster - tile * parts;
        let from = part * self.early;
        let is_last = part + 1 == parts;
        let to = if is_last {
            tile_cols
        } else {
            from + self.early
        };
        let row_block = tile;
        Segments::one(
            Segment {
                row_block,
                from,
                to,
            },
            tile_cols,
        )
    }
}

/// What a cluster has to do: its run of the split tiles, then every so-many-th of the whole ones.
#[derive(Clone, Copy)]
pub struct Schedule {
    segments: Segments,
    next: u32,
    /// Whole output tiles, before those that are split.
    whole: u32,
    clusters: u32,
    /// Units along K.
    pub tile_cols: u32,
}

/// A share of one output tile: the units `from..to` along K.
#[derive(Clone, Copy, Default)]
pub struct Share {
    /// Index of the output tile in the order in which clusters take them.
    pub tile: u32,
    /// First unit.
    pub from: u32,
    /// Past the last unit.
    pub to: u32,
}

/// The output tiles: row blocks of all blocks of a cluster, and token blocks.
#[derive(Clone, Copy)]
pub struct Tiles {
    row_groups: u32,
    token_blocks: u32,
}

/// Where an output tile is.
#[derive(Clone, Copy)]
pub struct Place {
    /// Which row blocks: as many as a cluster has blocks.
    pub row_group: u32,
    /// Which tokens.
    pub token_block: u32,
}

impl Tiles {
    /// The tiles of `m` features and `n` tokens, of so many rows and tokens each.
    #[inline(always)]
    pub fn new(m: u32, n: u32, rows: u32, tokens: u32) -> Self {
        Self {
            row_groups: m.div_ceil(rows),
            token_blocks: n.div_ceil(tokens),
        }
    }

    #[inline(always)]
    fn count(self) -> u32 {
        self.row_groups * self.token_blocks
    }

    /// The tiles go through some token blocks at a time; for them through all rows; and of a row
    /// group through all these tokens.
    #[inline(always)]
    pub fn place(self, tile: u32) -> Place {
        if self.token_blocks == 1 {
            // Two divisions less before the first copy.
            return Place {
                row_group: tile,
                token_block: 0,
            };
        }
        let column_tiles = TOKEN_BLOCKS * self.row_groups;
        let column = tile.checked_div(column_tiles).unwrap_or(0);
        let width = (self.token_blocks - column * TOKEN_BLOCKS).min(TOKEN_BLOCKS);
        let place = tile - column * column_tiles;
        let row_group = place.checked_div(width).unwrap_or(0);
        Place {
            row_group,
            token_block: column * TOKEN_BLOCKS + place - row_group * width,
        }
    }
}

impl Schedule {
    /// What `cluster` of `clusters` has to do.
    #[inline(always)]
    pub fn new(tiles: Tiles, tile_cols: u32, deal: Deal, clusters: u32, cluster: u32) -> Self {
        Self {
            segments: deal.segments(tile_cols, clusters, cluster),
            next: cluster,
            whole: tiles.count() - deal.split,
            clusters,
            tile_cols,
        }
    }

    /// The next share.
    #[inline(always)]
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Share> {
        match self.segments.next() {
            Some(segment) => Some(Share {
                tile: self.whole + segment.row_block,
                from: segment.from,
                to: segment.to,
            }),
            None if self.next < self.whole => {
                let tile = self.next;
                self.next += self.clusters;
                Some(Share {
                    tile,
                    from: 0,
                    to: self.tile_cols,
                })
            }
            None => None,
        }
    }

    /// Units of all shares.
    #[inline(always)]
    pub fn units(&self) -> u32 {
        let tiles = (self.whole + self.clusters - 1 - self.next.min(self.whole))
            .checked_div(self.clusters)
            .unwrap_or(0);
        self.segments.units(1) + tiles * self.tile_cols
    }

    /// The clusters before `cluster` that have sums of a share which it finishes.
    #[inline(always)]
    pub fn before(&self, deal: Deal, share: &Share, cluster: u32) -> Range<u32> {
        if share.from > 0 && share.to == self.tile_cols {
            // Worked out again, for threads that multiply are short of registers.
            if deal.early > 0 {
                return cluster + 1 - deal.parts(self.clusters)..cluster;
            }
            let work = Work::new(deal.split * self.tile_cols, self.clusters);
            let start = (share.tile - self.whole) * self.tile_cols;
            work.block_of(start)..cluster
        } else {
            0..0
        }
    }
}

/// A unit of a cluster's schedule: the one that a warp copies next.
#[derive(Clone, Copy)]
pub struct Cursor {
    /// What is left of the cluster's schedule, behind the share.
    pub schedule: Schedule,
    tiles: Tiles,
    /// What is left of the share, from this unit on.
    pub share: Share,
    /// Where its tile is.
    pub place: Place,
}

impl Cursor {
    /// The first unit.
    #[inline(always)]
    pub fn new(mut schedule: Schedule, tiles: Tiles) -> Self {
        let share = schedule.next().unwrap_or_default();
        Self {
            schedule,
            tiles,
            share,
            place: tiles.place(share.tile),
        }
    }

    /// Whether there are no more units.
    #[inline(always)]
    pub fn is_done(&self) -> bool {
        self.share.from == self.share.to
    }

    /// Advances so many units.
    #[inline(always)]
    pub fn skip(&mut self, mut units: u32) {
        while !self.is_done() {
            let left = self.share.to - self.share.from;
            if units < left {
                self.share.from += units;
                break;
            }
            units -= left;
            self.share = self.schedule.next().unwrap_or_default();
            self.place = self.tiles.place(self.share.tile);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each unit of each output tile is done, by all clusters.
    fn dealt(tiles: Tiles, tile_cols: u32, deal: Deal, clusters: u32) {
        const MOST: usize = 4096;
        let mut done = [0u8; MOST];
        let units = (tiles.count() * tile_cols) as usize;
        assert!(units <= MOST);
        for cluster in 0..clusters {
            let mut schedule = Schedule::new(tiles, tile_cols, deal, clusters, cluster);
            let (start, count) = (Cursor::new(schedule, tiles), schedule.units());
            let mut cursor = start;
            let mut seen = 0;
            while let Some(share) = schedule.next() {
                assert!(share.from < share.to && share.to <= tile_cols);
                // Whoever finishes a tile finds the sums of exactly those who have the rest of it.
                let before = schedule.before(deal, &share, cluster);
                let finishes = share.to == tile_cols && share.from > 0;
                assert_eq!(before.is_empty(), !finishes);
                let mut from = 0;
                for earlier in before {
                    let mut earlier = Schedule::new(tiles, tile_cols, deal, clusters, earlier);
                    while let Some(other) = earlier.next() {
                        if other.tile == share.tile {
                            assert_eq!(other.from, from);
                            from = other.to;
                        }
                    }
                }
                assert_eq!(from, if finishes { share.from } else { 0 });
                for unit in share.from..share.to {
                    let at = tiles.place(share.tile);
                    assert!(at.row_group < tiles.row_groups && at.token_block < tiles.token_blocks);
                    let place = (at.token_block * tiles.row_groups + at.row_group) * tile_cols;
                    done[(place + unit) as usize] += 1;
                    assert_eq!((cursor.share.tile, cursor.share.from), (share.tile, unit));
                    assert_eq!(
                        (cursor.place.row_group, cursor.place.token_block),
                        (at.row_group, at.token_block)
                    );
                    let mut skipped = start;
                    skipped.skip(seen);
                    assert_eq!((skipped.share.tile, skipped.share.from), (share.tile, unit));
                    cursor.skip(1);
                    seen += 1;
                }
            }
            assert!(cursor.is_done());
            assert_eq!(seen, count);
        }
        assert!(done[..units].iter().all(|&times| times == 1));
    }

    #[test]
    fn each_unit_is_done_once() {
        // Features and tokens in tiles, units along K.
        for (m, n, tile_cols) in [
            (1, 1, 1),
            (3, 1, 7),
            (5, 3, 4),
            (2, 9, 5),
            (1, 17, 3),
            (7, 8, 6),
        ] {
            let tiles = Tiles::new(m, n, 1, 1);
            for split in [0, 1, tiles.count() / 2, tiles.count()] {
                for clusters in [1, 2, 3, 5, 8, 66] {
                    dealt(tiles, tile_cols, Deal { split, early: 0 }, clusters);
                }
            }
            let split = tiles.count();
            for parts in 1..=tile_cols.min(4) {
                for early in 1..=tile_cols.checked_div(parts - 1).unwrap_or(1) {
                    if early * (parts - 1) < tile_cols {
                        dealt(tiles, tile_cols, Deal { split, early }, split * parts);
                    }
                }
            }
        }
    }

    #[test]
    fn the_last_tiles_may_be_partly_empty() {
        let tiles = Tiles::new(257, 65, 256, 64);
        assert_eq!((tiles.row_groups, tiles.token_blocks), (2, 2));
    }
}
