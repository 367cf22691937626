//! Machine code: reads `nvdisasm`'s listing, finds loops, and counts instructions.
//!
//! The graph has a node for each instruction. A *loop* is a natural loop: the target of an edge
//! that goes back in a depth-first walk, and all that reaches the edge without passing the target.
//! So code that the compiler moved out of line still belongs to its loop, and code that merely
//! lies between does not.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    ptxas,
    target::{Target, targets},
    tools,
};

/// The parts of an SM that [`Instruction::pipe`] tells apart: integer and logic;
/// multiply and add; tensor cores; conversions and special registers; what a warp does once for
/// all its lanes; shared memory and shuffles; global memory and constants; barriers; branches.
pub const PIPES: [&str; 9] = [
    "alu", "fma", "tensor", "xu", "uniform", "shared", "memory", "sync", "control",
];

/// One instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Its address in the kernel.
    pub address: u32,
    /// Its text, with predicate and operands.
    pub text: String,
    /// Where it may go next.
    pub next: Vec<usize>,
}

impl Instruction {
    /// Name with modifiers, without the predicate: `LDS.128`.
    pub fn opcode(&self) -> &str {
        let mut words = self.text.split_whitespace();
        let word = words.next().unwrap_or_default();
        if word.starts_with('@') {
            words.next().unwrap_or_default()
        } else {
            word
        }
    }

    /// Name without modifiers: `LDS`.
    pub fn name(&self) -> &str {
        self.opcode().split('.').next().unwrap_or_default()
    }

    /// Whether it starts a copy from global to shared memory.
    fn starts_copy(&self) -> bool {
        matches!(self.name(), "UBLKCP" | "LDGSTS")
    }

    /// The part of an SM that runs it, one of [`PIPES`].
    pub fn pipe(&self) -> &'static str {
        match self.name() {
            "HMMA" | "IMMA" | "HGMMA" => "tensor",
            "IMAD" | "FFMA" | "FMUL" | "FADD" | "HFMA2" => "fma",
            "BRA" | "BRX" | "BSSY" | "BSYNC" | "BREAK" | "WARPSYNC" | "CALL" | "RET" | "EXIT"
            | "NOP" | "YIELD" | "NANOSLEEP" | "ENDCOLLECTIVE" => "control",
            "LDS" | "STS" | "LDSM" | "STSM" | "SHFL" | "ATOMS" => "shared",
            "LD" | "ST" | "LDG" | "STG" | "LDGSTS" | "LDC" | "LDL" | "STL" | "ATOM" | "ATOMG"
            | "RED" | "CCTL" | "UBLKCP" | "UBLKPF" | "UTMALDG" => "memory",
            "SYNCS" | "ARRIVES" | "BAR" | "FENCE" | "MEMBAR" | "LDGDEPBAR" | "DEPBAR" | "ELECT"
            | "ACQBULK" | "PREEXIT" | "WARPGROUP" | "UCGABAR" | "USETMAXREG" => "sync",
            "MUFU" | "I2F" | "F2I" | "S2R" | "S2UR" | "R2UR" | "POPC" | "FLO" => "xu",
            name if name.starts_with('U') => "uniform",
            _ => "alu",
        }
    }
}

/// The machine code of one kernel.
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its instructions, by address.
    pub code: Vec<Instruction>,
}

/// A natural loop.
#[derive(Debug)]
pub struct Loop {
    /// Index of the instruction at which each iteration starts.
    pub header: usize,
    /// The instructions that go back to the header.
    pub ends: Vec<usize>,
    /// Indices of all its instructions, in order.
    pub body: Vec<usize>,
}

/// Disassembles the kernels of a cubin.
pub fn disassemble(cubin: &Path) -> Result<Vec<Kernel>> {
    let nvdisasm = tools::find("nvdisasm")?;
    let output = tools::run(Command::new(nvdisasm).arg("-c").arg(cubin))?;
    parse(&String::from_utf8(output.stdout)?)
}

