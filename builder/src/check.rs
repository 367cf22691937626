//! Whether the committed PTX is what the sources give.

use anyhow::{Result, ensure};

use crate::{
    compile_all,
    ptx::Origin,
    target::targets,
    toolchain::{Toolchain, install},
};

/// Compares hashes of sources always, and bytes where the compiler that a file names is here. If
/// `strict`, bytes are compared always, and with the compiler that all files must be of.
pub fn run(strict: bool) -> Result<()> {
    let (targets, mut committed) = (targets()?, Vec::new());
    for target in targets {
        committed.push(target.read_fresh()?);
        println!("{}: the sources are those it was built from", target.name());
    }
    let toolchain = match Toolchain::find() {
        Err(reason) if !strict => {
            println!("BYTES NOT COMPARED: {reason:#}");
            return Ok(());
        }
        toolchain => toolchain?,
    };
    println!("{toolchain}");
    if strict {
        ensure!(
            toolchain.writes_the_committed_ptx(),
            "this is another compiler.\n{}",
            install()
        );
    }
    let comparable = |origin: &Origin| strict || origin.compiler == toolchain.version;
    let built = match committed.iter().any(|(_, origin)| comparable(origin)) {
        true => compile_all(&toolchain, None, &[])?,
        false => Vec::new(),
    };
    let (mut faults, mut others) = (Vec::new(), 0);
    for (at, (target, (text, origin))) in targets.iter().zip(&committed).enumerate() {
        let (name, compiler) = (target.name(), &origin.compiler);
        if !comparable(origin) {
            println!("{name}: BYTES NOT COMPARED, it was built by {compiler}");
            others += 1;
        } else if built[at].1 == text.replace("\r\n", "\n") {
            println!("{name}: the same bytes");
        } else if *compiler != toolchain.version {
            faults.push(format!(
                "{name} was built by {compiler}.\n{}\nThen `cargo run -p builder -- build {}` renews it.",
                install(),
                target.package.name
            ));
        } else {
            faults.push(format!(
                "{name} differs from what this compiler makes of the same sources"
            ));
        }
    }
    if others > 0 {
        println!(
            "{others} of {} files not compared.\n{}",
            targets.len(),
            install()
        );
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}
