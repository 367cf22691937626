//! The kernels. Each file opens with its data flow and its budget.

/// Runs `$body` for `$j` from 0 to below `$n`, at most 8, with `$j` a literal each time: a loop
/// that certainly leaves no index to run time, which registers do not have.
#[macro_export]
macro_rules! unroll {
    ($j:ident < $n:expr => $body:block) => {
        $crate::unroll!(@ $j $n, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $j:ident $n:expr, $body:block, $($i:literal)*) => {
        $(if $i < $n {
            const $j: usize = $i;
            $body
        })*
    };
}

pub mod decompress;
pub mod epilogue;
pub mod fixup;
pub mod mma;
pub mod read;
pub mod wgmma;
