//! `vmbox`: the command line.
fn main() {}
