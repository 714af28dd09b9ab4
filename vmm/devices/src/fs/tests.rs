//! A driver that speaks FUSE over a fake ring to a share in a temporary directory.

mod attributes;
mod bounds;
mod files;
mod hostile;
mod mounts;
mod names;
mod window;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;
use crate::testing::{Buffer, DriverQueue, FakeInterrupt, activation, ram};

pub(super) const ROOT: u64 = 1;
const ALL_FLAGS: u32 = 0x7fff_ffff;

/// A guest that has sent FUSE_INIT.
struct Guest {
    directory: tempfile::TempDir,
    hiprio: DriverQueue,
    requests: DriverQueue,
    handler: Box<dyn Handler>,
    window: Arc<FakeWindow>,
    caller: (u32, u32),
}

/// A mapper that only remembers what it was told.
#[derive(Default)]
struct FakeWindow {
    calls: Mutex<Vec<(&'static str, u64, u64)>>,
}

impl DaxMapper for FakeWindow {
    fn map(
        &self,
        _: std::os::fd::BorrowedFd<'_>,
        _: u64,
        window_offset: u64,
        length: u64,
        _: bool,
    ) -> io::Result<()> {
        let call = ("map", window_offset, length);
        self.calls.lock().unwrap().push(call);
        Ok(())
    }

    fn unmap(&self, window_offset: u64, length: u64) -> io::Result<()> {
        let call = ("unmap", window_offset, length);
        self.calls.lock().unwrap().push(call);
        Ok(())
    }
}

/// The answer to a message: the error (0 for none) and the data behind the header.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    errno: i32,
    data: Vec<u8>,
}

impl Answer {
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.data[at..at + 8].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.data[at..at + 4].try_into().unwrap())
    }

    /// The node of a `fuse_entry_out`.
    fn node(&self) -> u64 {
        assert_eq!(self.errno, 0);
        self.u64(0)
    }
}

impl Guest {
    fn new() -> Self {
        Self::with_descriptors(1000)
    }

    fn with_descriptors(count: usize) -> Self {
        let mut guest = Self::start(count);
        assert_eq!(guest.init().errno, 0);
        guest
    }

    fn without_init() -> Self {
        Self::start(1000)
    }

    fn start(descriptors: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let window = Arc::new(FakeWindow::default());
        let mut device = Fs::new(FsConfig {
            tag: "share".into(),
            root: directory.path().into(),
            dax: Some(DaxWindow {
                base: 1 << 32,
                length: 8 << 20,
                mapper: window.clone(),
            }),
            descriptors,
            ram: Arc::new((8 << 20).into()),
        })
        .unwrap();
        let memory = ram(8);
        let hiprio = DriverQueue::new(&memory, 0, 128);
        let requests = DriverQueue::new(&memory, 1, 1024);
        let activation = activation(&[&hiprio, &requests], 0, Arc::new(FakeInterrupt::default()));
        let handler = device.activate(activation).unwrap();
        Self {
            directory,
            hiprio,
            requests,
            handler,
            window,
            caller: (0, 0),
        }
    }

    /// FUSE_INIT, offering everything.
    fn init(&mut self) -> Answer {
        let body = [words(&[7, 39, 1 << 20, ALL_FLAGS]), vec![0; 48]].concat();
        self.ask(26, 0, &body, 64)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn header(&self, opcode: u32, node: u64, length: usize) -> Vec<u8> {
        let mut header = words(&[length as u32, opcode]);
        header.extend(77u64.to_le_bytes());
        header.extend(node.to_le_bytes());
        header.extend(words(&[self.caller.0, self.caller.1, 1, 0]));
        header
    }

    /// Sends a message as Linux does, with room for so many bytes of data in the answer.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8], room: usize) -> Answer {
        let mut message = self.header(opcode, node, 40 + body.len());
        message.extend(body);
        let message = self.requests.readable(&message);
        let answer = self.requests.writable(16 + room);
        let written = self.raw(&[message, answer]);
        self.parse(answer, written)
    }

    /// Sends any chain; the number of bytes that the device says it has written.
    fn raw(&mut self, chain: &[Buffer]) -> u32 {
        let head = self.requests.add(chain);
        assert_eq!(self.handler.serve(Event::Queue(1)), Served::Done);
        let (used, written) = self.requests.used().expect("every chain comes back");
        assert_eq!(used, head);
        written
    }

