//! `ptxas` and its neighbours: where they are, and what they say about each kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    ptx::{self, Launch},
    target::{Target, scratch, shown},
    tools::{find, run, version},
};

/// What a function takes of an SM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Name of the function.
    pub name: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of stack a thread.
    pub stack: u32,
    /// Bytes of spill stores and spill loads.
    pub spills: [u32; 2],
    /// Bytes of static shared memory.
    pub shared: u32,
}

/// PTX assembled for one architecture.
pub struct Assembled {
    /// The machine code.
    pub cubin: PathBuf,
    /// Its functions.
    pub usage: Vec<Usage>,
    /// What `ptxas` warned of.
    pub warnings: Vec<String>,
}

/// Assembles a PTX file, or of it these kernels alone if there are any.
pub fn assemble(ptx: &Path, arch: &str, kernels: &[&str]) -> Result<Assembled> {
    ensure!(
        ptx.is_file(),
        "there is no {}; `cargo run -p builder` writes the committed files",
        shown(ptx)
    );
    fs::create_dir_all(scratch())?;
    let name = ptx.file_stem().unwrap_or_default().to_string_lossy();
    let part = if kernels.is_empty() { "" } else { "_part" };
    let cubin = scratch().join(format!("{name}{part}_on_{arch}.cubin"));
    let output = run(Command::new(find("ptxas")?)
        .arg("-v")
        .arg(format!("-arch=sm_{arch}"))
        .args(kernels.iter().flat_map(|kernel| ["-e", kernel]))
        .arg(ptx)
        .arg("-o")
        .arg(&cubin))?;
    let log = String::from_utf8_lossy(&output.stderr);
    Ok(Assembled {
        cubin,
        usage: usage(&log),
        // Besides warnings proper, remarks with a number: some say that speed was lost.
        warnings: log
            .lines()
            .filter(|line| line.contains("warning") || line.contains("(C"))
            .map(str::to_owned)
            .collect(),
    })
}

/// Reads the log of `ptxas -v`.
fn usage(log: &str) -> Vec<Usage> {
    let mut functions: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            functions.push(Usage {
                name: name.trim().to_owned(),
                ..Usage::default()
            });
        }
        let Some(function) = functions.last_mut() else {
            continue;
        };
        for item in line.split([',', ':']).map(str::trim) {
            let words: Vec<_> = item.split(' ').collect();
            let (number, what) = match words[..] {
                ["Used", number, "registers"] => (number, "registers"),
                [number, "bytes", ..] => (number, &item[number.len() + 7..]),
                _ => continue,
            };
            let Ok(number) = number.parse() else { continue };
            match what {
                "registers" => function.registers = number,
                "stack frame" => function.stack = number,
                "spill stores" => function.spills[0] = number,
                "spill loads" => function.spills[1] = number,
                "smem" => function.shared = number,
                _ => {}
            }
        }
    }
    functions
}

/// Prints a table for each file and architecture, of all kernels or of one; fails when a function has
/// stack or spills.
pub fn report(files: &[(&Target, PathBuf)], kernel: Option<&str>) -> Result<()> {
    println!("ptxas {}", version("ptxas")?);
    let mut faults = Vec::new();
    for (target, path) in files {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let launches = Launch::of(&text);
        if kernel.is_some_and(|kernel| ptx::entry(&text, kernel).is_none()) {
            continue;
        }
        for arch in &target.archs {
            let Assembled {
                mut usage,
                warnings,
                ..
            } = assemble(path, arch, kernel.as_slice())?;
            usage.sort_by(|a, b| a.name.cmp(&b.name));
            println!("\n{} on sm_{arch}", shown(path));
            println!(
                "{:28} {:>7} {:>9} {:>5} {:>12} {:>13} {:>14}",
                "kernel",
                "threads",
                "registers",
                "stack",
                "spills st/ld",
                "static shared",
                "dynamic shared"
            );
            for function in usage {
                let Usage {
                    name,
                    registers,
                    stack,
                    spills,
                    shared,
                } = function;
                if stack > 0 || spills != [0; 2] {
                    faults.push(format!("{name} on sm_{arch}"));
                }
                if let Some(launch) = launches.iter().find(|launch| launch.name == name) {
                    println!(
                        "{name:28} {:>7} {registers:>9} {stack:>5} {:>12} {shared:>13} {:>14}",
                        launch.threads,
                        format!("{}/{}", spills[0], spills[1]),
                        launch.shared_bytes
                    );
                }
            }
            for warning in warnings {
                println!("{warning}");
            }
        }
    }
    ensure!(
        faults.is_empty(),
        "stack or spills in {}",
        faults.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_the_log() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'one' for 'sm_90a'\n\
            ptxas info    : Function properties for one\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 127 registers, used 1 barriers, 16 bytes smem, 560 bytes cmem[0]\n\
            ptxas info    : Function properties for two\n    \
            8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 40 registers\n";
        let one = Usage {
            name: "one".into(),
            registers: 127,
            shared: 16,
            ..Usage::default()
        };
        let two = Usage {
            name: "two".into(),
            registers: 40,
            stack: 8,
            spills: [4, 12],
            shared: 0,
        };
        assert_eq!(usage(log), [one, two]);
    }
}
