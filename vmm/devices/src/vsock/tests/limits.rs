//! What no well-behaved guest does: garbage, excess, and answers that nobody takes.

use std::io::Write;

use super::*;
use crate::testing::{INDIRECT, NEXT};
use crate::vsock::mux::{MAX_CONNECTIONS, MAX_REPLIES};

#[test]
fn packets_for_nobody_are_refused_or_dropped() {
    let (mut rig, _host) = Rig::connected();
    rig.give(16);
    let cases = [
        (
            Header {
                src_cid: 9,
                ..packet(op::REQUEST)
            },
            None,
        ),
        (
            Header {
                dst_cid: 7,
                ..packet(op::REQUEST)
            },
            Some(op::RST),
        ),
        (
            Header {
                kind: 2,
                ..packet(op::REQUEST)
            },
            Some(op::RST),
        ),
        (
            Header {
                src_port: 1,
                ..packet(op::RW)
            },
            Some(op::RST),
        ),
        (
            Header {
                src_port: 1,
                ..packet(99)
            },
            Some(op::RST),
        ),
        (
            Header {
                src_port: 1,
                ..packet(op::RST)
            },
            None,
        ),
        (packet(op::RESPONSE), None),
        (packet(99), None),
        (packet(op::CREDIT_REQUEST), Some(op::CREDIT_UPDATE)),
    ];
    for (header, answer) in cases {
        rig.send(header, &[]);
        assert_eq!(rig.next_op(), answer, "{header:?}");
    }
}

#[test]
fn a_length_beyond_the_chain_ends_the_connection() {
    let (mut rig, mut host) = Rig::connected();
    let header = Header {
        len: 100,
        ..packet(op::RW)
    };
    let chain = [rig.tx.readable(&header.encode()), rig.tx.readable(b"short")];
    rig.send_chain(&chain);
    assert_eq!(rig.next_op(), Some(op::RST));
    let mut got = Vec::new();
    assert!(read_all(&mut host, &mut got));
    assert_eq!(got, b"");
}

#[test]
fn a_packet_may_be_cut_anywhere() {
    let (mut rig, mut host) = Rig::connected();
    let mut raw = Header {
        len: 6,
        ..packet(op::RW)
    }
    .encode()
    .to_vec();
    raw.extend_from_slice(b"pieces");
    let chain: Vec<Buffer> = raw.chunks(5).map(|piece| rig.tx.readable(piece)).collect();
    rig.send_chain(&chain);
    let mut got = Vec::new();
    read_all(&mut host, &mut got);
    assert_eq!(got, b"pieces");
    host.write_all(b"answer").unwrap();
    while rig.rx.used().is_some() {}
    let pieces: Vec<Buffer> = (0..50).map(|_| rig.rx.writable(1)).collect();
    // The buffers that are still there come first.
    rig.host_event();
    rig.rx.add(&pieces);
    host.write_all(b"again").unwrap();
    for _ in 0..8 {
        rig.host_event();
        host.write_all(b"again").unwrap();
    }
    let raw: Vec<u8> = pieces.iter().flat_map(|p| rig.rx.bytes(*p)).collect();
    assert_eq!(
        Header::parse(raw[..HEADER_LEN].try_into().unwrap()).op,
        op::RW
    );
    assert_eq!(&raw[HEADER_LEN..HEADER_LEN + 5], b"again");
}

#[test]
fn chains_that_hold_no_packet_are_given_back() {
    let (mut rig, mut host) = Rig::connected();
    let short = rig.tx.readable(&[0; 43]);
    rig.send_chain(&[short]);
    let outside = Buffer {
        address: 1 << 40,
        length: 100,
        flags: 0,
    };
    rig.send_chain(&[outside]);
    assert_eq!(rig.tx.used().map(|u| u.1), Some(0));
    while rig.next().is_some() {}
    let tiny = rig.rx.writable(HEADER_LEN);
    while rig.handler.serve(Event::Queue(0)) != Served::Done {}
    rig.rx.add(&[tiny]);
    host.write_all(&pattern(100_000)).unwrap();
    rig.host_event();
    let mut lens = Vec::new();
    while let Some((_, len)) = rig.rx.used() {
        lens.push(len);
    }
    assert_eq!(lens.last(), Some(&0));
}