/// The kernels of targets that have a budget, or one of them, each on the architecture that the target
/// is named after.
pub fn budgeted(kernel: Option<&str>) -> Result<Vec<(&'static Target, Vec<Kernel>)>> {
    let targets = targets()?.iter().filter(|t| t.package.manifest.budget);
    let mut found = Vec::new();
    for target in targets {
        if kernel.is_some_and(|kernel| !target.has(kernel)) {
            continue;
        }
        let assembled = ptxas::assemble(&target.path(), &target.sm, kernel.as_slice())?;
        found.push((target, disassemble(&assembled.cubin)?));
    }
    Ok(found)
}

/// Reads `nvdisasm -c`.
pub fn parse(listing: &str) -> Result<Vec<Kernel>> {
    let mut kernels: Vec<Kernel> = Vec::new();
    let mut labels: HashMap<&str, usize> = HashMap::new();
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix(".text.")
            .and_then(|name| name.strip_suffix(':'))
        {
            link(kernels.last_mut(), &labels)?;
            labels.clear();
            kernels.push(Kernel {
                name: name.to_owned(),
                code: Vec::new(),
            });
        } else if let Some(kernel) = kernels.last_mut() {
            if let Some(label) = line.strip_suffix(':') {
                labels.insert(label, kernel.code.len());
            } else if let Some((address, text)) = line
                .strip_prefix("/*")
                .and_then(|line| line.split_once("*/"))
            {
                kernel.code.push(Instruction {
                    address: u32::from_str_radix(address, 16)
                        .with_context(|| format!("no address: {line}"))?,
                    text: text.trim().trim_end_matches(';').trim_end().to_owned(),
                    next: Vec::new(),
                });
            }
        }
    }
    link(kernels.last_mut(), &labels)?;
    Ok(kernels)
}

/// Finds out where each instruction may go.
fn link(kernel: Option<&mut Kernel>, labels: &HashMap<&str, usize>) -> Result<()> {
    let Some(kernel) = kernel else { return Ok(()) };
    let count = kernel.code.len();
    for (index, instruction) in kernel.code.iter_mut().enumerate() {
        let between = |start, end| {
            let (_, rest) = instruction.text.split_once(start)?;
            Some(rest.split_once(end)?.0)
        };
        // A call returns; BSSY and its like only name the place where lanes meet again.
        let target = match instruction.name() {
            "BRA" | "WARPSYNC" => between("`(", ")"),
            // Where a computed branch may go is in a comment.
            "BRX" | "JMX" => Some(
                between("BRANCH_TARGETS ", "\"")
                    .with_context(|| format!("{} jumps to a computed address", kernel.name))?,
            ),
            _ => None,
        };
        let targets = target.into_iter().flat_map(|labels| labels.split(','));
        let targets = targets.map(|label| {
            labels
                .get(label)
                .copied()
                .with_context(|| format!("no label {label} in {}", kernel.name))
        });
        let targets = targets.collect::<Result<Vec<_>>>()?;
        // A branch depends on a predicate before its name, or on an operand before its target.
        let conditional = instruction.text.starts_with('@')
            || instruction.name() == "WARPSYNC"
            || instruction
                .text
                .split('`')
                .next()
                .is_some_and(|head| head.contains(','));
        let ends = match instruction.name() {
            "BRA" | "EXIT" | "RET" => !conditional,
            // A predicate would stand before its name, but so may commas in its comment.
            "BRX" | "JMX" => !instruction.text.starts_with('@'),
            _ => false,
        };
        instruction.next.extend(targets);
        if !ends && index + 1 < count && !instruction.next.contains(&(index + 1)) {
            instruction.next.push(index + 1);
        }
    }
    Ok(())
}

