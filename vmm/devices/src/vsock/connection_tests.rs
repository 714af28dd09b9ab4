//! What one connection promises, and a model of both its ends under random interleavings.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const KEY: Key = Key {
    host_port: 5000,
    guest_port: 6000,
};

fn from_guest(op: u16) -> Header {
    Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port: KEY.guest_port,
        dst_port: KEY.host_port,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 1 << 18,
        ..Header::default()
    }
}

fn payload(len: u32) -> Header {
    Header {
        len,
        ..from_guest(op::RW)
    }
}

fn shutdown(flags: u32) -> Header {
    Header {
        flags,
        ..from_guest(op::SHUTDOWN)
    }
}

fn established() -> Connection {
    let mut connection = Connection::accepted(&from_guest(op::REQUEST));
    assert_eq!(connection.take_control().unwrap().op, op::RESPONSE);
    connection
}

#[test]
fn response_is_the_first_packet() {
    let mut connection = Connection::accepted(&from_guest(op::REQUEST));
    connection.receive(&from_guest(op::CREDIT_REQUEST));
    assert_eq!(connection.take_control().unwrap().op, op::RESPONSE);
    assert_eq!(connection.take_control(), None);
}

#[test]
fn a_response_before_the_request_was_sent_is_a_violation() {
    let mut connection = Connection::requested(KEY, 3);
    assert_eq!(connection.receive(&from_guest(op::RESPONSE)), Effect::Reset);
}

#[test]
fn one_byte_beyond_the_credit_is_a_violation() {
    let mut connection = established();
    assert_eq!(connection.receive(&payload(BUF_ALLOC)), Effect::Payload);
    assert_eq!(connection.receive(&payload(1)), Effect::Reset);
}

#[test]
fn bytes_after_end_of_file_are_a_violation() {
    let mut connection = established();
    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_SEND)),
        Effect::Nothing
    );
    assert_eq!(connection.receive(&payload(1)), Effect::Reset);
}

#[test]
fn credit_is_told_when_half_of_it_came_free() {
    let mut connection = established();
    connection.receive(&payload(BUF_ALLOC));
    connection.forward(BUF_ALLOC / 2 - 1);
    assert_eq!(connection.take_control(), None);
    connection.forward(1);
    let update = connection.take_control().unwrap();
    assert_eq!(
        (update.op, update.fwd_cnt),
        (op::CREDIT_UPDATE, BUF_ALLOC / 2)
    );
    assert_eq!(connection.take_control(), None);
}

#[test]
fn an_impossible_forward_count_reads_as_no_credit() {
    let mut connection = established();
    connection.receive(&Header {
        fwd_cnt: 1,
        buf_alloc: 4096,
        ..from_guest(op::CREDIT_UPDATE)
    });
    assert_eq!(connection.credit(), 0);
}

#[test]
fn credit_is_asked_for_once_per_stall() {
    let mut connection = established();
    connection.receive(&Header {
        buf_alloc: 0,
        ..from_guest(op::CREDIT_UPDATE)
    });
    connection.stalled();
    assert_eq!(connection.take_control().unwrap().op, op::CREDIT_REQUEST);
    connection.stalled();
    assert_eq!(connection.take_control(), None);
    connection.receive(&from_guest(op::CREDIT_UPDATE));
    connection.receive(&Header {
        buf_alloc: 0,
        ..from_guest(op::CREDIT_UPDATE)
    });
    connection.stalled();
    assert_eq!(connection.take_control().unwrap().op, op::CREDIT_REQUEST);
}

#[test]
fn two_half_shutdowns_make_a_whole_one() {
    let mut connection = established();
    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_RCV)),
        Effect::GuestDeaf
    );
    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_SEND)),
        Effect::Detach { reset: true }
    );
}

#[test]
fn both_ends_of_file_finish_only_when_all_is_flushed_and_told() {
    let mut connection = established();
    connection.receive(&shutdown(SHUTDOWN_SEND));
    connection.host_done();
    assert!(!connection.is_finished(true), "SHUTDOWN was not sent yet");
    assert_eq!(connection.take_control().unwrap().flags, SHUTDOWN_SEND);
    assert!(!connection.is_finished(false), "the host has not read all");
    assert!(connection.is_finished(true));
}

/// One step of either program, of the host socket, or of a ring.
#[derive(Debug, Clone)]
enum Step {
    GuestWrites(u32),
    GuestReads(u32),
    GuestTellsCredit,
    HostWrites(u32),
    HostReads(u32),
    ToGuest,
    ToHost,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..200_000u32).prop_map(Step::GuestWrites),
        (1..100_000u32).prop_map(Step::GuestReads),
        Just(Step::GuestTellsCredit),
        (1..200_000u32).prop_map(Step::HostWrites),
        (1..100_000u32).prop_map(Step::HostReads),
        Just(Step::ToGuest),
        Just(Step::ToHost),
    ]
}

