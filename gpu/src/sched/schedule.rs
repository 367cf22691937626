//! How output tiles for many tokens are decomposed among clusters of thread blocks.
//!
//! A cluster is persistent: it takes whole output tiles, and a run of those that are shared along K
//! ([`super::work`]).

use core::ops::Range;

use super::work::{StreamK, WorkTile, WorkTiles};

/// Token blocks whose activations are to stay in the L2 cache.
const TOKEN_BLOCKS: u32 = 8;

/// How clusters share output tiles along K.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decomposition {
    /// So many of the last output tiles are shared.
    pub shared_tiles: u32,
    /// If not 0, as many clusters share each of them (split-K), and all of those but the last have so
    /// many k-tiles; else all clusters share all of them, in equal runs (stream-K).
    pub k_tiles_per_split: u32,
}

impl Decomposition {
    /// Whole output tiles only.
    pub const WHOLE: Self = Self {
        shared_tiles: 0,
        k_tiles_per_split: 0,
    };

    /// Clusters that share a tile, where each has as many.
    #[inline(always)]
    fn splits(self, clusters: u32) -> u32 {
        clusters.checked_div(self.shared_tiles).unwrap_or(1)
    }

    /// What `cluster` of `clusters` has of the shared tiles.
    #[inline(always)]
    fn work_tiles(self, k_tiles: u32, clusters: u32, cluster: u32) -> WorkTiles {
        if self.k_tiles_per_split == 0 {
            let total = self.shared_tiles * k_tiles;
            return StreamK::new(total, clusters).work_tiles(cluster, k_tiles);
        }
        let splits = self.splits(clusters);
        let tile = cluster.checked_div(splits).unwrap_or(0);
        let split = cluster - tile * splits;
        let from = split * self.k_tiles_per_split;
        let is_last = split + 1 == splits;
        let to = if is_last {
            k_tiles
        } else {
            from + self.k_tiles_per_split
        };
        WorkTiles::one(WorkTile { tile, from, to }, k_tiles)
    }
}

/// What a cluster has to do: its run of the shared tiles, then every so-many-th of the whole ones.
#[derive(Clone, Copy)]
pub struct Schedule {
    work_tiles: WorkTiles,
    next: u32,
    /// Whole output tiles, before those that are shared.
    whole: u32,
    clusters: u32,
    /// k-tiles of an output tile.
    pub k_tiles: u32,
}

/// The output tiles: row blocks of all blocks of a cluster, and token blocks.
#[derive(Clone, Copy)]
pub struct OutputTiles {
    row_groups: u32,
    token_blocks: u32,
    /// Whether token blocks are gone through one by one.
    is_grouped: bool,
}

/// Where an output tile is.
#[derive(Clone, Copy, Default)]
pub struct Place {
    /// Which row blocks: as many as a cluster has blocks.
    pub row_group: u32,
    /// Which tokens.
    pub token_block: u32,
}

impl OutputTiles {
    /// The tiles of `m` features and `n` tokens, of so many rows and tokens each.
    #[inline(always)]
    pub fn new(m: u32, n: u32, rows: u32, tokens: u32) -> Self {
        Self {
            row_groups: m.div_ceil(rows),
            token_blocks: n.div_ceil(tokens),
            is_grouped: false,
        }
    }

    /// The tiles of `m` features for each of so many groups of tokens, of which each is a token block: one after the
    /// other, for each has weights of its own.
    #[inline(always)]
    pub fn of_groups(m: u32, groups: u32, rows: u32) -> Self {
        Self {
            row_groups: m.div_ceil(rows),
            token_blocks: groups,
            is_grouped: true,
        }
    }

    #[inline(always)]
    fn count(self) -> u32 {
        self.row_groups * self.token_blocks
    }

