//! Prints kernels.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Write as _, stdout},
};

use anyhow::{Context, Result, bail};

use crate::{
    budget::Region,
    ptx, ptxas,
    sass::{self, Kernel},
    target::Target,
};

/// Prints the PTX of a kernel.
pub fn ptx(kernel: &str, arch: &str) -> Result<()> {
    let text = Target::of_arch(arch)?.read()?;
    print(ptx::entry(&text, kernel).with_context(|| no_kernel(kernel, &text))?)
}

/// Prints the machine code of a kernel, then what it is made of.
pub fn sass(kernel: &str, arch: &str) -> Result<()> {
    let target = Target::of_arch(arch)?;
    let assembled = ptxas::assemble(target, arch.trim_start_matches("sm_"))?;
    let kernels = sass::disassemble(&assembled.cubin)?;
    let Some(found) = kernels.iter().find(|found| found.name == kernel) else {
        bail!(no_kernel(kernel, &target.read()?));
    };
    print(&listing(found)?)
}

/// Prints text that may be long; a reader such as `head` may leave early.
fn print(text: &str) -> Result<()> {
    match stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn no_kernel(kernel: &str, ptx: &str) -> String {
    let names: Vec<_> = ptx::entries(ptx).collect();
    format!(
        "there is no kernel {kernel}; there are {}",
        names.join(", ")
    )
}

/// The code, with `|` for the main loop and `*` for its hot path; then its loops,
/// and instructions by pipe.
fn listing(kernel: &Kernel) -> Result<String> {
    let region = Region::of(kernel)?;
    let mut out = String::new();
    for (node, instruction) in kernel.code.iter().enumerate() {
        let mark = match (region.hot.contains(&node), region.all.contains(&node)) {
            (true, _) => '*',
            (_, true) => '|',
            _ => ' ',
        };
        writeln!(
            out,
            "{mark} {:05x}  {:7}  {}",
            instruction.address,
            instruction.pipe(),
            instruction.text
        )?;
    }
    writeln!(
        out,
        "\n{:>8} {:>12} {:>5} {:>5}",
        "loop at", "instructions", "HMMA", ""
    )?;
    for found in kernel.loops() {
        let hmma = found
            .body
            .iter()
            .filter(|&&node| kernel.code[node].name() == "HMMA")
            .count();
        let main = region
            .main
            .as_ref()
            .is_some_and(|main| main.header == found.header);
        let (address, main) = (
            kernel.code[found.header].address,
            if main { "main" } else { "" },
        );
        writeln!(
            out,
            "{address:>8x} {:>12} {hmma:>5} {main:>5}",
            found.body.len()
        )?;
    }
    let (hot, all) = (kernel.pipes(&region.hot), kernel.pipes(&region.all));
    writeln!(out, "\n{:8} {:>6} {:>6}", "pipe", "hot", "all")?;
    for (pipe, count) in &all {
        writeln!(
            out,
            "{pipe:8} {:>6} {count:>6}",
            hot.get(pipe).unwrap_or(&0)
        )?;
    }
    let figures = region.figures();
    writeln!(
        out,
        "{:8} {:>6} {:>6}  for {} weights of a warp",
        "sum",
        region.hot.len(),
        region.all.len(),
        region.weights
    )?;
    writeln!(
        out,
        "{:8} {:>6.2} {:>6.2}",
        "a weight", figures.hot, figures.all
    )?;
    Ok(out)
}
