//! Bytes, their order and their end, on connections that either side made.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::*;
use crate::vsock::packet::{SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND};

#[test]
fn bytes_flow_both_ways_on_a_connection_that_the_guest_made() {
    let (mut rig, mut host) = Rig::connected();
    rig.send(packet(op::RW), b"from the guest");
    let mut got = Vec::new();
    assert!(!read_all(&mut host, &mut got));
    assert_eq!(got, b"from the guest");
    host.write_all(b"from the host").unwrap();
    rig.host_event();
    let (header, payload) = rig.next().unwrap();
    assert_eq!((header.op, header.fwd_cnt), (op::RW, 14));
    assert_eq!(payload, b"from the host");
}

#[test]
fn a_port_where_nobody_listens_is_refused() {
    let mut rig = Rig::new();
    rig.give(1);
    rig.send(packet(op::REQUEST), &[]);
    let (header, _) = rig.next().unwrap();
    assert_eq!(
        (header.op, header.src_port, header.dst_port),
        (op::RST, PORT, GUEST_PORT)
    );
}

fn dial(rig: &mut Rig, line: &[u8]) -> (UnixStream, Header) {
    let mut host = UnixStream::connect(rig.dir.path().join("vsock")).unwrap();
    host.set_nonblocking(true).unwrap();
    host.write_all(line).unwrap();
    rig.give(4);
    rig.host_event();
    let (request, _) = rig.next().unwrap();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 77));
    let answer = Header {
        src_port: 77,
        dst_port: request.src_port,
        ..packet(op::RESPONSE)
    };
    (host, answer)
}

#[test]
fn a_host_program_reaches_a_guest_port_and_nothing_behind_its_line_is_lost() {
    let mut rig = Rig::new();
    let (mut host, answer) = dial(&mut rig, b"CONNECT 77\nhello");
    rig.send(answer, &[]);
    let mut got = Vec::new();
    assert!(!read_all(&mut host, &mut got));
    assert_eq!(got, format!("OK {}\n", answer.dst_port).as_bytes());
    assert_eq!(rig.next().unwrap().1, b"hello");
}

#[test]
fn a_guest_port_without_a_listener_is_end_of_file() {
    let mut rig = Rig::new();
    let (mut host, answer) = dial(&mut rig, b"CONNECT 77\n");
    rig.send(
        Header {
            op: op::RST,
            ..answer
        },
        &[],
    );
    let mut got = Vec::new();
    assert!(read_all(&mut host, &mut got));
    assert_eq!(got, b"");
}

#[test]
fn a_host_program_that_gives_up_leaves_nothing() {
    let mut rig = Rig::new();
    let (host, answer) = dial(&mut rig, b"CONNECT 77\n");
    drop(host);
    rig.host_event();
    rig.send(answer, &[]);
    assert_eq!(rig.next_op(), Some(op::RST));
}

#[test]
fn a_host_program_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let (mut rig, mut host) = Rig::connected();
    let mut sent = fill_up(&mut rig);
    let mut got = Vec::new();
    read_all(&mut host, &mut got);
    rig.host_event();
    let (update, _) = rig.next().unwrap();
    assert_eq!(update.op, op::CREDIT_UPDATE);
    rig.send(packet(op::RW), b"more");
    sent.extend_from_slice(b"more");
    while got.len() < sent.len() {
        read_all(&mut host, &mut got);
        rig.host_event();
    }
    assert!(got == sent);
}

#[test]
fn a_guest_that_exceeds_its_credit_is_reset() {
    let (mut rig, _host) = Rig::connected();
    fill_up(&mut rig);
    // What has left for the host but was not told yet is forgiven; it is less than half of the buffer.
    rig.send(packet(op::RW), &pattern(BUF_ALLOC as usize / 2));
    assert_eq!(rig.next_op(), Some(op::RST));
}

