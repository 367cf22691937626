//! A guard against arrivals at barriers that overtake loads.
//!
//! An arrival that frees shared memory does not wait for loads before it, and bulk copies into that
//! memory are in no line with them (`zipserv_gpu::arch::copy::finish_reads`). So in kernels with
//! such copies no load from shared memory may be on its way at an arrival: an instruction has used
//! what it brings, or what a later load brings, for they come in order; or there was a fence.
//!
//! In clusters, whoever frees memory for copies tells other blocks too. Arrivals of which those do
//! not hear free memory for stores, which the barrier orders behind loads.
//!
//! Where an instruction names the first of several registers, it may seem to use more than it does,
//! so a fault can be missed, but none is made up for that.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use crate::{
    sass::{self, Instruction, Kernel},
    tools::Versions,
};

/// Loads that may be on their way, by index, each with those that were issued later on every way here.
type Pending = BTreeMap<usize, BTreeSet<usize>>;

/// Looks at every kernel with bulk copies, as `ptxas` here assembles it; if `strict`, that must be
/// the one that is asked for.
pub fn run(strict: bool) -> Result<()> {
    let here = Versions::here()?;
    here.are(
        &Versions::pinned(),
        "CI looks at the machine code of",
        strict,
    )?;
    println!("{here}");
    let mut faults = Vec::new();
    for (target, kernels) in sass::budgeted(None)? {
        let copies = |kernel: &&Kernel| kernel.code.iter().any(is_bulk_copy);
        for kernel in kernels.iter().filter(copies) {
            let (all, overtaken) = (arrivals(kernel).len(), overtaken(kernel));
            println!(
                "{:16} {:28} {all:3} arrivals, {} before loads",
                target.stem(),
                kernel.name,
                overtaken.len()
            );
            faults.extend(overtaken.into_iter().map(|(arrival, load)| {
                let text = |node: usize| {
                    let Instruction { address, text, .. } = &kernel.code[node];
                    format!("{address:#x} `{text}`")
                };
                let (arrival, load) = (text(arrival), text(load));
                format!("{}: {arrival} does not wait for {load}", kernel.name)
            }));
        }
    }
    ensure!(
        faults.is_empty(),
        "{}\n`copy::finish_reads` before the arrival makes it wait.",
        faults.join("\n")
    );
    Ok(())
}

fn is_bulk_copy(instruction: &Instruction) -> bool {
    matches!(instruction.name(), "UBLKCP" | "UTMALDG")
}

/// The arrivals that tell of no bytes to come; in a cluster, those of which other blocks hear.
fn arrivals(kernel: &Kernel) -> BTreeSet<usize> {
    let of = |what: &str| -> BTreeSet<usize> {
        let is = |node: &usize| {
            let opcode = kernel.code[*node].opcode();
            opcode.starts_with("SYNCS.ARRIVE") && opcode.ends_with(what)
        };
        (0..kernel.code.len()).filter(is).collect()
    };
    let heard = of(".RED.A1T0");
    if heard.is_empty() { of(".A1T0") } else { heard }
}

/// Registers that an instruction names, in ranges: where it names the first of several, all that
/// there may be.
fn registers(instruction: &Instruction) -> Vec<(u32, u32)> {
    let opcode = instruction.opcode();
    let width = match instruction.name() {
        "HMMA" | "HGMMA" | "LDSM" | "STSM" => 4,
        _ if opcode.contains(".128") => 4,
        _ if opcode.contains(".64") => 2,
        _ => 1,
    };
    // Addresses stand in brackets, and take two registers at most.
    let parts = instruction
        .text
        .split(['[', ']'])
        .zip([false, true].into_iter().cycle());
    let of_part = |(part, address): (&str, bool)| {
        let width = match address {
            true if part.contains(".64") => 2,
            true => 1,
            false => width,
        };
        let words = part.split(|c: char| !c.is_ascii_alphanumeric());
        let firsts = words.filter_map(|word| word.strip_prefix('R')?.parse::<u32>().ok());
        firsts
            .map(|first| (first, first + width))
            .collect::<Vec<_>>()
    };
    parts.flat_map(of_part).collect()
}

