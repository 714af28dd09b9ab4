//! The answer to FUSE_STATX as bytes (linux/fuse.h, `struct fuse_statx_out`), for the birth time that GETATTR lacks.

use rustix::fs::{Statx, StatxFlags, StatxTimestamp};

use super::share::VALIDITY;

/// Length of `struct fuse_statx_out`.
const LENGTH: usize = 288;

/// Encodes `found`.
pub(super) fn encode(found: &Statx) -> Vec<u8> {
    let known = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let mut out = Vec::with_capacity(LENGTH);
    let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
    put(&VALIDITY.as_secs().to_le_bytes());
    put(&VALIDITY.subsec_nanos().to_le_bytes());
    put(&[0; 4 + 16]);
    put(&(found.stx_mask & known.bits()).to_le_bytes());
    put(&found.stx_blksize.to_le_bytes());
    put(&found.stx_attributes.bits().to_le_bytes());
    put(&found.stx_nlink.to_le_bytes());
    put(&found.stx_uid.to_le_bytes());
    put(&found.stx_gid.to_le_bytes());
    put(&found.stx_mode.to_le_bytes());
    put(&[0; 2]);
    put(&found.stx_ino.to_le_bytes());
    put(&found.stx_size.to_le_bytes());
    put(&found.stx_blocks.to_le_bytes());
    put(&found.stx_attributes_mask.bits().to_le_bytes());
    put(&time(found.stx_atime));
    put(&time(found.stx_btime));
    put(&time(found.stx_ctime));
    put(&time(found.stx_mtime));
    put(&found.stx_rdev_major.to_le_bytes());
    put(&found.stx_rdev_minor.to_le_bytes());
    put(&found.stx_dev_major.to_le_bytes());
    put(&found.stx_dev_minor.to_le_bytes());
    out.resize(LENGTH, 0);
    out
}

fn time(time: StatxTimestamp) -> [u8; 16] {
    let mut bytes = [0; 16];
    let (seconds, rest) = bytes.split_at_mut(8);
    seconds.copy_from_slice(&time.tv_sec.to_le_bytes());
    rest[..4].copy_from_slice(&time.tv_nsec.to_le_bytes());
    bytes
}
