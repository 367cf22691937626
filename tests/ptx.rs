//! The committed PTX, which the host embeds, was built from the sources beside it.
//!
//! Only hashes are compared, so no compiler of device code is needed; `builder check` compares bytes.

#[test]
fn no_file_is_stale() {
    for target in builder::target::TARGETS {
        target
            .read_fresh()
            .unwrap_or_else(|reason| panic!("{reason:#}"));
    }
}
