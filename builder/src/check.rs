//! Whether the committed PTX is what the sources give.

use anyhow::{Result, ensure};

use crate::{
    compile_all,
    ptx::Origin,
    source,
    target::{TARGETS, root},
    toolchain::Toolchain,
};

/// Compares source hashes always, and bytes where the compiler is that of the committed files.
pub fn run() -> Result<()> {
    let mut committed = Vec::new();
    for target in TARGETS {
        let text = target.read()?;
        let origin = Origin::read(&text)?;
        let (name, source) = (target.name(), source::hash(root(), target.package.folders)?);
        ensure!(
            origin.source == source,
            "{name} is stale: the sources have changed since. `cargo run -p builder` renews it."
        );
        println!("{name}: the sources are those it was built from");
        committed.push((origin, text));
    }
    let toolchain = match Toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(reason) => {
            println!("bytes not compared: {reason:#}");
            return Ok(());
        }
    };
    if let Some((origin, _)) = committed
        .iter()
        .find(|(origin, _)| origin.compiler != toolchain.version)
    {
        println!(
            "bytes not compared: built by {}, here is {toolchain}",
            origin.compiler
        );
        return Ok(());
    }
    for ((target, ptx), (_, text)) in compile_all(&toolchain, &[])?.into_iter().zip(&committed) {
        let name = target.name();
        ensure!(
            ptx == text.replace("\r\n", "\n"),
            "{name} differs from what {toolchain} makes of the same sources"
        );
        println!("{name}: the same bytes");
    }
    Ok(())
}
