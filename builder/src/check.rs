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
    let source = source::hash(root())?;
    let mut committed = Vec::new();
    for target in TARGETS {
        let text = target.read()?;
        let origin = Origin::read(&text)?;
        ensure!(
            origin.source == source,
            "gpu/ptx/zipserv_sm_{}.ptx is stale: the sources have changed since. `cargo run -p builder` renews it.",
            target.sm
        );
        println!("sm_{}: the sources are those it was built from", target.sm);
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
    for ((target, ptx), (_, text)) in TARGETS.iter().zip(compile_all(&toolchain)?).zip(&committed) {
        ensure!(
            ptx == text.replace("\r\n", "\n"),
            "gpu/ptx/zipserv_sm_{}.ptx differs from what {toolchain} makes of the same sources",
            target.sm
        );
        println!("sm_{}: the same bytes", target.sm);
    }
    Ok(())
}
