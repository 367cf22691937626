use zipserv_gpu::{
    launch::{GEMMS, Gemm, PREFILLS, Prefill},
    layout::TILE_COLS,
};

use super::{
    mma::{k_tiles, tokens},
    wgmma::{self, cost, decompose, most_clusters, tiles},
};
use crate::gpu::{device::Device, family::Family, kernels::Kernels, table::TunedLaunch};

/// Launches that are worth a try: what the tuner searches.
pub struct Candidates {
    gemms: Vec<(&'static str, Gemm)>,
    prefills: Vec<(&'static str, Prefill)>,
    sms: usize,
}

/// Shapes of the kernels for many tokens that are worth a try, at most: those with the lowest estimates, of
/// which the first is the plan's.
const SHAPES: usize = 4;

/// Whether a kernel for `most` tokens, or with tiles of so many, is not much too large for `n`.
fn is_near(most: usize, n: usize) -> bool {
    most < 2 * n.next_multiple_of(8) || most <= 2 * n
}

impl Candidates {
    /// On a device.
    pub fn of(gpu: &Device) -> Self {
        Self::new(|kernel| gpu.has(kernel), gpu.sms())
    }

    /// On an H100 with all of its 132 SMs.
    pub fn of_h100() -> Self {
        let kernels = Kernels::built_in(Family::Hopper);
        Self::new(|kernel| kernels.has(kernel), 132)
    }

    fn new(has: impl Fn(&str) -> bool, sms: u32) -> Self {
        let gemms = GEMMS.iter().filter(|(name, _)| has(name));
        let prefills = PREFILLS.iter().filter(|(name, _)| has(name));
        Self {
            gemms: gemms.copied().collect(),
            prefills: prefills.copied().collect(),
            sms: sms as usize,
        }
    }

    /// For `n` tokens and weights of so many rows and columns: kernels, each with some numbers of
    /// thread blocks and of output tiles shared along K.
    pub fn launches(&self, rows: usize, cols: usize, n: usize) -> Vec<TunedLaunch> {
        let mut launches = Vec::new();
        let mut add = |kernel: &str, blocks: usize, shared: Option<usize>| {
            let launch = TunedLaunch {
                kernel: kernel.to_owned(),
                blocks: blocks as u32,
                shared_tiles: shared.map(|tiles| tiles as u32),
            };
            if !launches.contains(&launch) {
                launches.push(launch);
            }
        };
        for (kernel, shape) in &self.gemms {
            // Slices read the weights again and again.
            if n <= tokens(shape) && is_near(tokens(shape), n) {
                for blocks in self.blocks(shape, rows, cols) {
                    add(kernel, blocks, None);
                }
            }
        }
        let suits = |shape: &Prefill| wgmma::can_read(0, cols) && is_near(shape.tokens, n);
        let suiting = self.prefills.iter().filter(|(_, shape)| suits(shape));
        let mut prefills: Vec<_> = suiting.collect();
        prefills.sort_by_key(|(_, shape)| cost(shape, (rows, cols), n, self.sms));
        for (kernel, shape) in prefills.into_iter().take(SHAPES) {
            for (clusters, shared) in self.decompositions(shape, rows, cols, n) {
                add(kernel, clusters * shape.cluster, Some(shared));
            }
        }
        launches
    }

    /// Numbers of thread blocks for few tokens.
    fn blocks(&self, shape: &Gemm, rows: usize, cols: usize) -> Vec<usize> {
        let columns = k_tiles(shape, rows, cols);
        let own = columns.min(self.sms * shape.blocks).max(1);
        let of_row = cols.div_ceil(TILE_COLS);
        // Runs that are whole row blocks, or equal parts of one.
        let is_aligned = |blocks: &usize| {
            let run = columns / blocks;
            columns.is_multiple_of(*blocks)
                && (run.is_multiple_of(of_row) || of_row.is_multiple_of(run))
        };
        let mut blocks = vec![own];
        // As few as have no longer runs than those.
        blocks.push(columns.div_ceil(columns.div_ceil(own).max(1)).max(1));
        blocks.extend((own * 3 / 4..own).rev().filter(|&b| b > 0).find(is_aligned));
        // Some SMs left to the kernels before and after.
        blocks.push((own * 31 / 32).max(1));
        blocks
    }

    /// Numbers of clusters and of output tiles that they share, for many tokens.
    fn decompositions(
        &self,
        shape: &Prefill,
        rows: usize,
        cols: usize,
        n: usize,
    ) -> Vec<(usize, usize)> {
        let (tiles, k_tiles) = (tiles(shape, rows, n).max(1), cols.div_ceil(TILE_COLS));
        let most = most_clusters(tiles, k_tiles, self.sms / shape.cluster);
        let mut decompositions = vec![decompose(tiles, k_tiles, most)];
        // Equal splits of each tile.
        for splits in 1..=most / tiles {
            decompositions.push((tiles * splits, if splits > 1 { tiles } else { 0 }));
        }
        // All clusters: they share nothing, what is left over when whole tiles go round, or as many
        // tiles again.
        if tiles >= most {
            decompositions.push((most, 0));
        }
        let rest = tiles % most;
        decompositions.extend([(most, rest), (most, tiles.min(rest + most))]);
        decompositions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: usize, cols: usize, n: usize) -> Vec<(String, u32, Option<u32>)> {
        let launches = Candidates::of_h100().launches(rows, cols, n);
        let parts = |launch: TunedLaunch| (launch.kernel, launch.blocks, launch.shared_tiles);
        launches.into_iter().map(parts).collect()
    }

    #[test]
    fn of_a_known_shape() {
        // 128 row blocks of 64 tile columns for strips of one, 64 for two: 128 blocks have whole
        // row blocks, or halves.
        let launch = |kernel: &str, blocks, split| (kernel.to_owned(), blocks, split);
        let few = of(4096, 4096, 1);
        let expected = ["zipgemm_n8_2x4x2", "zipgemm_n8_1x8x2"].map(|kernel| {
            let blocks = [132, 128, 127].map(|blocks| launch(kernel, blocks, None));
            (kernel, blocks)
        });
        for (kernel, blocks) in expected {
            for launch in blocks {
                assert!(few.contains(&launch), "{launch:?} of {few:?}");
            }
            assert!(few.iter().any(|(name, ..)| name == kernel));
        }
        assert!(
            few.iter()
                .all(|(kernel, ..)| kernel.starts_with("zipgemm_n8_"))
        );
        // 16 output tiles: whole, in two, three and four parts, and shared by all clusters.
        let many = of(4096, 4096, 64);
        for (blocks, shared) in [(32, 0), (64, 16), (96, 16), (128, 16), (132, 16)] {
            let launch = launch("prefill_n64", blocks, Some(shared));
            assert!(many.contains(&launch), "{launch:?} of {many:?}");
        }
    }

    #[test]
    fn are_few_and_possible() {
        for (rows, cols) in [(1, 1), (4096, 4096), (57344, 8192), (100, 333), (0, 64)] {
            for n in [1, 8, 16, 32, 64, 128, 1000, 8192] {
                let launches = of(rows, cols, n);
                assert!(launches.len() <= 32, "{rows} x {cols}, {n}: {launches:?}");
                for (kernel, blocks, shared) in launches {
                    assert!((1..=132).contains(&blocks), "{kernel}, {blocks}");
                    assert_eq!(shared.is_some(), kernel.starts_with("prefill"));
                }
            }
        }
    }
}
