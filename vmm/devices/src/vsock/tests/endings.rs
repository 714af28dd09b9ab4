//! However a connection ends, what was accepted arrives, or its sender sees a reset (virtio 1.2 §5.10.6.5, §5.10.6.6).

use std::io::Write;

use proptest::prelude::*;

use super::talk::{Step, Talk, step};
use super::*;
use crate::vsock::packet::SHUTDOWN_BOTH;

/// What the host program reads from here on, and whether it ended as by a reset.
fn read_to_the_end(host: &mut UnixStream, got: &mut Vec<u8>) -> bool {
    host.set_nonblocking(false).unwrap();
    match host.read_to_end(got) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            true
        }
    }
}

#[test]
fn what_was_accepted_before_the_guest_broke_the_protocol_arrives() {
    let (mut rig, mut host) = Rig::connected();
    let sent = fill_up(&mut rig);
    rig.send(packet(op::RW), &pattern(BUF_ALLOC as usize));
    assert_eq!(rig.next_op(), Some(op::RST));
    let mut got = Vec::new();
    assert!(!read_to_the_end(&mut host, &mut got));
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
}

#[test]
fn what_was_accepted_before_a_device_reset_arrives() {
    let (mut rig, mut host) = Rig::connected();
    let sent = fill_up(&mut rig);
    drop(rig.handler);
    let mut got = Vec::new();
    assert!(!read_to_the_end(&mut host, &mut got));
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
}

#[test]
fn a_host_program_whose_bytes_the_guest_never_took_reads_the_guests_last_words_and_a_reset() {
    let (mut rig, mut host) = Rig::connected();
    while rig.next().is_some() {}
    host.write_all(&pattern(100_000)).unwrap();
    rig.host_event();
    rig.send(packet(op::RW), b"last words");
    rig.send(shutdown(SHUTDOWN_BOTH), &[]);
    let mut got = Vec::new();
    assert!(read_to_the_end(&mut host, &mut got));
    assert_eq!(got, b"last words");
}

/// How the guest's side ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Closes,
    Resets,
    BreaksTheProtocol,
    ResetsTheDevice,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        Just(End::Closes),
        Just(End::Resets),
        Just(End::BreaksTheProtocol),
        Just(End::ResetsTheDevice),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_host_program_reads_all_and_a_reset_only_if_bytes_of_its_own_are_lost(
        steps in proptest::collection::vec(step(), 1..200),
        end in end(),
    ) {
        let bytes = pattern(1 << 20);
        let mut talk = Talk::new();
        for step in &steps {
            talk.run(step, &bytes);
        }
        talk.run(&Step::GuestReads, &bytes);
        // What the device put into the guest's buffers has left the host's hands.
        while let Some((header, payload)) = talk.rig.next() {
            if header.op == op::RW {
                talk.guest_got.extend_from_slice(&payload);
            }
        }
        match end {
            End::Closes => talk.rig.send(shutdown(SHUTDOWN_BOTH), &[]),
            End::Resets => talk.rig.send(packet(op::RST), &[]),
            End::BreaksTheProtocol => talk.rig.send(packet(op::RW), &vec![0; BUF_ALLOC as usize + 1]),
            End::ResetsTheDevice => {}
        }
        while let Some((header, payload)) = talk.rig.next() {
            if header.op == op::RW {
                talk.guest_got.extend_from_slice(&payload);
            }
        }
        let Talk { rig, mut host, mut host_got, guest_got, guest_sent, host_sent, .. } = talk;
        drop(rig.handler);
        let reset = read_to_the_end(&mut host, &mut host_got);
        prop_assert!(host_got == bytes[..guest_sent], "{} of {guest_sent}", host_got.len());
        prop_assert_eq!(reset, guest_got.len() < host_sent);
    }

    #[test]
    fn the_guest_gets_all_of_a_host_program_that_closes_and_is_told_that_nobody_reads(
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let bytes = pattern(1 << 20);
        let mut talk = Talk::new();
        for step in &steps {
            talk.run(step, &bytes);
        }
        drop(std::mem::replace(&mut talk.host, UnixStream::pair().unwrap().0));
        talk.rig.host_event();
        for _ in 0..3000 {
            if talk.guest_eof {
                break;
            }
            talk.run(&Step::Buffers(16), &bytes);
            talk.run(&Step::GuestReads, &bytes);
        }
        prop_assert!(talk.guest_eof);
        prop_assert!(talk.guest_got == bytes[..talk.host_sent]);
        talk.rig.send(packet(op::RST), &[]);
    }
}
