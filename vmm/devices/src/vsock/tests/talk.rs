//! Both programs, both rings and the host socket in any order.

use std::io::Write;
use std::net::Shutdown;

use proptest::prelude::*;

use super::*;
use crate::vsock::packet::SHUTDOWN_SEND;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_garbage_panics_or_spins(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
        crate::vsock::fuzz::run(&data);
    }
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    GuestWrites(usize),
    GuestReads,
    HostWrites(usize),
    HostReads(usize),
    Buffers(usize),
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..60_000usize).prop_map(Step::GuestWrites),
        Just(Step::GuestReads),
        (1..60_000usize).prop_map(Step::HostWrites),
        (1..60_000usize).prop_map(Step::HostReads),
        (1..16usize).prop_map(Step::Buffers),
    ]
}

/// A guest that keeps to its credit, and a host program, each with a stream of known bytes.
pub(super) struct Talk {
    pub rig: Rig,
    pub host: UnixStream,
    pub guest_sent: usize,
    guest_knows: u32,
    pub guest_got: Vec<u8>,
    pub guest_eof: bool,
    pub host_sent: usize,
    pub host_got: Vec<u8>,
    host_eof: bool,
}

impl Talk {
    pub fn new() -> Self {
        let (rig, host) = Rig::connected();
        Self {
            rig,
            host,
            guest_sent: 0,
            guest_knows: 0,
            guest_got: Vec::new(),
            guest_eof: false,
            host_sent: 0,
            host_got: Vec::new(),
            host_eof: false,
        }
    }

    pub fn run(&mut self, step: &Step, bytes: &[u8]) {
        match *step {
            Step::GuestWrites(count) => {
                let credit = BUF_ALLOC - (self.guest_sent as u32 - self.guest_knows);
                let end = bytes
                    .len()
                    .min(self.guest_sent + count.min(credit as usize));
                let fwd_cnt = self.guest_got.len() as u32;
                let payload = &bytes[self.guest_sent..end];
                self.rig.send(
                    Header {
                        fwd_cnt,
                        ..packet(op::RW)
                    },
                    payload,
                );
                self.guest_sent = end;
            }
            Step::GuestReads => {
                while let Some((header, payload)) = self.rig.next() {
                    assert!(
                        !self.guest_eof || header.op != op::RW,
                        "bytes after end of file"
                    );
                    self.guest_knows = header.fwd_cnt;
                    self.guest_got.extend_from_slice(&payload);
                    self.guest_eof |=
                        header.op == op::SHUTDOWN && header.flags & SHUTDOWN_SEND != 0;
                }
                let fwd_cnt = self.guest_got.len() as u32;
                self.rig.send(
                    Header {
                        fwd_cnt,
                        ..packet(op::CREDIT_UPDATE)
                    },
                    &[],
                );
            }
            Step::HostWrites(count) => {
                let end = bytes.len().min(self.host_sent + count);
                self.host_sent += self.host.write(&bytes[self.host_sent..end]).unwrap_or(0);
                self.rig.host_event();
            }
            Step::HostReads(count) => {
                let mut chunk = vec![0; count];
                match self.host.read(&mut chunk) {
                    Ok(0) => self.host_eof = true,
                    Ok(count) => self.host_got.extend_from_slice(&chunk[..count]),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                self.rig.host_event();
            }
            Step::Buffers(count) => {
                let room = 100usize.saturating_sub(self.rig.rx_buffers.len());
                self.rig.give(count.min(room));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn both_streams_arrive_whole_in_order_and_end_after_their_last_byte(steps in proptest::collection::vec(step(), 1..300)) {
        let bytes = pattern(1 << 20);
        let mut talk = Talk::new();
        for step in &steps {
            talk.run(step, &bytes);
        }
        talk.host.shutdown(Shutdown::Write).unwrap();
        talk.rig.send(shutdown(SHUTDOWN_SEND), &[]);
        for _ in 0..3000 {
            if talk.guest_eof && talk.host_eof {
                break;
            }
            for step in [Step::HostReads(1 << 16), Step::Buffers(16), Step::GuestReads] {
                talk.run(&step, &bytes);
            }
        }
        prop_assert!(talk.guest_eof && talk.host_eof);
        prop_assert!(talk.guest_got == bytes[..talk.host_sent]);
        prop_assert!(talk.host_got == bytes[..talk.guest_sent]);
    }
}
