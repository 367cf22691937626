//! A guard against slower code: instructions a weight, compared with committed figures.
//!
//! What a kernel does for its weights is told by marked instructions: each `HMMA` multiplies 256
//! weights by 8 tokens, each `HGMMA` 256 weights of a warp by all tokens of a tile, each 128-bit
//! store of `decompress` writes 256 weights of a warp. They
//! give the loop that counts, or, where they lie in none, the whole kernel; and the weights that
//! one pass through it handles.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use zipserv_gpu::layout::{BANDS, TILE_WEIGHTS};

use crate::{
    sass::{self, Instruction, Kernel, Loop},
    target::root,
    tools::Versions,
};

/// Weights that one warp handles with one marked instruction.
const MARK_WEIGHTS: usize = 256;
/// Tokens by which an `HMMA` multiplies them.
const MARK_TOKENS: usize = 8;

/// The committed figures.
#[derive(Default, Serialize, Deserialize)]
struct Budget {
    /// What they were counted with: other tools count otherwise.
    #[serde(flatten)]
    tools: Versions,
    /// By file, then kernel.
    instructions_a_weight: BTreeMap<String, BTreeMap<String, Figures>>,
}

/// Instructions that a thread issues for each weight that it handles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// On the hot path, see [`Kernel::hot_path`].
    pub hot: f64,
    /// As if everything within ran once, with waits, refills and rare cases.
    pub all: f64,
}

/// The part of a kernel that handles weights.
pub struct Region {
    /// The loop, or nothing for the whole kernel.
    pub main: Option<Loop>,
    /// All instructions in it.
    pub all: Vec<usize>,
    /// Those of the hot path.
    pub hot: Vec<usize>,
    /// The weights that one pass of a warp handles.
    pub weights: usize,
}

impl Region {
    /// Finds it in a kernel.
    pub fn of(kernel: &Kernel) -> Result<Self> {
        let has = |name: &str| kernel.code.iter().any(|found| found.name() == name);
        let mark = ["HGMMA", "HMMA"].into_iter().find(|name| has(name));
        let marked = |instruction: &Instruction| match mark {
            Some(mark) => instruction.name() == mark,
            None => {
                let opcode = instruction.opcode();
                opcode.starts_with("STG") && opcode.contains(".128")
            }
        };
        // Marks that handle the same weights, each for other tokens.
        let again = match mark {
            Some("HMMA") => tokens(&kernel.name)?.div_ceil(MARK_TOKENS),
            _ => 1,
        };
        let main = kernel.main_loop(marked);
        let hot = kernel.hot_path(main.as_ref(), marked);
        let marks = hot
            .iter()
            .filter(|&&node| marked(&kernel.code[node]))
            .count();
        let weights = marks * MARK_WEIGHTS / again;
        ensure!(
            weights > 0 && weights.is_multiple_of(TILE_WEIGHTS / BANDS),
            "{}: one pass handles {weights} weights, not whole bands of tiles; has a loop been left rolled up?",
            kernel.name
        );
        let all = main
            .as_ref()
            .map_or_else(|| kernel.reachable(), |found| found.body.clone());
        Ok(Self {
            main,
            all,
            hot,
            weights,
        })
    }

    /// Its figures, to two decimals.
    pub fn figures(&self) -> Figures {
        let figure = |nodes: &[usize]| (nodes.len() * 3200 / self.weights) as f64 / 100.0;
        Figures {
            hot: figure(&self.hot),
            all: figure(&self.all),
        }
    }
}

/// The tokens that a kernel is for, which its name tells: `_n8` in `zipgemm_n8_2x4x2`.
fn tokens(kernel: &str) -> Result<usize> {
    let mut words = kernel.split('_').filter_map(|word| word.strip_prefix('n'));
    words
        .find_map(|number| number.parse().ok())
        .with_context(|| format!("{kernel} does not tell for how many tokens it is"))
}

fn path() -> PathBuf {
    root().join("builder/budget.json")
}

