//! The file system device under any FUSE message: nothing outside of the share may change, the window keeps its bounds.
#![no_main]

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::fs::{DAX_GRANULE, DaxMapper, DaxWindow, Fs, FsConfig};
use vmbox_devices::testing::{Buffer, WRITE};
use vmbox_fuzz::{Input, Rig};

const MESSAGE: u64 = 0x9_0000;
const WINDOW_BYTES: u64 = 4 * DAX_GRANULE;
const NAMES: [&[u8]; 10] = [
    b"f\0", b"d\0", b"link\0", b"new\0", b"..\0", b".\0", b"../outside\0", b"/etc\0", b"d/f\0", b"",
];

struct Checker;

impl Checker {
    fn check(offset: u64, length: u64) -> io::Result<()> {
        assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= WINDOW_BYTES));
        Ok(())
    }
}

impl DaxMapper for Checker {
    fn map(&self, _: BorrowedFd<'_>, _: u64, at: u64, length: u64, _: bool) -> io::Result<()> {
        Self::check(at, length)
    }

    fn unmap(&self, at: u64, length: u64) -> io::Result<()> {
        Self::check(at, length)
    }
}

/// A fresh `share` in a directory that must otherwise stay as it is.
fn directory() -> PathBuf {
    let base = PathBuf::from(format!("/dev/shm/vmbox-fuzz-fs.{}", std::process::id()));
    let share = base.join("share");
    let _ = fs::remove_dir_all(&share);
    fs::create_dir_all(share.join("d")).expect("/dev/shm can be written");
    fs::write(share.join("f"), [7; 100]).expect("/dev/shm can be written");
    std::os::unix::fs::symlink("../outside", share.join("link")).expect("/dev/shm can be written");
    fs::write(base.join("outside"), "untouched").expect("/dev/shm can be written");
    base
}

fn message(input: &mut Input) -> Vec<u8> {
    let opcode = u32::from(input.u8()) % 56;
    // Ids of root only: a run that gives its directory away could not remove it.
    let node = u64::from(input.u8()) % 6;
    let mut body = Vec::new();
    for _ in 0..input.u8() % 20 {
        match input.u8() % 4 {
            0 => body.extend(input.u64().to_le_bytes()),
            1 => body.extend(u64::from(input.u8() % 8).to_le_bytes()),
            2 => body.extend(u64::from(input.u16()).to_le_bytes()),
            _ => body.extend(u32::from(input.u8()).to_le_bytes()),
        }
    }
    for _ in 0..input.u8() % 3 {
        body.extend(NAMES[usize::from(input.u8()) % NAMES.len()]);
    }
    body.extend(input.bytes());
    let honest = 40 + body.len() as u32;
    let length = if input.u8() % 8 == 0 { input.u32() } else { honest };
    let mut message = [length.to_le_bytes(), opcode.to_le_bytes()].concat();
    message.extend(input.u64().to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

fuzz_target!(|data: &[u8]| {
    let base = directory();
    let device = Fs::new(FsConfig {
        tag: "fuzz".into(),
        root: base.join("share"),
        dax: Some(DaxWindow { base: 1 << 40, length: WINDOW_BYTES, mapper: Arc::new(Checker) }),
        descriptors: 20,
        ram: Arc::new(vmbox_fuzz::RAM_BYTES.into()),
    })
    .expect("the directory is there");
    Rig::new(Box::new(device)).run(&mut Input(data), |input, memory, queue| {
        let message = message(input);
        memory
            .write_slice(&message, GuestAddress(MESSAGE))
            .expect("the message is in RAM");
        let whole = Buffer { address: MESSAGE, length: message.len() as u32, flags: 0 };
        let mut chain = vec![whole];
        for _ in 0..input.u8() % 3 {
            let mut answer = input.buffer();
            answer.flags = WRITE;
            chain.push(answer);
        }
        queue.add(&chain);
    });
    let outside = fs::read(base.join("outside")).expect("it is still there");
    assert_eq!(outside, b"untouched");
    assert_eq!(fs::read_dir(&base).expect("it is still there").count(), 2);
});
