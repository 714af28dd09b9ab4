//! The architectures that vmbox is for, and what others call them.

use clap::ValueEnum;

/// What something is built for, or runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Arch {
    /// AMD's and Intel's 64-bit machines.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// Both, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// This machine's. Only Debian on these two is supported, and another one doesn't build the monitor.
    pub fn native() -> Self {
        match std::env::consts::ARCH {
            "aarch64" => Self::Aarch64,
            _ => Self::X86_64,
        }
    }

    /// Whether this machine runs its programs without an emulator.
    pub fn is_native(self) -> bool {
        self == Self::native()
    }

    /// Rust's name, and that of `uname -m`.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Debian's name, which is also Go's and so that of OCI images.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The folder of Debian's libraries, and the prefix of GNU's cross tools.
    pub fn gnu(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-linux-gnu",
            Self::Aarch64 => "aarch64-linux-gnu",
        }
    }

    /// Rust's target for its static binaries.
    pub fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The guest kernel's file, in the form that direct boot wants: an ELF file, or what Arm's boot protocol loads.
    pub fn kernel(self) -> &'static str {
        match self {
            Self::X86_64 => "vmlinux",
            Self::Aarch64 => "Image",
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_one_of_them() {
        assert_eq!(Arch::native().name(), std::env::consts::ARCH);
    }

    #[test]
    fn the_command_line_takes_the_name_that_is_shown() {
        for arch in Arch::ALL {
            assert_eq!(Arch::from_str(&arch.to_string(), false).unwrap(), arch);
        }
    }
}