    fn parse(&self, answer: Buffer, written: u32) -> Answer {
        let bytes = self.requests.bytes(answer);
        let length = u32::from_le_bytes(bytes[0..4].try_into().unwrap());
        assert_eq!(length, written);
        assert_eq!(bytes[8..16], 77u64.to_le_bytes());
        Answer {
            errno: -i32::from_le_bytes(bytes[4..8].try_into().unwrap()),
            data: bytes[16..length as usize].to_vec(),
        }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Answer {
        self.ask(1, parent, &cstr(name), 128)
    }

    fn getattr(&mut self, node: u64) -> Answer {
        self.ask(3, node, &[0; 16], 104)
    }

    fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Answer {
        let body = [words(&[mode, 0]), cstr(name)].concat();
        self.ask(9, parent, &body, 128)
    }

    fn open(&mut self, node: u64, flags: i32) -> Answer {
        self.ask(14, node, &words(&[flags as u32, 0]), 16)
    }

    /// FUSE_CREATE; the node and the handle.
    fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> (u64, u64) {
        let body = [words(&[flags as u32, mode, 0, 0]), cstr(name)].concat();
        let answer = self.ask(35, parent, &body, 144);
        (answer.node(), answer.u64(128))
    }

    fn write(
        &mut self,
        (node, handle): (u64, u64),
        offset: u64,
        data: &[u8],
        flags: i32,
    ) -> Answer {
        self.write_as((node, handle), offset, data, flags, 0)
    }

    fn write_as(
        &mut self,
        (node, handle): (u64, u64),
        offset: u64,
        data: &[u8],
        flags: i32,
        fuse_flags: u32,
    ) -> Answer {
        let mut body = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
        body.extend(words(&[data.len() as u32, fuse_flags, 0, 0]));
        body.extend(words(&[flags as u32, 0]));
        body.extend(data);
        self.ask(16, node, &body, 8)
    }

    fn read(&mut self, (node, handle): (u64, u64), offset: u64, size: u32, room: usize) -> Answer {
        let body = read_body(handle, offset, size);
        self.ask(15, node, &body, room)
    }

    fn forget(&mut self, node: u64, count: u64) {
        let mut message = self.header(2, node, 48);
        message.extend(count.to_le_bytes());
        let message = self.hiprio.readable(&message);
        self.hiprio.add(&[message]);
        assert_eq!(self.handler.serve(Event::Queue(0)), Served::Done);
        assert_eq!(self.hiprio.used().unwrap().1, 0);
    }

    /// Metadata of a file as the host sees it.
    fn host(&self, name: &str) -> std::fs::Metadata {
        std::fs::symlink_metadata(self.path().join(name)).unwrap()
    }
}

fn read_body(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    let mut body = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
    body.extend(words(&[size, 0, 0, 0, 0, 0]));
    body
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn configuration_space_is_the_tag_and_one_request_queue() {
    let directory = tempfile::tempdir().unwrap();
    let config = FsConfig {
        tag: "vmbox".into(),
        root: directory.path().into(),
        dax: None,
        descriptors: 1000,
        ram: Arc::default(),
    };
    let device = Fs::new(config).unwrap();
    let mut space = [0xff; 48];
    device.read_config(0, &mut space);
    assert_eq!(&space[..6], b"vmbox\0");
    assert_eq!(space[36..40], [1, 0, 0, 0]);
    assert_eq!(space[40..], [0; 8]);
    device.read_config(u64::MAX, &mut space);
    assert_eq!(space, [0; 48]);
}

#[test]
fn tag_longer_than_its_field_is_refused() {
    let config = FsConfig {
        tag: "x".repeat(37),
        root: "/".into(),
        dax: None,
        descriptors: 1000,
        ram: Arc::default(),
    };
    assert!(matches!(Fs::new(config), Err(FsError::Tag(_))));
}

#[test]
fn root_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = FsConfig {
        tag: "share".into(),
        root: file.path().into(),
        dax: None,
        descriptors: 1000,
        ram: Arc::default(),
    };
    assert!(matches!(Fs::new(config), Err(FsError::Root { .. })));
}

#[test]
fn init_agrees_on_one_mebibyte_and_on_no_remote_locks() {
    let mut guest = Guest::without_init();
    let answer = guest.init();
    let (flags, max_write) = (answer.u32(12), answer.u32(20));
    assert_eq!(max_write, 1 << 20);
    assert_eq!(flags & 0x2, 0, "POSIX locks");
    assert_eq!(flags & 0x400, 0, "flock");
    assert_ne!(flags & 0x1000_0000, 0, "killpriv v2");
}
