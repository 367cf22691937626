//! The documents: their lengths, and that their links lead somewhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Columns of a line outside tables and listings.
const COLUMNS: usize = 120;
/// Lines of the front page.
const LINES: usize = 150;
/// Other pages whose links are followed.
const OTHERS: [&str; 3] = [
    "builder/nvvm/README.md",
    "examples/candle/README.md",
    "fuzz/README.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The pages of a folder, without those of folders in it.
fn pages(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let mut pages: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    assert!(!pages.is_empty(), "{folder}");
    pages
}

/// The lines of a page that are no listing, with their numbers.
fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut listing = false;
    (1..).zip(page.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        listing ^= fence;
        !listing && !fence
    })
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading
        .chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

/// What is in the round brackets of a line's links.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1);
    targets.filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

#[test]
fn the_front_page_is_short() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap();
    let lines = lines.lines().count();
    assert!(lines <= LINES, "README.md has {lines} lines, not {LINES}");
}

#[test]
fn lines_are_short() {
    let mut long = String::new();
    for path in pages(".").into_iter().chain(pages("docs")) {
        for (number, line) in prose(&fs::read_to_string(&path).unwrap()) {
            let columns = line.chars().count();
            if columns > COLUMNS && !line.starts_with('|') {
                long += &format!("{}:{number}: {columns} columns\n", path.display());
            }
        }
    }
    assert!(long.is_empty(), "\n{long}");
}

#[test]
fn links_lead_somewhere() {
    let mut dead = String::new();
    let pages = [".", "docs", "docs/lab"].into_iter().flat_map(pages);
    for path in pages.chain(OTHERS.map(|other| root().join(other))) {
        for (number, line) in prose(&fs::read_to_string(&path).unwrap()) {
            for link in links(line).filter(|link| !link.contains("://")) {
                let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
                let target = match file {
                    "" => path.clone(),
                    _ => path.parent().unwrap().join(file),
                };
                let found = target.exists()
                    && (fragment.is_empty()
                        || prose(&fs::read_to_string(&target).unwrap())
                            .any(|(_, line)| line.starts_with('#') && anchor(line) == fragment));
                if !found {
                    dead += &format!("{}:{number}: {link}\n", path.display());
                }
            }
        }
    }
    assert!(dead.is_empty(), "\n{dead}");
}
