//! The guest's physical memory: where it lies, how it is had from the host, and how it goes back.

pub mod advise;
pub mod dax;
pub mod layout;
pub mod ram;
