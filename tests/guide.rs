//! The listings of `docs/KERNELS.md` are the files that it names.

use std::{fs, path::Path};

#[test]
fn listings_are_the_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let guide = read("docs/KERNELS.md");
    // A path in a line of its own, then the listing.
    let mut listings = 0;
    for section in guide
        .split("`:\n\n```rust\n")
        .collect::<Vec<_>>()
        .windows(2)
    {
        let path = section[0].rsplit('`').next().unwrap();
        let (listing, _) = section[1].split_once("\n```\n").unwrap();
        assert!(
            read(path).strip_suffix('\n') == Some(listing),
            "{path} has changed, but not its listing"
        );
        listings += 1;
    }
    assert_eq!(listings, 3);
}