#[test]
fn a_second_request_replaces_the_connection() {
    let (mut rig, mut host) = Rig::connected();
    rig.send(packet(op::REQUEST), &[]);
    let mut got = Vec::new();
    assert!(read_all(&mut host, &mut got));
    assert_eq!(rig.next_op(), Some(op::RST), "and nobody listens any more");
}

#[test]
fn connections_are_limited_and_come_back() {
    let mut rig = Rig::new();
    let listener = rig.listen(PORT);
    let mut hosts = Vec::new();
    let mut open = |rig: &mut Rig, src_port| {
        rig.give(1);
        rig.send(
            Header {
                src_port,
                ..packet(op::REQUEST)
            },
            &[],
        );
        let answer = rig.next_op();
        if answer == Some(op::RESPONSE) {
            hosts.push(listener.accept().unwrap());
        }
        answer
    };
    for port in 0..MAX_CONNECTIONS as u32 {
        assert_eq!(open(&mut rig, port), Some(op::RESPONSE));
    }
    assert_eq!(open(&mut rig, 9_000), Some(op::RST));
    rig.send(
        Header {
            src_port: 1,
            ..packet(op::RST)
        },
        &[],
    );
    assert_eq!(open(&mut rig, 9_001), Some(op::RESPONSE));
}

#[test]
fn a_guest_that_takes_no_answers_is_not_listened_to() {
    let mut rig = Rig::new();
    for src_port in 0..1000 {
        let header = Header {
            src_port,
            ..packet(op::RW)
        };
        let buffer = rig.tx.readable(&header.encode());
        rig.tx.add(&[buffer]);
        if src_port % 64 == 0 {
            rig.kick(1);
        }
        if (0..64).filter(|_| rig.tx.used().is_none()).count() == 64 && src_port % 64 == 0 {
            break;
        }
    }
    let mut answers = 0;
    for _ in 0..100 {
        rig.give(16);
        while rig.next().is_some() {
            answers += 1;
        }
    }
    assert!(answers >= 256, "{answers} answers: all that were owed came");
}

#[test]
fn packets_left_in_tx_while_kicks_are_off_are_taken_without_another_kick() {
    let mut rig = Rig::with_rings(1024);
    let count = 3 * MAX_REPLIES as u32;
    for src_port in 0..count {
        let room = rig.rx.writable(2 * HEADER_LEN);
        rig.rx.add(&[room]);
        let header = Header {
            src_port,
            ..packet(op::RW)
        };
        let buffer = rig.tx.readable(&header.encode());
        rig.tx.add(&[buffer]);
    }
    rig.kick(1);
    assert!(rig.wait(0), "the device calls itself");
    // As often as it calls: where it is slow, its turns end before the packets do.
    for _ in 0..count {
        if rig.wait(0) {
            rig.host_event();
        }
    }
    let answers = std::iter::from_fn(|| rig.rx.used()).count();
    assert_eq!(answers, count as usize);
}

#[test]
fn chains_that_take_long_to_walk_end_the_turn() {
    let mut rig = Rig::with_rings(64);
    // Zero bytes a piece, so no limit of pieces or bytes is met.
    let mut piece = [0; 16];
    piece[12] = NEXT as u8;
    let pieces: Vec<u8> = (1..60_000u16)
        .flat_map(|next| {
            piece[14..].copy_from_slice(&next.to_le_bytes());
            piece
        })
        .collect();
    let table = Buffer {
        flags: INDIRECT,
        ..rig.tx.readable(&pieces)
    };
    for _ in 0..64 {
        rig.tx.add(&[table]);
    }
    rig.kick(1);
    let served = std::iter::from_fn(|| rig.tx.used()).count();
    assert!(served < 64, "the turn ends in the middle");
    assert!(rig.wait(0), "and goes on by itself");
}

#[test]
fn configuration_is_the_cid() {
    let dir = tempfile::tempdir().unwrap();
    let device = Vsock::new(0x1234, dir.path().join("s")).unwrap();
    let mut data = [0xff; 8];
    device.read_config(1, &mut data);
    assert_eq!(data, [0x12, 0, 0, 0, 0, 0, 0, 0]);
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 40] {
        assert!(Vsock::new(cid, dir.path().join("t")).is_err());
    }
}