/// Each arrival with a load that it does not wait for.
fn overtaken(kernel: &Kernel) -> BTreeMap<usize, usize> {
    let (code, arrivals) = (&kernel.code, arrivals(kernel));
    let registers: Vec<_> = code.iter().map(registers).collect();
    let mut before: Vec<Option<Pending>> = vec![None; code.len()];
    let mut found = BTreeMap::new();
    let mut work = vec![(0, Pending::new())];
    while let Some((node, incoming)) = work.pop() {
        let mut pending = before[node].clone().unwrap_or_default();
        for (load, younger) in incoming {
            let known = pending.entry(load).or_insert_with(|| younger.clone());
            known.retain(|later| younger.contains(later));
        }
        if before[node].as_ref() == Some(&pending) {
            continue;
        }
        before[node] = Some(pending.clone());
        // Writing a register waits for what is on its way there, too.
        let touches = |load: usize| {
            let (first, end) = registers[load][0];
            let overlaps = |&(from, to): &(u32, u32)| from < end && first < to;
            registers[node].iter().any(overlaps)
        };
        pending.retain(|&load, younger| !touches(load) && !younger.iter().any(|&l| touches(l)));
        let instruction = &code[node];
        if instruction.opcode().starts_with("FENCE.VIEW.ASYNC") {
            pending.clear();
        } else if matches!(instruction.name(), "LDS" | "LDSM") && !registers[node].is_empty() {
            for younger in pending.values_mut() {
                younger.insert(node);
            }
            pending.insert(node, BTreeSet::new());
        }
        if arrivals.contains(&node)
            && let Some((&load, _)) = pending.first_key_value()
        {
            found.insert(node, load);
        }
        work.extend(instruction.next.iter().map(|&next| (next, pending.clone())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overtaken(lines: &[&str]) -> usize {
        let line = |line: &&str| match line.ends_with(':') {
            true => format!("{line}\n"),
            false => format!("/*0000*/ {line} ;\n"),
        };
        let code: String = lines.iter().map(line).collect();
        let listing = format!(".text.k:\n{code}/*0000*/ EXIT ;\n");
        super::overtaken(&sass::parse(&listing).unwrap()[0]).len()
    }

    const ARRIVAL: &str = "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR4+0x8], RZ";

    #[test]
    fn arrivals_wait_for_what_is_used() {
        let load = "LDS.128 R12, [R2]";
        assert_eq!(overtaken(&[load, ARRIVAL]), 1);
        assert_eq!(overtaken(&[load, "FADD R4, R4, R15", ARRIVAL]), 0);
        assert_eq!(overtaken(&[load, "FADD R4, R4, R16", ARRIVAL]), 1);
        assert_eq!(
            overtaken(&[load, "HMMA.16816.F32.BF16 R4, R12, R8, R4", ARRIVAL]),
            0
        );
        assert_eq!(overtaken(&[ARRIVAL, load]), 0);
    }

    #[test]
    fn loads_come_in_order() {
        let loads = ["LDS R12, [R2]", "LDS R13, [R2+0x4]"];
        let all = |used| overtaken(&[loads[0], loads[1], used, ARRIVAL]);
        assert_eq!(all("FADD R4, R4, R13"), 0);
        assert_eq!(all("FADD R4, R4, R12"), 1);
    }

    /// A later load tells of an earlier one only where it was issued, whatever the way.
    #[test]
    fn every_way_counts() {
        let load = "LDS R12, [R2]";
        let (over, later) = ("@P0 BRA `(.L_1)", "LDS R13, [R3]");
        let used = "FADD R4, R4, R13";
        let skips = [load, over, later, ".L_1:", used, ARRIVAL];
        assert_eq!(overtaken(&skips), 1);
        let all = [over, load, ".L_1:", later, used, ARRIVAL];
        assert_eq!(overtaken(&all), 0);
        let again = [".L_1:", load, ARRIVAL, later, used, over];
        assert_eq!(overtaken(&again), 1);
    }

    #[test]
    fn addresses_are_not_vectors() {
        let lines = ["LDS R12, [R2]", "LDS.128 R16, [R10]", ARRIVAL];
        assert_eq!(overtaken(&lines), 1);
        let used = ["LDS R12, [R2]", "STG.E.128 [R11.64], R16", ARRIVAL];
        assert_eq!(overtaken(&used), 0);
    }

    #[test]
    fn other_blocks_hear_where_there_are_some() {
        let load = "LDS R12, [R2]";
        let heard = "@P0 SYNCS.ARRIVE.TRANS64.RED.A1T0 RZ, [R9+URZ], RZ";
        let used = "FADD R4, R4, R12";
        assert_eq!(overtaken(&[load, ARRIVAL, used, heard]), 0);
        assert_eq!(overtaken(&[load, ARRIVAL, heard]), 1);
    }

    #[test]
    fn fences_wait() {
        let (load, fence) = ("LDS R12, [R2]", "FENCE.VIEW.ASYNC.S");
        assert_eq!(overtaken(&[load, fence, ARRIVAL]), 0);
        assert_eq!(overtaken(&[load, "FENCE.VIEW.TENSORMAP", ARRIVAL]), 1);
    }
}
