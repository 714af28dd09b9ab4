//! Giving up in the middle of an image, from another thread.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A handle that makes the work on an image fail at its next read.
#[derive(Clone, Debug, Default)]
pub struct Halt(Arc<AtomicBool>);

impl Halt {
    /// Gives up.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Reads until given up.
    pub(super) fn reader<R>(&self, inner: R) -> HaltingReader<R> {
        HaltingReader {
            inner,
            halt: self.clone(),
        }
    }
}

/// A reader that fails once it is given up.
pub(super) struct HaltingReader<R> {
    inner: R,
    halt: Halt,
}

impl<R: Read> Read for HaltingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.halt.0.load(Ordering::Relaxed) {
            // Not `Interrupted`, after which readers try again.
            return Err(io::Error::other("it was given up"));
        }
        self.inner.read(buffer)
    }
}
