//! Finds the commit that the program is made of, for `--version`.

use std::{env, fs, path::Path, process::Command};

fn main() {
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let version = match packaged().or_else(checkout) {
        Some(commit) => format!("{version} ({})", commit.get(..9).unwrap_or(&commit)),
        None => version,
    };
    println!("cargo::rustc-env=ZIPSERV_VERSION={version}");
    println!("cargo::rerun-if-changed=build.rs");
}

/// What cargo writes into the packages that it publishes.
fn packaged() -> Option<String> {
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = text.split_once("\"sha1\"")?;
    let commit = rest.split('"').nth(1)?;
    Some(commit.to_owned())
}

/// That of the checkout that this is part of, if it is one of zipserv and not of something around it.
fn checkout() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let root = git(&["rev-parse", "--show-toplevel"])?;
    let here = env::current_dir().ok()?;
    if Path::new(&root).join("host/cli").canonicalize().ok()? != here.canonicalize().ok()? {
        return None;
    }
    // It grows with each commit and checkout.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "HEAD"])
}
