//! The PTX files: where they lie, and what they are made from. Tests ask, too, and need no compiler
//! for it; the program that makes them is `main.rs`.

pub mod ptx;
pub mod source;
pub mod target;
