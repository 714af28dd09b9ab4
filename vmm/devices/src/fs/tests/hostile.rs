//! What no correct driver sends is answered with an error, or not at all, and costs nothing.

use super::*;

#[test]
fn unknown_opcodes_are_answered_with_enosys() {
    let mut guest = Guest::new();
    for opcode in [0, 7, 19, 31, 32, 33, 37, 39, 40, 41, 53, 4096, u32::MAX] {
        let answer = guest.ask(opcode, ROOT, &[0xff; 64], 64);
        assert_eq!(answer.errno, libc::ENOSYS, "opcode {opcode}");
    }
}

#[test]
fn truncated_header_gets_its_chain_back() {
    let mut guest = Guest::new();
    let header = guest.header(3, ROOT, 40);
    let message = guest.requests.readable(&header[..39]);
    let answer = guest.requests.writable(128);
    assert_eq!(guest.raw(&[message, answer]), 0);
}

#[test]
fn truncated_bodies_are_invalid() {
    let mut guest = Guest::new();
    for opcode in (1..=52).filter(|opcode| ![2, 17, 5, 36, 38, 42, 50, 52].contains(opcode)) {
        let node = if opcode == 26 { 0 } else { ROOT };
        let answer = guest.ask(opcode, node, &[], 288);
        assert_ne!(answer.errno, 0, "opcode {opcode}");
    }
}

#[test]
fn header_that_promises_more_than_there_is_is_invalid() {
    let mut guest = Guest::new();
    for length in [0, 39, 4096, u32::MAX] {
        let mut message = guest.header(1, ROOT, length as usize);
        message.extend(cstr("f"));
        let message = guest.requests.readable(&message);
        let answer = guest.requests.writable(144);
        let written = guest.raw(&[message, answer]);
        assert_eq!(guest.parse(answer, written).errno, libc::EINVAL);
    }
}

#[test]
fn name_without_its_end_is_invalid() {
    let mut guest = Guest::new();
    let answer = guest.ask(1, ROOT, b"name", 128);
    assert_eq!(answer.errno, libc::EINVAL);
}

#[test]
fn answer_without_room_is_an_error_or_nothing() {
    let mut guest = Guest::new();
    assert_eq!(guest.ask(3, ROOT, &[0; 16], 8).errno, libc::EINVAL);
    let header = guest.header(3, ROOT, 56);
    let message = guest.requests.readable(&[header, vec![0; 16]].concat());
    let answer = guest.requests.writable(15);
    assert_eq!(guest.raw(&[message, answer]), 0);
    assert_eq!(guest.raw(&[message]), 0);
}

#[test]
fn sizes_beyond_the_buffers_are_cut_or_refused() {
    let mut guest = Guest::new();
    let file = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    guest.write(file, 0, b"abc", libc::O_RDWR);
    assert_eq!(guest.read(file, 0, u32::MAX, 64).data, b"abc");
    assert_eq!(guest.read(file, u64::MAX, 64, 64).errno, libc::EINVAL);
    let handle = guest.ask(27, ROOT, &[0; 8], 16).u64(0);
    for opcode in [28, 44] {
        let body = read_body(handle, 0, u32::MAX);
        assert_eq!(guest.ask(opcode, ROOT, &body, 4096).errno, libc::ENOMEM);
        let answer = guest.ask(opcode, ROOT, &read_body(handle, u64::MAX, 4096), 4096);
        assert!(answer.errno == libc::EINVAL || answer.data.is_empty());
    }
}

#[test]
fn write_that_promises_more_data_writes_what_there_is() {
    let mut guest = Guest::new();
    let file = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    let mut body = [file.1.to_le_bytes(), 0u64.to_le_bytes()].concat();
    body.extend(words(&[u32::MAX, 0, 0, 0, 0, 0]));
    body.extend(b"abc");
    assert_eq!(guest.ask(16, file.0, &body, 8).u32(0), 3);
    assert_eq!(guest.host("f").len(), 3);
}

#[test]
fn chain_larger_than_any_message_is_refused() {
    let mut guest = Guest::new();
    let header = guest.header(39, ROOT, 72);
    let message = guest.requests.readable(&header);
    let rest = Buffer {
        length: 1 << 20,
        ..guest.requests.readable(&[0; 16])
    };
    let answer = guest.requests.writable(64);
    let written = guest.raw(&[message, rest, rest, rest, answer]);
    assert_eq!(guest.parse(answer, written).errno, libc::EINVAL);
}

#[test]
fn buffer_outside_of_ram_gets_its_chain_back() {
    let mut guest = Guest::new();
    let message = Buffer {
        address: u64::MAX - 8,
        length: 64,
        flags: 0,
    };
    let answer = guest.requests.writable(64);
    assert_eq!(guest.raw(&[message, answer]), 0);
}

#[test]
fn forgetting_more_than_a_message_holds_changes_nothing() {
    let mut guest = Guest::new();
    let mut message = guest.header(42, 0, 48);
    message.extend(words(&[u32::MAX, 0]));
    let message = guest.requests.readable(&message);
    assert_eq!(guest.raw(&[message]), 0);
    assert_eq!(guest.getattr(ROOT).errno, 0);
}

#[test]
fn second_init_starts_over() {
    let mut guest = Guest::new();
    let file = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    assert_eq!(guest.init().errno, 0);
    assert_eq!(guest.getattr(file.0).errno, libc::ESTALE);
    assert_eq!(guest.read(file, 0, 8, 8).errno, libc::EBADF);
}