impl Kernel {
    /// A depth-first walk: the reachable instructions, each before all that can follow it unless
    /// over an edge that goes back; and those edges.
    fn walk(&self) -> (Vec<usize>, Vec<(usize, usize)>) {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            New,
            Open,
            Done,
        }
        let mut state = vec![State::New; self.code.len()];
        let (mut order, mut back) = (Vec::new(), Vec::new());
        let mut stack = vec![(0, 0)];
        while let Some((node, edge)) = stack.pop() {
            state[node] = State::Open;
            match self.code[node].next.get(edge) {
                Some(&next) => {
                    stack.push((node, edge + 1));
                    match state[next] {
                        State::New => stack.push((next, 0)),
                        State::Open => back.push((node, next)),
                        State::Done => {}
                    }
                }
                None => {
                    state[node] = State::Done;
                    order.push(node);
                }
            }
        }
        order.reverse();
        (order, back)
    }

    /// All loops, each header once.
    pub fn loops(&self) -> Vec<Loop> {
        let (order, back) = self.walk();
        let mut before = vec![Vec::new(); self.code.len()];
        for &node in &order {
            for &next in &self.code[node].next {
                before[next].push(node);
            }
        }
        let mut headers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (end, header) in back {
            headers.entry(header).or_default().push(end);
        }
        let body = |header: usize, ends: &[usize]| {
            let mut inside = vec![false; self.code.len()];
            inside[header] = true;
            let mut stack = ends.to_vec();
            while let Some(node) = stack.pop() {
                if !std::mem::replace(&mut inside[node], true) {
                    stack.extend(&before[node]);
                }
            }
            (0..inside.len()).filter(|&node| inside[node]).collect()
        };
        let make = |(header, ends): (usize, Vec<usize>)| Loop {
            header,
            body: body(header, &ends),
            ends,
        };
        headers.into_iter().map(make).collect()
    }

    /// The innermost loop that holds a marked instruction; of several, the one with most of them.
    pub fn main_loop(&self, marked: impl Fn(&Instruction) -> bool) -> Option<Loop> {
        let count = |found: &Loop| {
            found
                .body
                .iter()
                .filter(|&&node| marked(&self.code[node]))
                .count()
        };
        let mut loops = self.loops();
        loops.retain(|found| count(found) > 0);
        let headers: Vec<usize> = loops.iter().map(|found| found.header).collect();
        loops.retain(|found| {
            let inner = |&header: &usize| {
                header != found.header && found.body.binary_search(&header).is_ok()
            };
            !headers.iter().any(inner)
        });
        loops
            .into_iter()
            .max_by_key(|found| (count(found), Reverse(found.header)))
    }

    /// The instructions of one pass through the loop, or through the whole kernel: of the paths
    /// with the most marked instructions, those that start the most asynchronous copies; of them,
    /// the shortest. So it refills rings as a pass in mid-run does, meets inner loops once, and
    /// leaves out what can be skipped, such as waits that are over and cases that are rare.
    pub fn hot_path(
        &self,
        within: Option<&Loop>,
        marked: impl Fn(&Instruction) -> bool,
    ) -> Vec<usize> {
        let (order, back) = self.walk();
        let start = within.map_or(0, |found| found.header);
        let inside =
            |node: usize| within.is_none_or(|found| found.body.binary_search(&node).is_ok());
        let is_end = |node: usize| match within {
            Some(found) => found.ends.contains(&node),
            None => self.code[node].name() == "EXIT",
        };
        // How good a way is: its marks, its copies, its length.
        type Score = (usize, usize, Reverse<usize>);
        let step = |(marks, copies, Reverse(length)): Score, node: usize| {
            let instruction = &self.code[node];
            (
                marks + usize::from(marked(instruction)),
                copies + usize::from(instruction.starts_copy()),
                Reverse(length + 1),
            )
        };
        // The best way to each instruction, and the instruction before it.
        let mut ways: Vec<Option<(Score, usize)>> = vec![None; self.code.len()];
        ways[start] = Some((step((0, 0, Reverse(0)), start), start));
        let mut best = None;
        for node in order.into_iter().filter(|&node| inside(node)) {
            let Some((score, _)) = ways[node] else {
                continue;
            };
            if is_end(node) {
                best = best.max(Some((score, node)));
            }
            for &next in &self.code[node].next {
                if inside(next) && !back.contains(&(node, next)) {
                    ways[next] = ways[next].max(Some((step(score, next), node)));
                }
            }
        }
        let Some((_, mut node)) = best else {
            return Vec::new();
        };
        let mut path = vec![node];
        while node != start {
            node = ways[node].expect("the path came this way").1;
            path.push(node);
        }
        path.reverse();
        path
    }

    /// How many of these instructions each pipe gets.
    pub fn pipes(&self, nodes: &[usize]) -> BTreeMap<&'static str, usize> {
        let mut pipes = BTreeMap::new();
        for &node in nodes {
            *pipes.entry(self.code[node].pipe()).or_default() += 1;
        }
        pipes
    }

    /// Indices of the instructions that can be reached.
    pub fn reachable(&self) -> Vec<usize> {
        let (mut order, _) = self.walk();
        order.sort_unstable();
        order
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A main loop with a wait, a rare case out of line and a refill; an outer loop around it.
    const LISTING: &str = "\
        .section .text.gemm,\"ax\"\n\
        .text.gemm:\n\
        /*0000*/ MOV R1, c[0x0][0x28] ;\n\
        .L_outer:\n\
        /*0010*/ MOV R2, RZ ;\n\
        .L_main:\n\
        /*0020*/ BSSY B0, `(.L_meet) ;\n\
        .L_wait:\n\
        /*0030*/ SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3], R4 ;\n\
        /*0040*/ @!P0 BRA `(.L_wait) ;\n\
        /*0050*/ @P1 BRA `(.L_rare) ;\n\
        .L_resume:\n\
        /*0060*/ BSYNC B0 ;\n\
        .L_meet:\n\
        /*0070*/ LDS.128 R4, [R3] ;\n\
        /*0080*/ HMMA.16816.F32.BF16 R8, R4, R12, R8 ;\n\
        /*0090*/ HMMA.16816.F32.BF16 R8, R4, R14, R8 ;\n\
        /*0094*/ @P3 BRA `(.L_last) ;\n\
        /*0098*/ LDGSTS [R3], [R10] ;\n\
        .L_last:\n\
        /*00a0*/ BRA.U UP0, `(.L_main) ;\n\
        /*00b0*/ @P2 BRA `(.L_outer) ;\n\
        /*00c0*/ EXIT ;\n\
        .L_rare:\n\
        /*00d0*/ LDG.E R6, [R10] ;\n\
        /*00e0*/ STS [R3], R6 ;\n\
        /*00f0*/ BRA `(.L_resume) ;\n\
        .L_end:\n\
        /*0100*/ BRA `(.L_end);\n\
        .section .text.next,\"ax\"\n\
        .text.next:\n\
        /*0000*/ @!P0 STG.E.128 [R2], R4 ;\n\
        /*0010*/ @P0 EXIT ;\n\
        /*0020*/ EXIT ;\n";

    fn hmma(instruction: &Instruction) -> bool {
        instruction.name() == "HMMA"
    }

    fn addresses(kernel: &Kernel, nodes: &[usize]) -> Vec<u32> {
        nodes
            .iter()
            .map(|&node| kernel.code[node].address)
            .collect()
    }

    #[test]
    fn sections_and_successors_are_read() {
        let kernels = parse(LISTING).unwrap();
        let names: Vec<_> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        assert_eq!(names, ["gemm", "next"]);
        let next: Vec<_> = kernels[0].code.iter().map(|i| i.next.clone()).collect();
        assert_eq!(next[2], [3], "BSSY does not jump");
        assert_eq!(next[4], [3, 5]);
        assert_eq!(next[12], [2, 13], "a uniform predicate is a condition too");
        assert_eq!(next[14], [0; 0]);
        assert_eq!(next[17], [6]);
        assert_eq!(kernels[0].reachable(), (0..18).collect::<Vec<_>>());
        assert_eq!(kernels[1].code[0].opcode(), "STG.E.128");
        assert_eq!(kernels[1].code[1].next, [2]);
    }

    #[test]
    fn loops_nest_and_include_what_lies_out_of_line() {
        let gemm = &parse(LISTING).unwrap()[0];
        let loops = gemm.loops();
        let headers: Vec<_> = loops.iter().map(|found| found.header).collect();
        assert_eq!(headers, [1, 2, 3]);
        assert_eq!(loops[2].body, [3, 4]);
        let main = gemm.main_loop(hmma).unwrap();
        assert_eq!(main.header, 2);
        assert_eq!(main.body, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17]);
    }

    #[test]
    fn the_hot_path_avoids_the_rare_case() {
        let gemm = &parse(LISTING).unwrap()[0];
        let main = gemm.main_loop(hmma).unwrap();
        let path = gemm.hot_path(Some(&main), hmma);
        assert_eq!(
            addresses(gemm, &path),
            [
                0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0x94, 0x98, 0xa0
            ]
        );
        let pipes = gemm.pipes(&path);
        assert_eq!(pipes[&"tensor"], 2);
        assert_eq!(pipes[&"control"], 6);
        assert_eq!(gemm.hot_path(None, hmma).len(), 15);
    }

    #[test]
    fn marks_outweigh_length() {
        let next = &parse(LISTING).unwrap()[1];
        assert!(next.main_loop(hmma).is_none());
        assert_eq!(next.hot_path(None, |i| i.name() == "STG"), [0, 1]);
    }

    #[test]
    fn a_computed_branch_goes_where_its_comment_says() {
        let brx = |comment: &str| {
            let listing = format!(
                ".text.a:\n/*0000*/ BRX R2 -0x10 {comment} ;\n.L_x:\n/*0010*/ NOP ;\n.L_y:\n/*0020*/ EXIT ;\n"
            );
            parse(&listing).map(|kernels| kernels[0].code[0].next.clone())
        };
        assert_eq!(brx("(*\"BRANCH_TARGETS .L_y,.L_x\"*)").unwrap(), [2, 1]);
        assert_eq!(brx("(*\"BRANCH_TARGETS .L_y\"*)").unwrap(), [2]);
        assert!(brx("(*\"BRANCH_TARGETS .L_z\"*)").is_err());
        assert!(brx("").is_err());
    }

    #[test]
    fn a_missing_label_is_an_error() {
        assert!(parse(".text.a:\n/*0000*/ BRA `(.L_x) ;\n").is_err());
    }

    /// Assembles a kernel with a loop, and finds the loop again; needs CUDA's tools.
    #[test]
    fn a_real_listing_is_read() {
        let tools = tools::find("ptxas").and(tools::find("nvdisasm"));
        if let Err(reason) = tools {
            // Not `eprintln!`, which the test harness would swallow.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED a_real_listing_is_read: {reason}"
            );
            return;
        }
        let path = std::env::temp_dir().join(format!("zipserv-sass-{}.ptx", std::process::id()));
        let ptx = ".version 8.0\n.target sm_80\n.address_size 64\n\
            .visible .entry chase(.param .b64 list)\n{\n\
            .reg .b64 %at;\n.reg .pred %more;\nld.param.b64 %at, [list];\n\
            next:\nld.global.b64 %at, [%at];\nsetp.ne.b64 %more, %at, 0;\n@%more bra next;\n\
            ret;\n}\n";
        std::fs::write(&path, ptx).unwrap();
        let assembled = ptxas::assemble(&path, "80", &[]).unwrap();
        assert_eq!(assembled.usage[0].name, "chase");
        assert!(assembled.usage[0].registers > 0);
        let kernels = disassemble(&assembled.cubin).unwrap();
        let chase = kernels
            .iter()
            .find(|kernel| kernel.name == "chase")
            .unwrap();
        let main = chase.main_loop(|i| i.name() == "LDG").unwrap();
        let loads = main
            .body
            .iter()
            .filter(|&&node| chase.code[node].name() == "LDG");
        assert_eq!(loads.count(), 1);
        std::fs::remove_file(&assembled.cubin).unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
