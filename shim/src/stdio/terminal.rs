//! The user's terminal: raw while the container has it, as it was before on every way out.

use std::{fs::File, io, os::fd::AsFd, path::Path, sync::Mutex};

use rustix::termios::{OptionalActions, Termios};

/// The settings to go back to, for the panic hook.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input in raw mode; dropping it restores the terminal.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts standard input into raw mode, if it is a terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = rustix::stdio::stdin();
        if !rustix::termios::isatty(stdin) {
            return Ok(None);
        }
        let before = rustix::termios::tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        if let Ok(mut saved) = BEFORE.lock() {
            *saved = Some(before);
        }
        rustix::termios::tcsetattr(stdin, OptionalActions::Drain, &raw)?;
        // Release builds abort on panic and drop nothing.
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            next(panic);
        }));
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let saved = match BEFORE.lock() {
        Ok(mut saved) => saved.take(),
        Err(_) => None,
    };
    if let Some(before) = saved {
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
    }
}

/// Columns and rows of the first of `fds` that is a terminal.
pub fn size_of() -> Option<(u32, u32)> {
    [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ]
    .iter()
    .find_map(|fd| rustix::termios::tcgetwinsize(fd).ok())
    .map(|size| (size.ws_col.into(), size.ws_row.into()))
}

/// A terminal of another process, as it was.
#[derive(Debug)]
pub struct Saved {
    terminal: File,
    before: Termios,
}

/// Remembers the settings of the terminal at `path`.
///
/// # Errors
/// It is not a terminal.
pub fn save(path: &Path) -> io::Result<Saved> {
    let terminal = File::options().read(true).write(true).open(path)?;
    let before = rustix::termios::tcgetattr(terminal.as_fd())?;
    Ok(Saved { terminal, before })
}

/// Restores a terminal whose user was killed. The caller must ignore SIGTTOU, being in the background.
pub fn restore_on_loss(saved: &Saved) {
    let _ = rustix::termios::tcsetattr(saved.terminal.as_fd(), OptionalActions::Now, &saved.before);
}