/// Counts the instructions of every kernel, or of one, on the architecture that its target is named after.
fn measure(tools: Versions, kernel: Option<&str>) -> Result<Budget> {
    let mut budget = Budget {
        tools,
        ..Budget::default()
    };
    for (target, kernels) in sass::budgeted(kernel)? {
        let mut figures = BTreeMap::new();
        // Of the others `read` handles no weights, and memory alone sets the pace of the rest.
        let is_counted = |name: &str| {
            ![
                "read", "gather", "gate", "encode_", "route", "arrange", "combine",
            ]
            .iter()
            .any(|start| name.starts_with(start))
        };
        for kernel in kernels.iter().filter(|kernel| is_counted(&kernel.name)) {
            figures.insert(kernel.name.clone(), Region::of(kernel)?.figures());
        }
        budget.instructions_a_weight.insert(target.stem(), figures);
    }
    Ok(budget)
}

/// The committed figures.
fn read() -> Result<Budget> {
    let text = fs::read_to_string(path())
        .context("cannot read builder/budget.json; `budget --update` writes it")?;
    serde_json::from_str(&text).context("builder/budget.json")
}

/// Writes the figures.
pub fn update() -> Result<()> {
    let mut text = serde_json::to_string_pretty(&measure(Versions::here()?, None)?)?;
    text.push('\n');
    fs::write(path(), text)?;
    println!("wrote builder/budget.json");
    Ok(())
}

/// Compares with the committed figures, if they were counted with the tools that are here, as they
/// must be if `strict`.
pub fn run(strict: bool, kernel: Option<&str>) -> Result<()> {
    let (here, budget) = (Versions::here()?, read()?);
    if !here.are(&budget.tools, "not comparable: the budget is of", strict)? {
        return Ok(());
    }
    println!("{here}");
    let measured = measure(here, kernel)?;
    println!(
        "{:16} {:28} {:>6} {:>6} {:>6} {:>6}",
        "target", "kernel", "hot", "budget", "all", "budget"
    );
    let mut faults = Vec::new();
    for (target, kernels) in &measured.instructions_a_weight {
        let committed = budget.instructions_a_weight.get(target);
        for (kernel, is) in kernels {
            let Some(may) = committed.and_then(|kernels| kernels.get(kernel)) else {
                faults.push(format!("{kernel} on {target} has no budget"));
                continue;
            };
            println!(
                "{target:16} {kernel:28} {:>6.2} {:>6.2} {:>6.2} {:>6.2}",
                is.hot, may.hot, is.all, may.all
            );
            if is.hot > may.hot || is.all > may.all {
                faults.push(format!("{kernel} on {target} is above its budget"));
            }
        }
    }
    ensure!(
        faults.is_empty(),
        "{}\nIf this is meant, `cargo run -p builder -- budget --update` writes the new figures.",
        faults.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decompress(stores: usize) -> Kernel {
        let mut listing =
            ".text.decompress:\n/*0000*/ @P0 EXIT ;\n/*0000*/ LDG.E R4, [R2] ;\n".to_owned();
        listing += &"/*0000*/ STG.E.EF.128 [R2], R4 ;\n".repeat(stores);
        listing += "/*0000*/ EXIT ;\n";
        sass::parse(&listing).unwrap().remove(0)
    }

    #[test]
    fn the_figures_are_of_the_tools_that_are_asked_for() {
        assert_eq!(read().unwrap().tools, Versions::pinned());
    }

    #[test]
    fn figures_count_thread_instructions_for_each_weight() {
        let region = Region::of(&decompress(8)).unwrap();
        assert_eq!(region.weights, 2048);
        // 11 instructions of 32 lanes for 2048 weights.
        assert_eq!(
            region.figures(),
            Figures {
                hot: 0.17,
                all: 0.17
            }
        );
    }

    #[test]
    fn rolled_up_loops_are_noticed() {
        assert!(Region::of(&decompress(3)).is_err());
        assert!(Region::of(&decompress(0)).is_err());
    }
}
