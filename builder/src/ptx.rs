//! From the compiler's PTX to the committed file: launch bounds, and a header that says where it
//! came from.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// Where a PTX file came from.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    /// The compiler's version.
    pub compiler: String,
    /// Hash of the sources, see [`crate::source::hash`].
    pub source: String,
}

/// How a kernel is launched, as the `kernel!` macro writes it into the PTX: the row of `KERNELS` of
/// its crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the kernel.
    pub name: String,
    /// Threads in a block.
    pub threads: usize,
    /// Blocks that must fit on one SM.
    pub min_blocks: usize,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: usize,
    /// Blocks of a cluster.
    pub cluster: usize,
}

impl Launch {
    const START: &str = "// launch: ";

    /// Those that PTX names.
    pub fn of(ptx: &str) -> Vec<Self> {
        let lines = ptx.lines().map(str::trim);
        lines.filter_map(Self::read).collect()
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix(Self::START)?.split(' ');
        let name = words.next()?.to_owned();
        let mut field = |name: &str| {
            let (key, value) = words.next()?.split_once('=')?;
            value.parse().ok().filter(|_| key == name)
        };
        Some(Self {
            name,
            threads: field("threads")?,
            min_blocks: field("min_blocks")?,
            shared_bytes: field("shared")?,
            cluster: field("cluster")?,
        })
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            threads,
            min_blocks,
            shared_bytes,
            cluster,
        } = self;
        write!(
            f,
            "{}{name} threads={threads} min_blocks={min_blocks} shared={shared_bytes} cluster={cluster}",
            Self::START
        )
    }
}

const COMPILER: &str = "// compiler: ";
const SOURCE: &str = "// source: sha256 ";

impl Origin {
    /// Reads the header of a committed file.
    pub fn read(ptx: &str) -> Result<Self> {
        let field = |name: &str| {
            ptx.lines()
                .take_while(|line| line.starts_with("//"))
                .find_map(|line| line.strip_prefix(name))
                .map(str::to_owned)
                .with_context(|| format!("the PTX has no line `{name}`"))
        };
        Ok(Self {
            compiler: field(COMPILER)?,
            source: field(SOURCE)?,
        })
    }
}

/// Completes the compiler's PTX of what is called `kernels`: a header with all launches, each kernel's
/// launch bounds, which rustc has no attribute for, and symbols that do not depend on where the
/// library's sources lie.
pub fn finish(
    raw: &str,
    kernels: &str,
    sm: &str,
    origin: &Origin,
    launches: &[Launch],
) -> Result<String> {
    let mut ptx = format!(
        "// {kernels} kernels for sm_{sm}, written by `cargo run -p builder`.\n{COMPILER}{}\n{SOURCE}{}\n",
        origin.compiler, origin.source
    );
    let mut kernel = None;
    for launch in launches {
        ptx += &format!("{launch}\n");
    }
    for line in raw.lines().map(str::trim_end) {
        let code = line.trim_start();
        if code.is_empty() || code.starts_with("//") {
            continue;
        }
        if let Some(name) = entry_name(line) {
            let launch = launches.iter().find(|launch| launch.name == name);
            kernel = Some(launch.with_context(|| {
                format!("kernel {name} is not made by `kernel!`: it names no launch")
            })?);
        }
        if code == "{"
            && let Some(launch) = kernel.take()
        {
            let Launch {
                threads,
                min_blocks,
                ..
            } = launch;
            ptx += &format!(".maxntid {threads}, 1, 1\n.minnctapersm {min_blocks}\n");
        }
        // The most that rustc can say of a parameter that holds a tensor map, and what that wants.
        let line = line.replace(".param .align 16 ", ".param .align 64 ");
        ptx += &without_crate_hashes(&line);
        ptx.push('\n');
    }
    if let Some(launch) = kernel {
        bail!("kernel {} has no body", launch.name);
    }
    ensure!(
        entries(&ptx).next().is_some(),
        "the compiler's PTX holds no kernel"
    );
    Ok(ptx)
}

/// The names of a file's kernels.
pub fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.lines().filter_map(entry_name)
}

/// The text of one kernel.
pub fn entry<'a>(ptx: &'a str, name: &str) -> Option<&'a str> {
    let start = ptx.find(&format!(".visible .entry {name}("))?;
    let end = ptx[start..].find("\n}\n")?;
    Some(&ptx[start..start + end + 3])
}

