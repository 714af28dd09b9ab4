//! Tests of the device loop with handlers that tell a channel what happened to them.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::testing::FakeInterrupt;

const DEADLINE: Duration = Duration::from_secs(20);

/// What a test sees of its handler.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Event(Event),
    Dropped,
}

/// Reports its calls, answers as told, and lists the sources it was given.
struct Reporter {
    seen: Sender<Seen>,
    answer: Served,
    sources: Arc<Mutex<Vec<Source>>>,
}

impl Handler for Reporter {
    fn sources(&self) -> Vec<Source> {
        self.sources.lock().unwrap().clone()
    }

    fn serve(&mut self, event: Event) -> Served {
        self.seen.send(Seen::Event(event)).unwrap();
        self.answer
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let _ = self.seen.send(Seen::Dropped);
    }
}

struct Fixture {
    worker: Worker,
    kick: Arc<EventFd>,
    seen: Receiver<Seen>,
    sources: Arc<Mutex<Vec<Source>>>,
    interrupt: Arc<FakeInterrupt>,
    attachment: Option<Attachment>,
}

impl Fixture {
    fn new(answer: Served, sources: Vec<Source>) -> Self {
        let worker = Worker::spawn("test").unwrap();
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let (sender, seen) = channel();
        let sources = Arc::new(Mutex::new(sources));
        let interrupt = Arc::new(FakeInterrupt::default());
        let reporter = Reporter {
            seen: sender,
            answer,
            sources: sources.clone(),
        };
        let kicks = vec![(7, kick.clone())];
        let attachment = worker
            .handle()
            .attach(Box::new(reporter), kicks, interrupt.clone());
        Self {
            worker,
            kick,
            seen,
            sources,
            interrupt,
            attachment: Some(attachment),
        }
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(DEADLINE).unwrap()
    }

    /// Returns when the worker has looked at everything that was ready before.
    fn settle(&self) {
        self.worker.handle().pause().unwrap();
        self.worker.handle().resume();
        self.worker.handle().pause().unwrap();
        self.worker.handle().resume();
    }
}

fn readable(stream: &UnixStream, token: u64) -> Source {
    Source {
        fd: stream.as_raw_fd(),
        token,
        read: true,
        write: false,
    }
}

#[test]
fn a_kick_is_served_with_its_queue_number() {
    let worker = Fixture::new(Served::Done, Vec::new());
    worker.kick.write(1).unwrap();
    assert_eq!(worker.next(), Seen::Event(Event::Queue(7)));
}

#[test]
fn every_kick_after_a_call_makes_another_call() {
    let fixture = Fixture::new(Served::Done, Vec::new());
    for _ in 0..1000 {
        fixture.kick.write(1).unwrap();
        assert_eq!(fixture.next(), Seen::Event(Event::Queue(7)));
    }
}

#[test]
fn a_kick_before_attaching_is_not_lost() {
    let fixture = Fixture::new(Served::Done, Vec::new());
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    kick.write(1).unwrap();
    let (sender, seen) = channel();
    let reporter = Reporter {
        seen: sender,
        answer: Served::Done,
        sources: Arc::default(),
    };
    let interrupt = fixture.interrupt.clone();
    let _attachment =
        fixture
            .worker
            .handle()
            .attach(Box::new(reporter), vec![(1, kick)], interrupt);
    assert_eq!(
        seen.recv_timeout(DEADLINE).unwrap(),
        Seen::Event(Event::Queue(1))
    );
}

#[test]
fn detaching_returns_after_the_handler_is_dropped() {
    let mut worker = Fixture::new(Served::Done, Vec::new());
    worker.attachment = None;
    assert_eq!(worker.seen.try_recv().unwrap(), Seen::Dropped);
    worker.kick.write(1).unwrap();
    worker.settle();
    assert!(worker.seen.try_recv().is_err());
}

#[test]
fn a_broken_handler_asks_for_a_reset_and_is_left_alone() {
    let worker = Fixture::new(Served::Broken, Vec::new());
    worker.kick.write(1).unwrap();
    assert_eq!(worker.next(), Seen::Event(Event::Queue(7)));
    worker.kick.write(1).unwrap();
    worker.settle();
    assert!(worker.interrupt.is_reset_needed());
    assert!(worker.seen.try_recv().is_err());
}

#[test]
fn nothing_is_served_while_paused_and_nothing_is_lost() {
    let worker = Fixture::new(Served::Done, Vec::new());
    worker.worker.handle().pause().unwrap();
    worker.kick.write(1).unwrap();
    assert!(worker.seen.recv_timeout(Duration::from_millis(50)).is_err());
    worker.worker.handle().resume();
    assert_eq!(worker.next(), Seen::Event(Event::Queue(7)));
}

#[test]
fn a_paused_worker_still_detaches() {
    let mut worker = Fixture::new(Served::Done, Vec::new());
    worker.worker.handle().pause().unwrap();
    worker.attachment = None;
    assert_eq!(worker.seen.try_recv().unwrap(), Seen::Dropped);
}

#[test]
fn dropping_the_worker_drops_its_handlers_and_later_detaching_does_not_wait() {
    let worker = Fixture::new(Served::Done, Vec::new());
    drop(worker.worker);
    assert_eq!(worker.seen.try_recv().unwrap(), Seen::Dropped);
    drop(worker.attachment);
}

#[test]
fn a_source_wakes_with_its_token_and_a_hang_up_sets_both_flags() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let worker = Fixture::new(Served::Done, vec![readable(&ours, 42)]);
    (&theirs).write_all(b"x").unwrap();
    let event = |writable| {
        Seen::Event(Event::Source {
            token: 42,
            readable: true,
            writable,
        })
    };
    assert_eq!(worker.next(), event(false));
    drop(theirs);
    while worker.next() != event(true) {}
}

#[test]
fn a_source_that_is_no_longer_listed_no_longer_wakes() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let worker = Fixture::new(Served::SourcesChanged, vec![readable(&ours, 1)]);
    worker.sources.lock().unwrap().clear();
    worker.kick.write(1).unwrap();
    assert_eq!(worker.next(), Seen::Event(Event::Queue(7)));
    worker.settle();
    (&theirs).write_all(b"x").unwrap();
    worker.settle();
    assert!(worker.seen.try_recv().is_err());
}

#[test]
fn a_descriptor_number_that_is_used_again_is_a_new_source() {
    let (first, _first_peer) = UnixStream::pair().unwrap();
    let worker = Fixture::new(Served::SourcesChanged, vec![readable(&first, 1)]);
    worker.settle();
    let (second, second_peer) = UnixStream::pair().unwrap();
    // The copy takes the lowest free number, which is the closed one's unless another test was faster.
    worker.worker.handle().pause().unwrap();
    drop(first);
    let second = second.try_clone().unwrap();
    *worker.sources.lock().unwrap() = vec![readable(&second, 2)];
    worker.worker.handle().resume();
    worker.kick.write(1).unwrap();
    assert_eq!(worker.next(), Seen::Event(Event::Queue(7)));
    (&second_peer).write_all(b"x").unwrap();
    let Seen::Event(Event::Source { token, .. }) = worker.next() else {
        panic!("the handler is still attached");
    };
    assert_eq!(token, 2);
}

#[test]
fn a_source_that_can_not_be_watched_asks_for_a_reset() {
    let file = tempfile::tempfile().unwrap();
    let source = Source {
        fd: file.as_raw_fd(),
        token: 1,
        read: true,
        write: false,
    };
    let worker = Fixture::new(Served::Done, vec![source]);
    worker.settle();
    assert!(worker.interrupt.is_reset_needed());
}
