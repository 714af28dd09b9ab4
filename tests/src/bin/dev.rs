//! `cargo dev`: the developer tool.
fn main() {}
