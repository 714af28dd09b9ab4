//! Whose name the worker thread acts in while it makes a file.

use std::io;

use fuse_backend_rs::api::filesystem::Context;
use rustix::thread::{
    CapabilitySet, Gid, Uid, capabilities, set_capabilities, set_thread_res_gid, set_thread_res_uid,
};

/// Runs `create` so that what it creates belongs to the guest's user and group.
///
/// The guest's kernel has already checked permissions (`default_permissions`) with the caller's supplementary groups,
/// which FUSE doesn't tell us. So only the ids change; the capabilities stay effective, or a member of a directory's
/// group could not create in it, and the set-group-ID bit would be judged by the wrong groups.
///
/// A monitor that isn't root can't give files away: then everything belongs to its own user.
pub(super) fn as_caller<T>(
    context: &Context,
    create: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    if (context.uid == 0 && context.gid == 0) || !rustix::process::geteuid().is_root() {
        return create();
    }
    if context.uid == u32::MAX || context.gid == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let _restore = Restore;
    // These are the raw system calls: they change this thread alone, unlike the C library's.
    if context.gid != 0 {
        set_thread_res_gid(None, Gid::from_raw(context.gid), None)?;
    }
    if context.uid != 0 {
        set_thread_res_uid(None, Uid::from_raw(context.uid), None)?;
        let mut sets = capabilities(None)?;
        sets.effective = sets.permitted;
        set_capabilities(None, sets)?;
    }
    create()
}

/// Runs `write` without CAP_FSETID if `kill`, so that the host's kernel clears set-user-ID and set-group-ID
/// (FUSE_HANDLE_KILLPRIV_V2).
pub(super) fn killing_privileges<T>(
    kill: bool,
    write: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    if !kill {
        return write();
    }
    let old = capabilities(None)?;
    let mut without = old;
    without.effective.remove(CapabilitySet::FSETID);
    set_capabilities(None, without)?;
    let result = write();
    if let Err(error) = set_capabilities(None, old) {
        tracing::error!(%error, "could not take CAP_FSETID back");
    }
    result
}

/// Becomes root again when dropped. Going from another effective user to root makes every permitted capability
/// effective (capabilities(7)).
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        let uid = set_thread_res_uid(None, Uid::ROOT, None);
        let gid = set_thread_res_gid(None, Gid::ROOT, None);
        if let Err(error) = uid.and(gid) {
            tracing::error!(%error, "could not return to root");
        }
    }
}