#[test]
fn without_buffers_the_host_is_not_read_and_nothing_spins() {
    let (mut rig, mut host) = Rig::connected();
    while rig.next().is_some() {}
    host.write_all(&pattern(20_000)).unwrap();
    rig.host_event();
    let mut wrote = 20_000;
    while let Ok(count) = host.write(&[0; 4096]) {
        wrote += count;
        rig.host_event();
    }
    assert!(wrote < 1 << 20, "the host program is stopped");
    assert!(!rig.wait(0), "nothing to do until the guest gives a buffer");
    drop(host);
    rig.host_event();
    assert!(!rig.wait(0), "a hung-up host is reported once");
}

#[test]
fn the_guests_end_of_file_comes_after_its_last_byte() {
    let (mut rig, mut host) = Rig::connected();
    let sent = fill_up(&mut rig);
    rig.send(shutdown(SHUTDOWN_SEND), &[]);
    let mut got = Vec::new();
    while !read_all(&mut host, &mut got) {
        rig.host_event();
    }
    assert!(got == sent);
    host.write_all(b"still open").unwrap();
    rig.host_event();
    while let Some((header, payload)) = rig.next() {
        if header.op == op::RW {
            assert_eq!(payload, b"still open");
            return;
        }
    }
    panic!("the other direction is open");
}

#[test]
fn the_hosts_end_of_file_comes_after_its_last_byte_and_both_ends_make_a_reset() {
    let (mut rig, mut host) = Rig::connected();
    let sent = pattern(30_000);
    host.write_all(&sent).unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    rig.host_event();
    let mut got = Vec::new();
    let last = loop {
        match rig.next() {
            Some((header, payload)) if header.op == op::RW => got.extend_from_slice(&payload),
            Some((header, _)) => break header,
            None => rig.give(1),
        }
    };
    assert!(got == sent);
    assert_eq!((last.op, last.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    rig.give(2);
    rig.send(packet(op::RW), b"reply");
    rig.send(shutdown(SHUTDOWN_SEND), &[]);
    assert_eq!(rig.next_op(), Some(op::RST));
    let mut reply = Vec::new();
    assert!(read_all(&mut host, &mut reply));
    assert_eq!(reply, b"reply");
}

#[test]
fn a_guest_that_closes_is_freed_at_once_and_its_bytes_still_arrive() {
    for (last, answer) in [
        (shutdown(SHUTDOWN_BOTH), Some(op::RST)),
        (packet(op::RST), None),
    ] {
        let (mut rig, mut host) = Rig::connected();
        let sent = fill_up(&mut rig);
        rig.send(last, &[]);
        assert_eq!(rig.next_op(), answer);
        rig.give(2);
        rig.send(packet(op::REQUEST), &[]);
        assert_eq!(
            rig.next_op(),
            Some(op::RST),
            "the port is free; nobody listens any more"
        );
        let mut got = Vec::new();
        while !read_all(&mut host, &mut got) {
            rig.host_event();
        }
        assert!(got == sent);
    }
}

#[test]
fn a_host_that_is_gone_is_told_at_once_and_its_last_bytes_still_arrive() {
    let (mut rig, mut host) = Rig::connected();
    rig.give(8);
    fill_up(&mut rig);
    host.write_all(b"last words").unwrap();
    drop(host);
    rig.host_event();
    let mut got = Vec::new();
    let mut flags = Vec::new();
    while let Some((header, payload)) = rig.next() {
        got.extend_from_slice(&payload);
        if header.op == op::SHUTDOWN {
            assert!(header.flags & SHUTDOWN_SEND == 0 || got == b"last words");
            flags.push(header.flags);
        }
    }
    assert_eq!(got, b"last words");
    assert_eq!(flags, [SHUTDOWN_RCV, SHUTDOWN_BOTH]);
    assert!(rig.wait(10_000), "the wait for the guest's RST ends");
    rig.host_event();
    assert_eq!(rig.next_op(), Some(op::RST));
    rig.send(packet(op::RW), b"x");
    assert_eq!(rig.next_op(), Some(op::RST), "nothing is left of it");
}