    /// The tiles go through some token blocks at a time, or one if they are groups; for them through all rows; and of a
    /// row group through all these tokens.
    #[inline(always)]
    pub fn place(self, tile: u32) -> Place {
        if self.token_blocks == 1 {
            // Two divisions less before the first copy.
            return Place {
                row_group: tile,
                token_block: 0,
            };
        }
        if self.is_grouped {
            let token_block = tile.checked_div(self.row_groups).unwrap_or(0);
            return Place {
                row_group: tile - token_block * self.row_groups,
                token_block,
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
    pub fn new(
        tiles: OutputTiles,
        k_tiles: u32,
        decomposition: Decomposition,
        clusters: u32,
        cluster: u32,
    ) -> Self {
        Self {
            work_tiles: decomposition.work_tiles(k_tiles, clusters, cluster),
            next: cluster,
            whole: tiles.count() - decomposition.shared_tiles,
            clusters,
            k_tiles,
        }
    }

    /// The next work tile.
    #[inline(always)]
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<WorkTile> {
        match self.work_tiles.next() {
            Some(shared) => Some(WorkTile {
                tile: self.whole + shared.tile,
                ..shared
            }),
            None if self.next < self.whole => {
                let tile = self.next;
                self.next += self.clusters;
                Some(WorkTile {
                    tile,
                    from: 0,
                    to: self.k_tiles,
                })
            }
            None => None,
        }
    }

    /// k-tiles of all work tiles.
    #[inline(always)]
    pub fn total_k_tiles(&self) -> u32 {
        let tiles = (self.whole + self.clusters - 1 - self.next.min(self.whole))
            .checked_div(self.clusters)
            .unwrap_or(0);
        self.work_tiles.k_blocks(1) + tiles * self.k_tiles
    }

    /// The clusters before `cluster` that have partial sums of a work tile which it finishes.
    #[inline(always)]
    pub fn peers(
        &self,
        decomposition: Decomposition,
        work_tile: &WorkTile,
        cluster: u32,
    ) -> Range<u32> {
        if work_tile.from > 0 && work_tile.to == self.k_tiles {
            // Worked out again, for threads that multiply are short of registers.
            if decomposition.k_tiles_per_split > 0 {
                return cluster + 1 - decomposition.splits(self.clusters)..cluster;
            }
            let work = StreamK::new(decomposition.shared_tiles * self.k_tiles, self.clusters);
            let start = (work_tile.tile - self.whole) * self.k_tiles;
            work.block_of(start)..cluster
        } else {
            0..0
        }
    }
}

/// A k-tile of a cluster's schedule: the one that a warp copies next.
#[derive(Clone, Copy)]
pub struct Cursor {
    /// What is left of the cluster's schedule, behind the work tile.
    pub schedule: Schedule,
    tiles: OutputTiles,
    /// What is left of the work tile, from this k-tile on.
    pub work_tile: WorkTile,
    /// Where its tile is.
    pub place: Place,
}

impl Cursor {
    /// The first k-tile.
    #[inline(always)]
    pub fn new(mut schedule: Schedule, tiles: OutputTiles) -> Self {
        let work_tile = schedule.next().unwrap_or_default();
        Self {
            schedule,
            tiles,
            work_tile,
            place: tiles.place(work_tile.tile),
        }
    }

    /// Whether there are no more k-tiles.
    #[inline(always)]
    pub fn is_done(&self) -> bool {
        self.work_tile.from == self.work_tile.to
    }

    /// Advances so many k-tiles.
    #[inline(always)]
    pub fn skip(&mut self, mut k_tiles: u32) {
        while !self.is_done() {
            let left = self.work_tile.to - self.work_tile.from;
            if k_tiles < left {
                self.work_tile.from += k_tiles;
                break;
            }
            k_tiles -= left;
            self.work_tile = self.schedule.next().unwrap_or_default();
            self.place = self.tiles.place(self.work_tile.tile);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each k-tile of each output tile is done, by all clusters.
    fn decomposed(tiles: OutputTiles, k_tiles: u32, decomposition: Decomposition, clusters: u32) {
        const MOST: usize = 4096;
        let mut done = [0u8; MOST];
        let total = (tiles.count() * k_tiles) as usize;
        assert!(total <= MOST);
        for cluster in 0..clusters {
            let mut schedule = Schedule::new(tiles, k_tiles, decomposition, clusters, cluster);
            let (start, count) = (Cursor::new(schedule, tiles), schedule.total_k_tiles());
            let mut cursor = start;
            let mut seen = 0;
            while let Some(work_tile) = schedule.next() {
                assert!(work_tile.from < work_tile.to && work_tile.to <= k_tiles);
                // Whoever finishes a tile finds the sums of exactly those who have the rest of it.
                let peers = schedule.peers(decomposition, &work_tile, cluster);
                let finishes = work_tile.to == k_tiles && work_tile.from > 0;
                assert_eq!(peers.is_empty(), !finishes);
                let mut from = 0;
                for earlier in peers {
                    let mut earlier =
                        Schedule::new(tiles, k_tiles, decomposition, clusters, earlier);
                    while let Some(other) = earlier.next() {
                        if other.tile == work_tile.tile {
                            assert_eq!(other.from, from);
                            from = other.to;
                        }
                    }
                }
                assert_eq!(from, if finishes { work_tile.from } else { 0 });
                for k_tile in work_tile.from..work_tile.to {
                    let at = tiles.place(work_tile.tile);
                    assert!(at.row_group < tiles.row_groups && at.token_block < tiles.token_blocks);
                    let place = (at.token_block * tiles.row_groups + at.row_group) * k_tiles;
                    done[(place + k_tile) as usize] += 1;
                    assert_eq!(
                        (cursor.work_tile.tile, cursor.work_tile.from),
                        (work_tile.tile, k_tile)
                    );
                    assert_eq!(
                        (cursor.place.row_group, cursor.place.token_block),
                        (at.row_group, at.token_block)
                    );
                    let mut skipped = start;
                    skipped.skip(seen);
                    assert_eq!(
                        (skipped.work_tile.tile, skipped.work_tile.from),
                        (work_tile.tile, k_tile)
                    );
                    cursor.skip(1);
                    seen += 1;
                }
            }
            assert!(cursor.is_done());
            assert_eq!(seen, count);
        }
        assert!(done[..total].iter().all(|&times| times == 1));
    }

    #[test]
    fn each_k_tile_is_done_once() {
        // Features and tokens in tiles, k-tiles.
        for (m, n, k_tiles) in [
            (1, 1, 1),
            (3, 1, 7),
            (5, 3, 4),
            (2, 9, 5),
            (1, 17, 3),
            (7, 8, 6),
        ] {
            let tiles = OutputTiles::new(m, n, 1, 1);
            for clusters in [1, 2, 3, 5, 8, 66] {
                let groups = OutputTiles::of_groups(m, n, 1);
                decomposed(groups, k_tiles, Decomposition::WHOLE, clusters);
            }
            for shared_tiles in [0, 1, tiles.count() / 2, tiles.count()] {
                for clusters in [1, 2, 3, 5, 8, 66] {
                    let decomposition = Decomposition {
                        shared_tiles,
                        k_tiles_per_split: 0,
                    };
                    decomposed(tiles, k_tiles, decomposition, clusters);
                }
            }
            let shared_tiles = tiles.count();
            for splits in 1..=k_tiles.min(4) {
                for k_tiles_per_split in 1..=k_tiles.checked_div(splits - 1).unwrap_or(1) {
                    if k_tiles_per_split * (splits - 1) < k_tiles {
                        let decomposition = Decomposition {
                            shared_tiles,
                            k_tiles_per_split,
                        };
                        decomposed(tiles, k_tiles, decomposition, shared_tiles * splits);
                    }
                }
            }
        }
    }

    #[test]
    fn groups_follow_one_another() {
        let tiles = OutputTiles::of_groups(700, 5, 256);
        let places = (0..tiles.count()).map(|tile| tiles.place(tile));
        let places = places.map(|place| 3 * place.token_block + place.row_group);
        assert!(places.eq(0..15));
        // Where nobody has been sent to, there is nothing to do.
        let tiles = OutputTiles::of_groups(700, 0, 256);
        let mut schedule = Schedule::new(tiles, 9, Decomposition::WHOLE, 66, 0);
        assert!(schedule.next().is_none() && schedule.total_k_tiles() == 0);
        assert!(Cursor::new(schedule, tiles).is_done());
    }

    #[test]
    fn the_last_tiles_may_be_partly_empty() {
        let tiles = OutputTiles::new(257, 65, 256, 64);
        assert_eq!((tiles.row_groups, tiles.token_blocks), (2, 2));
    }
}
