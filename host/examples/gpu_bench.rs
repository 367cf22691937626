//! Runs the measuring harness: our kernels beside cuBLAS on the first GPU.
//!
//! ```text
//! gpu_bench [--shapes llama-3.1-8b,...] [--layers 4096x4096,...] [--n 1,8,16,32,64]
//!           [--kernels A,B] [--all-kernels] [--blocks 132,264] [--no-gemm] [--no-decompress]
//!           [--quick] [--seed S] [--json FILE] [--commit HASH] [--ptx FILE]
//! ```
//!
//! `--kernels`, `--all-kernels` and `--blocks` try these beside the plan, which a star marks.
//! `--ptx` takes the kernels from a file, in place of those built in. It fails when an output
//! is wrong.

use std::{error::Error, fs, process::ExitCode, str::FromStr, time::Instant};

use clap::Parser;
use zipserv::{
    bench::{Config, Progress, run},
    cuda::Gpu,
};

/// Runs the measuring harness: our kernels beside cuBLAS on the first GPU.
#[derive(Parser)]
struct Args {
    /// Models; without models and layers, all.
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<String>,
    /// Layers, as ROWSxCOLS.
    #[arg(long, value_delimiter = ',')]
    layers: Vec<Shape>,
    /// Numbers of tokens.
    #[arg(long = "n", value_delimiter = ',', default_value = "1,8,16,32,64")]
    tokens: Vec<usize>,
    /// Kernels to try beside the plan's.
    #[arg(long, value_delimiter = ',')]
    kernels: Vec<String>,
    /// Try all kernels.
    #[arg(long)]
    all_kernels: bool,
    /// Numbers of thread blocks to try.
    #[arg(long, value_delimiter = ',')]
    blocks: Vec<u32>,
    /// Leave multiplication out.
    #[arg(long)]
    no_gemm: bool,
    /// Leave `decompress` out.
    #[arg(long)]
    no_decompress: bool,
    /// Less exact.
    #[arg(long)]
    quick: bool,
    /// What the data are made from; a new one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Where to write the report.
    #[arg(long)]
    json: Option<String>,
    /// The commit, for the report.
    #[arg(long)]
    commit: Option<String>,
    /// Kernels to load.
    #[arg(long)]
    ptx: Option<String>,
}

#[derive(Clone)]
struct Shape(usize, usize);

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rows, cols) = text.split_once('x').ok_or("not ROWSxCOLS")?;
        let number = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err("not a positive number"),
            Ok(number) => Ok(number),
        };
        Ok(Self(number(rows)?, number(cols)?))
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args = Args::parse();
    let config = Config {
        models: args.shapes,
        layers: args.layers.iter().map(|&Shape(r, c)| (r, c)).collect(),
        tokens: if args.no_gemm {
            Vec::new()
        } else {
            args.tokens
        },
        kernels: args.kernels,
        all_kernels: args.all_kernels,
        blocks: args.blocks,
        decompress: !args.no_decompress,
        seed: args.seed,
        commit: args.commit,
        ..Config::default()
    };
    let config = if args.quick { config.quick() } else { config };
    let start = Instant::now();
    let gpu = match args.ptx {
        Some(path) => Gpu::with_ptx(0, &fs::read_to_string(path)?)?,
        None => Gpu::new(0)?,
    };
    println!("{}, {} kernels", gpu.name()?, gpu.family());
    let report = run(&gpu, &config, &mut |progress| match progress {
        Progress::Start(seed, ceilings) => println!("seed {seed}; {ceilings}"),
        Progress::Gemm(row) => println!("{row}"),
        Progress::Decompress(row) => println!("{row}"),
    })?;
    println!("\nGeometric means, x cuBLAS:");
    for mean in &report.means {
        println!("{mean}");
    }
    if let Some(path) = args.json {
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    println!("{:.0} s", start.elapsed().as_secs_f64());
    Ok(if report.is_correct() {
        ExitCode::SUCCESS
    } else {
        println!("Some outputs are WRONG.");
        ExitCode::FAILURE
    })
}
