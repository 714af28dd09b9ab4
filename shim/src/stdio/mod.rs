//! The user's three streams: each a vsock connection of its own, copied byte for byte by a thread of its own.

mod copy;
mod stream;
mod terminal;

pub use stream::{Direction, Stream, bind_free_port};
pub use terminal::{RawMode, Saved, restore_on_loss, save, size_of};
