use std::fmt;

/// Which build of the kernels a device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// sm_90a: bulk copies, programmatic dependent launch.
    Hopper,
    /// sm_80 and later: `cp.async`.
    Portable,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Family::Hopper => "sm_90a",
            Family::Portable => "portable",
        })
    }
}
