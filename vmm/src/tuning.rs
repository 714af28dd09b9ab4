//! Keeps the process small.

/// One allocator arena instead of one per thread: no thread here allocates on a hot path, and each arena costs memory.
/// Does nothing where libc is not glibc. Call before the first thread.
pub fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt only sets a parameter of the allocator.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}
