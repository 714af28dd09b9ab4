//! The DAX window is changed only within its bounds.

use super::*;

const GRANULE: u64 = DAX_GRANULE;

impl Guest {
    fn map(&mut self, node: u64, file_offset: u64, window_offset: u64, length: u64) -> i32 {
        let fields = [u64::MAX, file_offset, length, 1, window_offset];
        let body: Vec<u8> = fields.iter().flat_map(|f| f.to_le_bytes()).collect();
        self.ask(48, node, &body, 0).errno
    }

    fn unmap(&mut self, window_offset: u64, length: u64) -> i32 {
        let range = [window_offset.to_le_bytes(), length.to_le_bytes()].concat();
        let body = [words(&[1]), range].concat();
        self.ask(49, ROOT, &body, 0).errno
    }

    fn calls(&self) -> Vec<(&'static str, u64, u64)> {
        std::mem::take(&mut *self.window.calls.lock().unwrap())
    }
}

#[test]
fn file_is_mapped_and_unmapped() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    guest.calls();
    assert_eq!(guest.map(node, 0, GRANULE, GRANULE), 0);
    assert_eq!(guest.unmap(GRANULE, GRANULE), 0);
    let expected = [("map", GRANULE, GRANULE), ("unmap", GRANULE, GRANULE)];
    assert_eq!(guest.calls(), expected);
}

#[test]
fn mapping_out_of_the_window_is_refused() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    guest.calls();
    let end = 8 << 20;
    let top = u64::MAX - GRANULE + 1;
    for (window_offset, length) in [
        (end, GRANULE),
        (end - GRANULE, 2 * GRANULE),
        (0, end + GRANULE),
        (top, GRANULE),
        (GRANULE, top),
        (0, 0),
        (4096, GRANULE),
        (0, 4096),
    ] {
        assert_eq!(guest.map(node, 0, window_offset, length), libc::EINVAL);
        assert_eq!(guest.unmap(window_offset, length), libc::EINVAL);
    }
    assert_eq!(guest.map(node, top, 0, GRANULE), libc::EINVAL);
    assert_eq!(guest.map(node, 4096, 0, GRANULE), libc::EINVAL);
    assert_eq!(guest.calls(), []);
}

#[test]
fn directory_can_not_be_mapped() {
    let mut guest = Guest::new();
    assert_eq!(guest.map(ROOT, 0, 0, GRANULE), libc::EINVAL);
}

#[test]
fn more_ranges_than_are_sent_are_refused() {
    let mut guest = Guest::new();
    let answer = guest.ask(49, ROOT, &words(&[u32::MAX]), 0);
    assert_eq!(answer.errno, libc::EINVAL);
    guest.calls();
    let ranges: Vec<u8> = [0, GRANULE].iter().flat_map(|f| f.to_le_bytes()).collect();
    let body = [words(&[5000]), ranges.repeat(5000)].concat();
    assert_eq!(guest.ask(49, ROOT, &body, 0).errno, libc::EINVAL);
    assert_eq!(guest.calls(), []);
}

#[test]
fn a_new_session_unmaps_all() {
    let mut guest = Guest::new();
    guest.calls();
    assert_eq!(guest.init().errno, 0);
    assert_eq!(guest.calls(), [("unmap", 0, 8 << 20)]);
}

#[test]
fn reset_unmaps_all() {
    let guest = Guest::new();
    guest.calls();
    let window = guest.window.clone();
    drop(guest);
    assert_eq!(*window.calls.lock().unwrap(), [("unmap", 0, 8 << 20)]);
}
