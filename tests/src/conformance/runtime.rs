//! The runtimes that are judged side by side.

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    /// Debian's runc, by which the others are measured.
    Runc,
    /// Debian's crun.
    Crun,
    /// Ours.
    Vmbox,
}

impl Runtime {
    /// In the order of the scoreboard's columns.
    pub const ALL: [Self; 3] = [Self::Runc, Self::Crun, Self::Vmbox];

    /// As it is called on the scoreboard.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Vmbox => "vmbox",
        }
    }

    /// Where the virtual host has it.
    pub fn program(self) -> &'static str {
        match self {
            Self::Runc => "/usr/sbin/runc",
            Self::Crun => "/usr/bin/crun",
            Self::Vmbox => "/usr/local/bin/vmbox",
        }
    }
}
