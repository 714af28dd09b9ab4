//! `run`: create, start, and, unless detached, wait and delete.

use super::{
    Context, args::BundleArgs, create, delete, error::OciError, seat::Console, verbs, wait,
};
use crate::{stdio::RawMode, user::one_line};

/// What `run` has beside `create`.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Don't wait for it.
    pub detach: bool,
    /// Leave it to be deleted later.
    pub keep: bool,
}

/// Runs a container; its exit code, or 0 once it runs if nobody waits for it.
///
/// # Errors
/// It could not be created or started, and nothing of it is left.
pub fn run(
    context: &Context,
    id: &str,
    args: &BundleArgs,
    options: RunOptions,
) -> Result<u8, OciError> {
    let created = create::create(context, id, args, options.detach)?;
    // Before the container can print anything.
    let raw = match created.console {
        Console::Ours => RawMode::enter().map_err(OciError::host("set the terminal up"))?,
        Console::Streams | Console::Socket(_) => None,
    };
    if let Err(error) = verbs::start(context, id) {
        drop(delete::delete(context, id, true));
        return Err(error);
    }
    if options.detach {
        return Ok(0);
    }
    let code = wait::wait(created.child);
    drop(raw);
    if !options.keep {
        // The container's code says how it ended, whatever is left: `gc` takes that.
        if let Err(error) = delete::delete(context, id, true) {
            context.warn(&one_line(&error));
        }
    }
    code
}
