//! A guard against arrivals at barriers that overtake loads.
//!
//! An arrival that frees shared memory does not wait for loads before it, and bulk copies into that
//! memory are in no line with them (`zipserv_gpu::arch::copy::finish_reads`). So in kernels with such
//! copies no load from shared memory may be on its way at an arrival: an instruction has used what it
//! brings, or what a later load brings, for they come in order; or there was a fence.
//!
//! In clusters, whoever frees memory for copies tells other blocks too; arrivals of which those do not hear
//! free memory for stores, which are in line with loads.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use crate::{
    ptxas,
    sass::{self, Instruction, Kernel},
    target::{TARGETS, ZIPSERV},
};

/// Loads on their way, by index, each with those that were on theirs when it was issued.
type Pending = BTreeMap<usize, BTreeSet<usize>>;

/// Looks at every kernel, on the architecture that its target is named after.
pub fn run() -> Result<()> {
    let mut faults = Vec::new();
    for target in TARGETS.iter().filter(|t| t.package.name == ZIPSERV.name) {
        let assembled = ptxas::assemble(target, target.sm)?;
        for kernel in sass::disassemble(&assembled.cubin)? {
            if !kernel.code.iter().any(is_bulk_copy) {
                continue;
            }
            let mut arrivals: Vec<usize> = (0..kernel.code.len())
                .filter(|&node| is_arrival(&kernel.code[node]))
                .collect();
            let is_heard = |node: &usize| kernel.code[*node].opcode().contains(".RED.");
            if arrivals.iter().any(is_heard) {
                arrivals.retain(is_heard);
            }
            let mut overtaken = overtaken(&kernel);
            overtaken.retain(|arrival, _| arrivals.contains(arrival));
            println!(
                "sm_{:4} {:28} {:3} arrivals, {} before loads",
                target.sm,
                kernel.name,
                arrivals.len(),
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

/// Whether it arrives at a barrier, of this block or another, and tells of no bytes to come.
fn is_arrival(instruction: &Instruction) -> bool {
    let opcode = instruction.opcode();
    opcode.starts_with("SYNCS.ARRIVE") && opcode.ends_with(".A1T0")
}

/// Registers that an instruction names, in ranges: where it names the first of several, all that there
/// may be.
fn registers(instruction: &Instruction) -> Vec<(u32, u32)> {
    let opcode = instruction.opcode();
    let width = match instruction.name() {
        "HMMA" | "HGMMA" | "LDSM" | "STSM" => 4,
        _ if opcode.contains(".128") => 4,
        _ if opcode.contains(".64") => 2,
        _ => 1,
    };
    let words = instruction
        .text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter_map(|word| word.strip_prefix('R')?.parse().ok());
    words.map(|first: u32| (first, first + width)).collect()
}

/// Each arrival with a load that it does not wait for.
fn overtaken(kernel: &Kernel) -> BTreeMap<usize, usize> {
    let code = &kernel.code;
    let registers: Vec<_> = code.iter().map(registers).collect();
    let mut before: Vec<Option<Pending>> = vec![None; code.len()];
    let mut found = BTreeMap::new();
    let mut work = vec![(0, Pending::new())];
    while let Some((node, incoming)) = work.pop() {
        let known = before[node].is_some();
        let here = before[node].get_or_insert_default();
        let mut changed = !known;
        for (load, older) in incoming {
            changed |= !here.contains_key(&load);
            let known = here.entry(load).or_insert_with(|| older.clone());
            // On another way fewer were before it.
            let both: BTreeSet<usize> = known.intersection(&older).copied().collect();
            changed |= both.len() < known.len();
            *known = both;
        }
        if !changed {
            continue;
        }
        let mut pending = here.clone();
        let instruction = &code[node];
        // Writing a register waits for what is on its way there, too.
        let touches = |load: usize| {
            let (first, end) = registers[load][0];
            let overlaps = |&(from, to): &(u32, u32)| from < end && first < to;
            registers[node].iter().any(overlaps)
        };
        let come: Vec<usize> = pending.keys().copied().filter(|&l| touches(l)).collect();
        for load in come {
            for older in pending.remove(&load).into_iter().flatten() {
                pending.remove(&older);
            }
        }
        match instruction.name() {
            "FENCE" => pending.clear(),
            "LDS" | "LDSM" if !registers[node].is_empty() => {
                let older = pending.keys().copied().collect();
                pending.insert(node, older);
            }
            _ => {}
        }
        if is_arrival(instruction)
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
        let code: String = lines.iter().map(|l| format!("/*0000*/ {l} ;\n")).collect();
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

    #[test]
    fn fences_wait() {
        let (load, fence) = ("LDS R12, [R2]", "FENCE.VIEW.ASYNC.S");
        assert_eq!(overtaken(&[load, fence, ARRIVAL]), 0);
    }
}
