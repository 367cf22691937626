//! Times the kernels for many tokens beside cuBLAS on the first GPU.
//!
//! ```text
//! prefill_bench [--layers 4096x4096,...] [--n 128,256,512,1024,2048] [--all] [--quick]
//!               [--seed S] [--ptx FILE]
//! ```
//!
//! Without layers, all of the models' are measured. `--all` tries every kernel beside the plan's,
//! with whole and with shared output tiles. `--ptx` takes the kernels from a file, in place of
//! those built in. It fails when an output is wrong.

use std::{collections::BTreeMap, error::Error, fs, process::ExitCode};

use clap::Parser;
use zipserv::{
    bench::{Config, prefill},
    cuda::Gpu,
};

/// Times the kernels for many tokens beside cuBLAS on the first GPU.
#[derive(Parser)]
struct Args {
    /// Layers, as ROWSxCOLS; without any, those of all models.
    #[arg(long, value_delimiter = ',', value_parser = shape)]
    layers: Vec<(usize, usize)>,
    /// Numbers of tokens.
    #[arg(
        long = "n",
        value_delimiter = ',',
        default_value = "128,256,512,1024,2048"
    )]
    tokens: Vec<usize>,
    /// Try all kernels.
    #[arg(long)]
    all: bool,
    /// Less exact.
    #[arg(long)]
    quick: bool,
    /// What the data are made from; a new one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Kernels to load.
    #[arg(long)]
    ptx: Option<String>,
}

fn shape(text: &str) -> Result<(usize, usize), Box<dyn Error + Send + Sync>> {
    let (rows, cols) = text.split_once('x').ok_or("not ROWSxCOLS")?;
    Ok((rows.parse()?, cols.parse()?))
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args = Args::parse();
    let config = Config {
        layers: args.layers,
        tokens: args.tokens,
        seed: args.seed,
        ..Config::default()
    };
    let config = if args.quick { config.quick() } else { config };
    let gpu = match args.ptx {
        // SAFETY: whoever names the file takes it from the builder.
        Some(path) => unsafe { Gpu::with_ptx(0, &fs::read_to_string(path)?)? },
        None => Gpu::new(0)?,
    };
    println!("{}, {} kernels", gpu.name()?, gpu.family());
    let mut correct = true;
    // For each number of tokens, logarithms of x cuBLAS: the plan's and the best.
    let mut logs = BTreeMap::<usize, Vec<[f64; 2]>>::new();
    prefill(&gpu, &config, args.all, &mut |row| {
        println!("{row}");
        correct &= row.kernels.iter().all(|kernel| kernel.correct);
        let speedups = row.kernels.iter().map(|kernel| row.cublas_us / kernel.us);
        let best = speedups.clone().fold(0.0, f64::max);
        let planned = speedups.take(1).sum::<f64>();
        logs.entry(row.n)
            .or_default()
            .push([planned, best].map(f64::ln));
    })?;
    println!("\nGeometric means, x cuBLAS:");
    for (n, logs) in logs {
        let mean =
            |i: usize| (logs.iter().map(|log| log[i]).sum::<f64>() / logs.len() as f64).exp();
        println!("n {n:<5} plan {:.3}x, best {:.3}x", mean(0), mean(1));
    }
    Ok(if correct {
        ExitCode::SUCCESS
    } else {
        println!("Some outputs are WRONG.");
        ExitCode::FAILURE
    })
}
