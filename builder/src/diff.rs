//! What has become of the kernels since a revision: the PTX of git's file against the one here.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};

use crate::{
    budget::Region,
    ptx, ptxas,
    sass::{self, Instruction, Kernel},
    target::{Target, root, scratch, targets},
    tools::Versions,
};

/// What `ptxas` makes of a kernel.
struct Made {
    registers: u32,
    code: Kernel,
}

impl Made {
    /// Whether the instructions are the same, by what is looked at of each.
    fn is_same(&self, other: &Self, of: impl Fn(&Instruction) -> &str) -> bool {
        let (ours, theirs) = (self.code.code.iter(), other.code.code.iter());
        ours.map(&of).eq(theirs.map(&of))
    }
}

/// Prints a line for each kernel whose PTX is not the same, and how many are.
pub fn run(revision: &str) -> Result<()> {
    let commit = git(&[
        "rev-parse",
        "--short",
        "--verify",
        &format!("{revision}^{{commit}}"),
    ])?;
    ensure!(commit.status.success(), "git knows no {revision}");
    println!("{}; {revision} -> here", Versions::here()?);
    println!(
        "{:16} {:28} {:>12} {:>14}  machine code",
        "file", "kernel", "registers", "hot path"
    );
    for target in targets()? {
        compare(target, revision)?;
    }
    Ok(())
}

fn compare(target: &Target, revision: &str) -> Result<()> {
    let (before, after) = (at(revision, target)?, target.read()?);
    let differs = |name: &&str| ptx::entry(&before, name) != ptx::entry(&after, name);
    let names = |text| ptx::entries(text).filter(differs).collect::<Vec<_>>();
    let old = scratch().join(format!("{}_before.ptx", target.stem()));
    fs::create_dir_all(scratch())?;
    fs::write(&old, &before)?;
    let olds = make(&old, target, &names(&before))?;
    let news = make(&target.path(), target, &names(&after))?;
    let mut all: Vec<_> = olds.keys().chain(news.keys()).collect();
    all.sort_unstable();
    all.dedup();
    for name in all {
        let (old, new) = (olds.get(name), news.get(name));
        let registers = change(old, new, |made| Some(made.registers as usize));
        let hot = change(old, new, |made| {
            Some(Region::of(&made.code).ok()?.hot.len())
        });
        let code = match (old, new) {
            (Some(old), Some(new)) if old.is_same(new, |i| &i.text) => "the same",
            (Some(old), Some(new)) if old.is_same(new, Instruction::opcode) => "other registers",
            (Some(_), Some(_)) => "changed",
            (None, _) => "new",
            (_, None) => "gone",
        };
        println!(
            "{:16} {name:28} {registers:>12} {hot:>14}  {code}",
            target.stem()
        );
    }
    let same = ptx::entries(&after).count() - news.len();
    println!("{:16} {same} kernels of the same PTX", target.stem());
    Ok(())
}

/// The text of a target's file at a revision; none if there was no such file.
fn at(revision: &str, target: &Target) -> Result<String> {
    let output = git(&["show", &format!("{revision}:{}", target.name())])?;
    Ok(String::from_utf8(output.stdout)?)
}

fn git(arguments: &[&str]) -> Result<Output> {
    let mut git = Command::new("git");
    let output = git.current_dir(root()).args(arguments).output();
    output.context("cannot run git")
}

/// Assembles some kernels of a file.
fn make(ptx: &Path, target: &Target, kernels: &[&str]) -> Result<BTreeMap<String, Made>> {
    if kernels.is_empty() {
        return Ok(BTreeMap::new());
    }
    let assembled = ptxas::assemble(ptx, &target.sm, kernels)?;
    let codes = sass::disassemble(&assembled.cubin)?.into_iter();
    let made = |code: Kernel| {
        let mut usages = assembled.usage.iter();
        let usage = usages.find(|usage| usage.name == code.name);
        let registers = usage.map_or(0, |usage| usage.registers);
        (code.name.clone(), Made { registers, code })
    };
    Ok(codes.map(made).collect())
}

/// One number where both are the same.
fn change(
    old: Option<&Made>,
    new: Option<&Made>,
    number: impl Fn(&Made) -> Option<usize>,
) -> String {
    let shown = |made: Option<&Made>| {
        made.and_then(&number)
            .map_or("-".to_owned(), |number| number.to_string())
    };
    match (shown(old), shown(new)) {
        (old, new) if old == new => new,
        (old, new) => format!("{old} -> {new}"),
    }
}