/// The first line by which a kernel can panic: all that it calls is inlined, but for that.
pub fn panic_path(ptx: &str) -> Option<&str> {
    let mut lines = ptx.lines().map(str::trim_start);
    lines.find(|line| {
        ["trap", "call", ".func"]
            .iter()
            .any(|start| line.starts_with(start))
    })
}

fn entry_name(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix(".visible .entry ")?.split_once('(')?;
    Some(name)
}

/// Drops the hash from the crates of mangled names: `Cs1aB_4core` becomes `C4core`.
fn without_crate_hashes(line: &str) -> String {
    if !line.contains("_R") {
        return line.to_owned();
    }
    let mut pieces = line.split("Cs");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.split_once('_') {
            Some((hash, name))
                if hash.bytes().all(|byte| byte.is_ascii_alphanumeric())
                    && name.starts_with(|c: char| c.is_ascii_digit()) =>
            {
                out += "C";
                out += name;
            }
            _ => {
                out += "Cs";
                out += piece;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = "//\n// Generated by LLVM NVPTX Back-End\n//\n\n.version 8.0\n.target sm_80\n\n\
        .func _RNvNtCs9xY_4core9panicking()\n;\n\n\
        .visible .entry one(\n\t.param .align 8 .b8 one_param_0[48]\n)\n{\n\t// begin inline asm\n\tret;   \n\n}\n\
        \t// .globl two\n.visible .entry two()\n{\n\tret;\n}\n";
    const LAUNCHES: &str = "// launch: one threads=256 min_blocks=4 shared=0 cluster=1\n\
        // launch: two threads=512 min_blocks=1 shared=16 cluster=2\n";

    fn origin() -> Origin {
        Origin {
            compiler: "rustc 1".into(),
            source: "ab".into(),
        }
    }

    #[test]
    fn bounds_stand_between_parameters_and_body() {
        let launches = Launch::of(&format!("\t.reg .b32 a;\n{LAUNCHES}"));
        assert_eq!((launches[1].shared_bytes, launches[1].cluster), (16, 2));
        let ptx = finish(RAW, "zipserv", "80", &origin(), &launches).unwrap();
        assert_eq!(Launch::of(&ptx), launches);
        assert_eq!(
            ptx,
            "// zipserv kernels for sm_80, written by `cargo run -p builder`.\n\
             // compiler: rustc 1\n// source: sha256 ab\n\
             // launch: one threads=256 min_blocks=4 shared=0 cluster=1\n\
             // launch: two threads=512 min_blocks=1 shared=16 cluster=2\n\
             .version 8.0\n.target sm_80\n\
             .func _RNvNtC4core9panicking()\n;\n\
             .visible .entry one(\n\t.param .align 8 .b8 one_param_0[48]\n)\n\
             .maxntid 256, 1, 1\n.minnctapersm 4\n{\n\tret;\n}\n\
             .visible .entry two()\n.maxntid 512, 1, 1\n.minnctapersm 1\n{\n\tret;\n}\n"
        );
        assert_eq!(entries(&ptx).collect::<Vec<_>>(), ["one", "two"]);
        assert!(entry(&ptx, "two").unwrap().ends_with("{\n\tret;\n}\n"));
        assert_eq!(entry(&ptx, "three"), None);
        assert_eq!(panic_path(&ptx), Some(".func _RNvNtC4core9panicking()"));
        assert_eq!(panic_path(entry(&ptx, "two").unwrap()), None);
        assert_eq!(Origin::read(&ptx).unwrap(), origin());
    }

    #[test]
    fn every_kernel_needs_a_launch() {
        let launches = Launch::of(LAUNCHES);
        let error = finish(RAW, "zipserv", "80", &origin(), &launches[..1]).unwrap_err();
        assert!(error.to_string().starts_with("kernel two is not made"));
        assert!(finish(".version 8.0\n", "zipserv", "80", &origin(), &launches).is_err());
    }

    #[test]
    fn a_header_is_needed_to_know_the_origin() {
        assert!(Origin::read(".version 8.0\n// compiler: late\n").is_err());
    }

    #[test]
    fn only_crate_hashes_are_dropped() {
        assert_eq!(
            without_crate_hashes("call _RNvCs12aZ_4core3fmt"),
            "call _RNvC4core3fmt"
        );
        assert_eq!(
            without_crate_hashes("call _RNvC4core6ClsCs_x"),
            "call _RNvC4core6ClsCs_x"
        );
        assert_eq!(without_crate_hashes("Cs1_4 stays"), "Cs1_4 stays");
    }
}
