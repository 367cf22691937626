//! Whether to multiply straight from the compressed weights (fused), or to decompress them to memory
//! first (decoupled). Decompression costs the same whatever the number of tokens, and cuBLASLt is
//! faster once there are enough of them.

/// How many tokens some kernels are the faster way for.
struct Limit {
    /// How their names begin.
    kernels: &'static str,
    /// Input features, at least.
    cols: usize,
    /// Tokens, at most.
    tokens: usize,
}

/// What measurements on an H100 say, and for slices an estimate; the first row that fits counts. The
/// tests compare it with those in `results`, of an H200.
const FUSED_UP_TO: &[Limit] = &[
    // docs/lab/2026-h100.md: fused takes 0.93 to 1.02 times as long at 4,096 tokens; at 8,192 0.98
    // to 1.02 with 5,120 input features and more, 0.99 to 1.06 with fewer. Between them, and beyond,
    // nothing was measured.
    Limit {
        kernels: "prefill",
        cols: 5120,
        tokens: 8192,
    },
    Limit {
        kernels: "prefill",
        cols: 0,
        tokens: 4096,
    },
    // Slices of 64 tokens, each of which reads all weights. An estimate: on large layers,
    // `zipgemm_sm80_n64` has up to 0.97x cuBLAS (docs/lab/2026-h100.md), two slices half of that, three
    // a third; decoupled has 0.40x (geometric mean) at 128 tokens.
    Limit {
        kernels: "zipgemm",
        cols: 0,
        tokens: 128,
    },
];

/// Whether decompression to memory, followed by cuBLASLt, is faster than `kernel` for `n` tokens of
/// `cols` input features.
pub fn is_decoupled_faster(kernel: &str, cols: usize, n: usize) -> bool {
    let fits = |limit: &&Limit| kernel.starts_with(limit.kernels) && cols >= limit.cols;
    FUSED_UP_TO
        .iter()
        .find(fits)
        .is_some_and(|limit| n > limit.tokens)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde::Deserialize;
    use zipserv_gpu::launch::{GEMMS, PREFILLS};

    use super::*;

    /// How much longer than the other way the one chosen may take.
    const BAR: f64 = 1.03;
    /// Up to so many tokens the choice is always fused, for it wants no memory.
    const ALWAYS_FUSED: usize = 2048;

    /// What a file of results has of a multiplication, as far as it counts here.
    #[derive(Deserialize)]
    struct Row {
        layer: Layer,
        n: usize,
        decoupled: Option<Decoupled>,
        kernels: Vec<Fused>,
    }

    #[derive(Debug, Deserialize)]
    struct Layer {
        model: String,
        name: String,
        cols: usize,
    }

    #[derive(Deserialize)]
    struct Decoupled {
        us: f64,
    }

    #[derive(Deserialize)]
    struct Fused {
        kernel: String,
        plain_us: f64,
        pdl_us: Option<f64>,
    }

    /// The rows of all files of results with multiplications beside decompression.
    fn rows() -> Vec<Row> {
        #[derive(Deserialize)]
        struct File {
            gemm: Vec<Row>,
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut rows = Vec::new();
        for entry in fs::read_dir(root.join("results")).unwrap() {
            // Others are of other things.
            let file = serde_json::from_slice::<File>(&fs::read(entry.unwrap().path()).unwrap());
            rows.extend(file.into_iter().flat_map(|file| file.gemm));
        }
        rows.retain(|row| row.decoupled.is_some());
        rows
    }

    /// How much longer than the better way the one takes that `is_decoupled` chooses.
    fn regret(row: &Row, is_decoupled: impl Fn(&str, usize, usize) -> bool) -> f64 {
        let Fused {
            kernel,
            plain_us,
            pdl_us,
        } = &row.kernels[0];
        let (fused, decoupled) = (
            pdl_us.unwrap_or(*plain_us),
            row.decoupled.as_ref().unwrap().us,
        );
        let chosen = match is_decoupled(kernel, row.layer.cols, row.n) {
            true => decoupled,
            false => fused,
        };
        chosen / fused.min(decoupled)
    }

    /// A new file of results that fails here wants another number in the table; the message says
    /// which numbers would do.
    #[test]
    fn the_measured_choice_is_never_much_slower() {
        let rows = rows();
        let mut wrong = Vec::new();
        for row in &rows {
            let regret = regret(row, is_decoupled_faster);
            if regret > BAR {
                let Layer { model, name, .. } = &row.layer;
                wrong.push(format!("{model} {name}, {} tokens: {regret:.3}x", row.n));
            }
        }
        let mut tokens: Vec<_> = rows.iter().map(|row| row.n).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let would_do = tokens.into_iter().filter(|&most| {
            let fits = |row| regret(row, |_, _, n| n > most) <= BAR;
            rows.iter().all(fits)
        });
        assert!(
            wrong.is_empty(),
            "slower than the better way:\n{}\nfused up to one of {:?} tokens would do",
            wrong.join("\n"),
            would_do.collect::<Vec<_>>()
        );
        let compared = |tokens: &dyn Fn(usize) -> bool| rows.iter().any(|row| tokens(row.n));
        assert!(compared(&|n| n <= ALWAYS_FUSED) && compared(&|n| n > ALWAYS_FUSED));
    }

    #[test]
    fn fused_kernels_keep_what_they_are_made_for() {
        for (kernel, _) in PREFILLS {
            let fused = |n| {
                [64, 28_672]
                    .iter()
                    .all(|&cols| !is_decoupled_faster(kernel, cols, n))
            };
            assert!((1..=ALWAYS_FUSED).all(fused));
        }
        for (kernel, shape) in GEMMS {
            let n = 8 * shape.n_tiles;
            assert!(!is_decoupled_faster(kernel, 4096, n), "{kernel}");
        }
    }
}
