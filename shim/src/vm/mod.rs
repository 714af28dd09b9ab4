//! The pod's monitor: where it and its files are, how it is started, what it reports, how it ends.

mod assets;
pub mod control;
mod monitor;
mod patience;

pub use assets::{AssetError, Assets, Overrides};
pub use control::ControlError;
pub use monitor::{End, LaunchError, Lifeline, Monitor, hold_lifeline};
pub use patience::{BOOT, boot_is_overdue};
