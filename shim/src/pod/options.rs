//! What a user asks of a container: typed, checked, free of paths that don't exist.

use std::{fmt, path::PathBuf, str::FromStr};

/// The smallest memory that can be asked for.
pub const MINIMUM_MEMORY_MIB: u64 = 32;
/// The most virtual CPUs that the monitor gives.
pub const MAXIMUM_VCPUS: u32 = 32;

/// Why an option was refused.
#[derive(Debug, thiserror::Error)]
pub enum BadOption {
    /// Not a size.
    #[error("`{0}` is not a size: write a number and K, M or G, such as 256M")]
    Size(String),
    /// Less memory than a guest can live in.
    #[error(
        "{0} bytes of memory are too few: at least {MINIMUM_MEMORY_MIB} MiB are needed (--memory 32M)"
    )]
    TooLittleMemory(u64),
    /// Not a number of CPUs.
    #[error("`{0}` is not a number of CPUs between 0.01 and {MAXIMUM_VCPUS}")]
    Cpus(String),
    /// Not a volume.
    #[error("`{0}` is not a volume: write SRC:DST or SRC:DST:ro, DST an absolute path")]
    Volume(String),
    /// Not a disk.
    #[error("`{0}` is not a disk: write FILE or FILE:ro")]
    Disk(String),
}

/// A number of bytes, written with K, M, G (powers of 1024), optionally followed by `iB` or `B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    /// The size in MiB, rounded up.
    pub fn mib_rounded_up(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

impl FromStr for Size {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        let bad = || BadOption::Size(text.to_owned());
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(factor).map(Size).ok_or_else(bad)
    }
}

/// A container's memory limit in bytes, at least [`MINIMUM_MEMORY_MIB`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit(u64);

impl MemoryLimit {
    /// Checks a limit in bytes.
    ///
    /// # Errors
    /// Fewer than [`MINIMUM_MEMORY_MIB`], or more than a signed 64-bit number holds.
    pub fn of_bytes(bytes: u64) -> Result<Self, BadOption> {
        if bytes < MINIMUM_MEMORY_MIB << 20 {
            return Err(BadOption::TooLittleMemory(bytes));
        }
        i64::try_from(bytes).map_err(|_| BadOption::Size(bytes.to_string()))?;
        Ok(Self(bytes))
    }

    /// The limit in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemoryLimit {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        Self::of_bytes(text.parse::<Size>()?.0)
    }
}

/// CPU time in thousandths of a CPU, 10 to 32000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLimit(u32);

impl CpuLimit {
    /// Thousandths of a CPU.
    pub fn millis(self) -> u32 {
        self.0
    }

    /// The limit, from thousandths of a CPU.
    ///
    /// # Errors
    /// Out of range.
    pub fn of_millis(millis: u64) -> Result<Self, BadOption> {
        u32::try_from(millis)
            .ok()
            .filter(|value| (10..=MAXIMUM_VCPUS * 1000).contains(value))
            .map(Self)
            .ok_or_else(|| BadOption::Cpus(format!("{}.{:03}", millis / 1000, millis % 1000)))
    }
}

impl FromStr for CpuLimit {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        let bad = || BadOption::Cpus(text.to_owned());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits_only = |part: &str| {
            !part.is_empty() && part.len() <= 9 && part.bytes().all(|b| b.is_ascii_digit())
        };
        if !digits_only(whole) || !digits_only(fraction) {
            return Err(bad());
        }
        let thousandths: u64 = format!("{fraction:0<3}")[..3].parse().map_err(|_| bad())?;
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        Self::of_millis(whole * 1000 + thousandths).map_err(|_| bad())
    }
}

/// A directory or file of the host in the container: `SRC:DST[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// On the host.
    pub source: PathBuf,
    /// In the container, absolute.
    pub destination: PathBuf,
    /// Writes are refused.
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        let bad = || BadOption::Volume(text.to_owned());
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, mode) = match parts.as_slice() {
            [source, destination] => (source, destination, "rw"),
            [source, destination, mode] => (source, destination, *mode),
            _ => return Err(bad()),
        };
        let read_only = match mode {
            "ro" => true,
            "rw" => false,
            _ => return Err(bad()),
        };
        let climbs = destination.split('/').any(|part| part == "..");
        if source.is_empty() || !destination.starts_with('/') || destination.len() < 2 || climbs {
            return Err(bad());
        }
        Ok(Self {
            source: source.into(),
            destination: destination.into(),
            read_only,
        })
    }
}

/// A raw disk image: `FILE[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image on the host.
    pub path: PathBuf,
    /// Writes are refused.
    pub read_only: bool,
}

impl FromStr for Disk {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        let (path, read_only) = match text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.is_empty() {
            return Err(BadOption::Disk(text.to_owned()));
        }
        Ok(Self {
            path: path.into(),
            read_only,
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} MiB", self.mib_rounded_up())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_know_their_units() {
        assert_eq!("256M".parse::<Size>().unwrap().0, 256 << 20);
        assert_eq!("1gib".parse::<Size>().unwrap().0, 1 << 30);
        assert_eq!("4096".parse::<Size>().unwrap().0, 4096);
        for text in [
            "",
            "M",
            "-1M",
            "1.5G",
            "99999999999999999999",
            "18446744073709551615K",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_mib_of_memory_is_refused_with_the_minimum() {
        let message = "1M".parse::<MemoryLimit>().unwrap_err().to_string();
        assert!(message.contains("32 MiB"), "{message}");
        assert_eq!("32M".parse::<MemoryLimit>().unwrap().bytes(), 32 << 20);
    }

    #[test]
    fn cpus_take_fractions() {
        assert_eq!("2".parse::<CpuLimit>().unwrap().millis(), 2000);
        assert_eq!("0.5".parse::<CpuLimit>().unwrap().millis(), 500);
        assert_eq!("1.25".parse::<CpuLimit>().unwrap().millis(), 1250);
        for text in ["0", "33", "", ".", "1e3", "-1", "nan", "1.-5"] {
            assert!(text.parse::<CpuLimit>().is_err(), "{text}");
        }
    }

    #[test]
    fn volumes_are_source_destination_mode() {
        let volume: Volume = "data:/srv:ro".parse().unwrap();
        assert_eq!(volume.source, PathBuf::from("data"));
        assert_eq!(volume.destination, PathBuf::from("/srv"));
        assert!(volume.read_only);
        for text in [
            "",
            "/a",
            "/a:b",
            ":/b",
            "/a:/b:rx",
            "/a:/",
            "/a:/../b",
            "/a:/b:ro:x",
        ] {
            assert!(text.parse::<Volume>().is_err(), "{text}");
        }
    }

    #[test]
    fn disks_can_be_read_only() {
        assert!("d.img:ro".parse::<Disk>().unwrap().read_only);
        assert!(!"d.img".parse::<Disk>().unwrap().read_only);
        assert!(":ro".parse::<Disk>().is_err());
    }
}