/// Both ends count as Linux does; the bytes themselves are a running number, so order and loss show as numbers.
struct Model {
    connection: Connection,
    guest_buf_alloc: u32,
    /// Guest → host: what the guest has sent, what lies on the ring, in our backlog, and what the host has read.
    guest_sent: u32,
    guest_knows: u32,
    tx_ring: VecDeque<u32>,
    backlog: u32,
    host_socket: u32,
    host_read: u32,
    /// Host → guest: likewise.
    host_pending: u32,
    host_wrote: u32,
    rx_queue: u32,
    guest_read: u32,
}

const SOCKET: u32 = 50_000;

impl Model {
    fn run(&mut self, step: &Step) {
        match *step {
            Step::GuestWrites(count) => {
                let credit = BUF_ALLOC - self.guest_sent.wrapping_sub(self.guest_knows);
                let count = count.min(credit).min(MAX_PAYLOAD);
                if count > 0 {
                    self.guest_sent = self.guest_sent.wrapping_add(count);
                    self.tx_ring.push_back(count);
                }
            }
            Step::ToHost => {
                if let Some(count) = self.tx_ring.pop_front() {
                    let header = Header {
                        fwd_cnt: self.guest_read,
                        buf_alloc: self.guest_buf_alloc,
                        ..payload(count)
                    };
                    assert_eq!(self.connection.receive(&header), Effect::Payload);
                    self.backlog += count;
                    assert!(self.backlog <= BUF_ALLOC, "memory is bounded by the credit");
                    self.flush();
                }
            }
            Step::HostReads(count) => {
                let count = count.min(self.host_socket);
                self.host_socket -= count;
                self.host_read = self.host_read.wrapping_add(count);
                self.flush();
            }
            Step::HostWrites(count) => {
                self.host_pending += count;
                self.host_wrote = self.host_wrote.wrapping_add(count);
            }
            Step::ToGuest => self.deliver_to_guest(),
            Step::GuestReads(count) => {
                let count = count.min(self.rx_queue);
                self.rx_queue -= count;
                self.guest_read = self.guest_read.wrapping_add(count);
            }
            Step::GuestTellsCredit => {
                let header = Header {
                    fwd_cnt: self.guest_read,
                    buf_alloc: self.guest_buf_alloc,
                    ..from_guest(op::CREDIT_UPDATE)
                };
                assert_eq!(self.connection.receive(&header), Effect::Nothing);
            }
        }
    }

    fn flush(&mut self) {
        let count = self.backlog.min(SOCKET - self.host_socket);
        self.backlog -= count;
        self.host_socket += count;
        self.connection.forward(count);
    }

    fn deliver_to_guest(&mut self) {
        let control = self.connection.take_control();
        let header = control.or_else(|| {
            let count = self.host_pending.min(self.connection.credit());
            self.host_pending -= count;
            (count > 0).then(|| self.connection.send(count))
        });
        if let Some(header) = header {
            self.guest_knows = header.fwd_cnt;
            self.rx_queue += header.len;
            assert!(
                self.rx_queue <= self.guest_buf_alloc,
                "the guest's credit is never exceeded"
            );
        }
    }

    fn is_idle(&self) -> bool {
        self.tx_ring.is_empty()
            && self.backlog + self.host_socket + self.host_pending + self.rx_queue == 0
    }
}

proptest! {
    #[test]
    fn every_byte_arrives_and_no_credit_is_exceeded(
        steps in proptest::collection::vec(step(), 1..400),
        guest_buf_alloc in 1..300_000u32,
        start in any::<u32>(),
    ) {
        let mut connection = established();
        // Counters that are about to wrap are as good as any.
        connection.received = start;
        connection.forwarded = start;
        connection.told = start;
        connection.sent = start;
        let mut model = Model {
            connection, guest_buf_alloc,
            guest_sent: start, guest_knows: start, tx_ring: VecDeque::new(), backlog: 0, host_socket: 0, host_read: start,
            host_pending: 0, host_wrote: start, rx_queue: 0, guest_read: start,
        };
        model.run(&Step::GuestTellsCredit);
        for step in &steps {
            model.run(step);
        }
        // Both programs read on: all that was written must come out, without a further push. Into a buffer of a few bytes that
        // would take for ever.
        model.guest_buf_alloc = guest_buf_alloc.max(4096);
        for _ in 0..100_000 {
            if model.is_idle() {
                break;
            }
            for step in [Step::ToHost, Step::HostReads(u32::MAX), Step::ToGuest, Step::GuestReads(u32::MAX), Step::GuestTellsCredit] {
                model.run(&step);
            }
        }
        prop_assert_eq!(model.host_read, model.guest_sent);
        prop_assert_eq!(model.guest_read, model.host_wrote);
    }

    #[test]
    fn no_packet_of_the_guest_panics(packets in proptest::collection::vec((any::<u16>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>()), 0..50)) {
        let mut connection = Connection::requested(KEY, 3);
        for (op, len, flags, buf_alloc, fwd_cnt) in packets {
            connection.receive(&Header { len, flags, buf_alloc, fwd_cnt, ..from_guest(op % 10) });
            connection.stalled();
            connection.take_control();
        }
    }
}
