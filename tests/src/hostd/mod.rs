//! Inside the virtual host: PID 1, which boots it, and the daemon that runs commands.

mod boot;
mod serve;

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Where [`Plan`] is in the initramfs.
pub const PLAN: &str = "/plan.json";

/// The line on the console that says that commands can be sent.
pub const READY: &str = "vmbox-host: ready";

/// What PID 1 is to do; the developer tool writes it into the initramfs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// What an [`Order`](crate::host::wire::Order) must carry.
    pub token: String,
    /// Files under `/modules` in the order in which they must be loaded to reach the root.
    pub boot_modules: Vec<String>,
    /// 9p shares beside the one of the root.
    pub shares: Vec<SharePlan>,
}

/// A folder of the real machine that the virtual host sees at the same path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharePlan {
    /// The 9p mount tag.
    pub tag: String,
    /// The folder, on both sides.
    pub path: PathBuf,
    /// Whether the virtual host may write to it.
    pub writable: bool,
    /// Whether its files never change while the host is up, so that it may keep them in memory.
    pub immutable: bool,
}

/// What the binary does: it boots the host as PID 1, and serves commands as PID 1's child.
pub fn main() -> Result<()> {
    if std::process::id() == 1 {
        boot::run()
    } else {
        serve::run()
    }
}
