//! Prints kernels.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Write as _, stdout},
};

use anyhow::{Result, bail, ensure};

use crate::{
    budget::Region,
    ptx, ptxas,
    sass::{self, Kernel, Loop, PIPES},
    target::{Target, no_arch, targets},
};

/// Prints the PTX of a kernel.
pub fn ptx(kernel: &str, arch: Option<&str>) -> Result<()> {
    let (_, text) = find(kernel, arch)?;
    print(ptx::entry(&text, kernel).expect("it was found there"))
}

/// Prints the machine code of a kernel, then what it is made of.
pub fn sass(kernel: &str, arch: Option<&str>) -> Result<()> {
    let (target, _) = find(kernel, arch)?;
    let arch = arch.map_or(&*target.sm, |arch| arch.trim_start_matches("sm_"));
    let assembled = ptxas::assemble(&target.path(), arch, &[kernel])?;
    let kernels = sass::disassemble(&assembled.cubin)?;
    match kernels.iter().find(|found| found.name == kernel) {
        Some(found) => print(&listing(found)?),
        None => bail!("ptxas has left {kernel} out"),
    }
}

/// The last target that has the kernel, among those for `arch` if it is given, and its PTX. A line
/// on standard error names it, and others.
pub fn find(kernel: &str, arch: Option<&str>) -> Result<(&'static Target, String)> {
    let arch = arch.map(|arch| arch.trim_start_matches("sm_"));
    let suits = |target: &&Target| arch.is_none_or(|arch| target.is_for(arch));
    let mut names = String::new();
    let mut found = Vec::new();
    for target in targets()?.iter().filter(suits) {
        let text = target.read()?;
        let all: Vec<_> = ptx::entries(&text).collect();
        write!(names, "\n  {}: {}", target.name(), all.join(", "))?;
        if all.contains(&kernel) {
            found.push((target, text));
        }
    }
    ensure!(!names.is_empty(), no_arch(arch.unwrap_or_default()));
    let Some(last) = found.pop() else {
        bail!("there is no kernel {kernel}; there are{names}");
    };
    eprint!("{kernel} of {}", last.0.name());
    for (target, _) in found {
        eprint!("; `--arch {}` has that of {}", target.sm, target.name());
    }
    eprintln!();
    Ok(last)
}

/// Prints text that may be long; a reader such as `head` may leave early.
fn print(text: &str) -> Result<()> {
    match stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// The code, with `|` for the main loop and `*` for its hot path; then instructions by loop and
/// by pipe.
fn listing(kernel: &Kernel) -> Result<String> {
    let region = Region::of(kernel);
    let (hot, main): (&[usize], &[usize]) = match &region {
        Ok(region) => (&region.hot, &region.all),
        Err(_) => (&[], &[]),
    };
    let mut out = String::new();
    for (node, instruction) in kernel.code.iter().enumerate() {
        let mark = match (hot.contains(&node), main.contains(&node)) {
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
    counts(kernel, &region, &mut out)?;
    Ok(out)
}

/// Instructions by loop, the inner ones further in, and by pipe; then those a weight.
fn counts(kernel: &Kernel, region: &Result<Region>, out: &mut String) -> Result<()> {
    write!(out, "\n{:20} {:>7}", "instructions of", "all")?;
    for pipe in PIPES {
        write!(out, " {pipe:>7}")?;
    }
    writeln!(out)?;
    let mut row = |name: &str, nodes: &[usize]| -> Result<()> {
        write!(out, "{name:20} {:>7}", nodes.len())?;
        let pipes = kernel.pipes(nodes);
        for pipe in PIPES {
            write!(out, " {:>7}", pipes.get(pipe).unwrap_or(&0))?;
        }
        Ok(writeln!(out)?)
    };
    row("kernel", &kernel.reachable())?;
    let loops = kernel.loops();
    for found in &loops {
        let around = |other: &&Loop| {
            other.header != found.header && other.body.binary_search(&found.header).is_ok()
        };
        let depth = loops.iter().filter(around).count();
        let address = kernel.code[found.header].address;
        row(
            &format!("{:1$}loop at {address:x}", "", 2 + 2 * depth),
            &found.body,
        )?;
    }
    match region {
        Ok(region) => {
            if let Some(main) = &region.main {
                let address = kernel.code[main.header].address;
                row(&format!("main loop, at {address:x}"), &region.all)?;
            }
            row("its hot path", &region.hot)?;
            let figures = region.figures();
            writeln!(
                out,
                "\nOne pass of a warp handles {} weights: {:.2} instructions a weight on the hot path, {:.2} in all.",
                region.weights, figures.hot, figures.all
            )?;
        }
        Err(reason) => writeln!(out, "\nNo figures a weight: {reason}")?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_target_that_has_a_kernel_is_found() {
        let of = |kernel, arch| find(kernel, arch).map(|(target, _)| target.name());
        assert_eq!(
            of("decompress", None).unwrap(),
            "gpu/ptx/zipserv_sm_90a.ptx"
        );
        assert_eq!(
            of("decompress", Some("sm_86")).unwrap(),
            "gpu/ptx/zipserv_sm_80.ptx"
        );
        assert_eq!(
            of("matvec", None).unwrap(),
            "examples/kernels/ptx/example_sm_80.ptx"
        );
    }

    #[test]
    fn what_there_is_none_of_is_told_with_what_there_is() {
        let error = find("gemv", None).err().unwrap().to_string();
        for name in ["gemv", "decompress", "prefill_n64", "matvec"] {
            assert!(error.contains(name), "{error}");
        }
        let error = find("matvec", Some("90a")).err().unwrap().to_string();
        assert!(error.contains("prefill_n64"), "{error}");
        let error = find("matvec", Some("70")).err().unwrap().to_string();
        assert!(error.contains("120"), "{error}");
    }
}
