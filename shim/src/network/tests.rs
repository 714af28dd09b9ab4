//! Interfaces of a real network namespace, carried to a monitor that a thread plays. Skipped, with the reason, where namespaces
//! or taps can't be made.

use std::{
    fs::File,
    io::{BufRead, BufReader, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::unix::net::{UnixListener, UnixStream},
    process::Command,
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcMessage},
};
use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    thread::UnshareFlags,
};

use super::*;

/// A namespace that a thread keeps, and does things in.
struct Lab {
    path: PathBuf,
    work: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
}

impl Lab {
    /// With a veth: `wire` and `eth0`, up, with the address 10.9.0.1 on `wire`. None if that can't be had here.
    fn new() -> Option<Self> {
        let (work, orders) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: NEWNET changes no descriptor and no memory.
            let entered = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
            let id = rustix::thread::gettid().as_raw_nonzero();
            tell.send(entered.map(|()| id)).unwrap();
            orders.into_iter().for_each(|order| order());
        });
        let Ok(Ok(id)) = told.recv() else {
            eprintln!("skipped: no network namespace can be made here");
            return None;
        };
        let lab = Self {
            path: format!("/proc/{}/task/{id}/ns/net", std::process::id()).into(),
            work: Some(work),
            thread: Some(thread),
        };
        let made = lab.ip("link add wire type veth peer name eth0")
            && lab.ip("link set eth0 address 02:00:00:00:00:55 mtu 1400 up")
            && lab.ip("link set wire mtu 1400 up")
            && lab.ip("addr add 10.9.0.1/24 broadcast 10.9.0.255 dev wire")
            && File::options().write(true).open("/dev/net/tun").is_ok();
        if !made {
            eprintln!("skipped: no veth or no tap can be made here");
        }
        made.then_some(lab)
    }

    fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let work = self.work.as_ref().unwrap();
        work.send(Box::new(move || tell.send(f()).unwrap()))
            .unwrap();
        told.recv().unwrap()
    }

    fn ip(&self, words: &str) -> bool {
        let words: Vec<String> = words.split(' ').map(Into::into).collect();
        self.run(move || Command::new("ip").args(words).status())
            .is_ok_and(|status| status.success())
    }

    /// Names of links and kinds of qdiscs.
    fn inventory(&self) -> Vec<String> {
        self.run(|| {
            let mut socket = Rtnetlink::open().unwrap();
            let links = Lists::read(&mut socket).unwrap().links;
            let names = links.into_iter().flat_map(|link| link.attributes);
            let mut all: Vec<String> = names
                .filter_map(|attribute| match attribute {
                    netlink_packet_route::link::LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                })
                .collect();
            let qdiscs = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
            for answer in socket.list(qdiscs).unwrap() {
                if let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = answer
                    && let Some(TcAttribute::Kind(kind)) = qdisc.attributes.first()
                {
                    all.push(format!("{kind} on {}", qdisc.header.index));
                }
            }
            all
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.work.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// Answers every request with Ok; hands on the request and the descriptor that came with it.
fn monitor(dir: &PodDir) -> Receiver<(Control, Option<File>)> {
    let listener = UnixListener::bind(dir.control()).unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (line, descriptor) = receive(&stream.unwrap());
            if tell
                .send((serde_json::from_str(&line).unwrap(), descriptor))
                .is_err()
            {
                return;
            }
        }
    });
    told
}

fn receive(stream: &UnixStream) -> (String, Option<File>) {
    let (mut bytes, mut space) = ([0; 512], [MaybeUninit::uninit(); 64]);
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(stream, &mut data, &mut ancillary, RecvFlags::empty()).unwrap();
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next().map(File::from),
        _ => None,
    });
    let mut line = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
    if !line.ends_with('\n') {
        BufReader::new(stream).read_line(&mut line).unwrap();
    }
    (&*stream).write_all(b"{\"reply\":\"ok\"}\n").unwrap();
    (line, descriptor)
}

struct Pod {
    _run: tempfile::TempDir,
    dir: PodDir,
    journal: Journal,
}

fn pod() -> Pod {
    let run = tempfile::tempdir().unwrap();
    let dir = PodDir::of(run.path(), &"web".parse().unwrap());
    let journal = Journal::create(&dir).unwrap();
    Pod {
        _run: run,
        dir,
        journal,
    }
}

/// A frame of the guest: a broadcast of an unassigned type, with a `virtio_net_hdr` before it.
fn frame() -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 0x55], &[0x88, 0xb5]].concat();
    [vec![0; 10], ethernet, vec![7; 100]].concat()
}

/// Frames that `wire` has received, by /proc/net/dev.
fn received_by_wire(lab: &Lab) -> u64 {
    lab.run(|| {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("wire:"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    })
}

#[test]
fn frames_pass_between_the_interface_and_the_tap_both_ways() {
    let Some(lab) = Lab::new() else { return };
    let before = lab.inventory();
    let pod = pod();
    let told = monitor(&pod.dir);
    let mut network = PodNetwork::open(&lab.path).unwrap();
    let found = network.carry(&pod.dir, &pod.journal).unwrap();
    let wanted = network.as_wanted(found);
    let eth0 = wanted.iter().find(|i| i.name == "eth0").unwrap();
    assert_eq!(
        (&eth0.mac[..], eth0.mtu),
        (&[2, 0, 0, 0, 0, 0x55][..], 1400)
    );
    // Both ends of the veth are here, and both are carried: `wire` has the lower or the higher number.
    let taps: Vec<_> = wanted
        .iter()
        .map(|interface| (interface.name.clone(), told.recv().unwrap()))
        .collect();
    let (_, (_, tap)) = taps.into_iter().find(|(name, _)| name == "eth0").unwrap();
    let mut tap = tap.unwrap();
    // The end of the wire must not be redirected itself.
    let wire = lab.run(|| {
        tap::index_of(&mut Rtnetlink::open().unwrap(), "wire")
            .unwrap()
            .unwrap()
    });
    lab.run(move || mirror::end(&mut Rtnetlink::open().unwrap(), wire))
        .unwrap();

    let already = received_by_wire(&lab);
    tap.write_all(&frame()).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while received_by_wire(&lab) == already {
        assert!(Instant::now() < end, "nothing came out of the interface");
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.run(|| {
        let socket = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"to the guest", "10.9.0.255:9").unwrap();
    });
    let heard = (0..100).any(|_| {
        let mut bytes = [0; 2048];
        let length = tap.read(&mut bytes).unwrap();
        bytes[..length].ends_with(b"to the guest")
    });
    assert!(heard);

    drop(tap);
    drop(network);
    for record in crate::journal::read(&pod.dir).unwrap().iter().rev() {
        let Record::Nic(nic) = record else { continue };
        undo(nic).unwrap();
        undo(nic).unwrap();
    }
    assert_eq!(lab.inventory(), before);
}

#[test]
fn what_goes_frees_its_slot_and_what_comes_takes_it() {
    let Some(lab) = Lab::new() else { return };
    let pod = pod();
    let told = monitor(&pod.dir);
    let mut network = PodNetwork::open(&lab.path).unwrap();
    let watch = network.watch().unwrap();
    network.carry(&pod.dir, &pod.journal).unwrap();
    let attached: Vec<_> = told.try_iter().map(|(request, _tap)| request).collect();
    let attach = |slot| Control::AttachNic { slot };
    assert_eq!(attached, [attach(0), attach(1)]);
    assert!(lab.ip("link del eth0"));
    watch.drain();
    network.carry(&pod.dir, &pod.journal).unwrap();
    assert!(network.slots.carried().is_empty());
    assert!(lab.ip("link add late type veth peer name later") && lab.ip("link set late up"));
    network.carry(&pod.dir, &pod.journal).unwrap();
    let detach = |slot| Control::DetachNic { slot };
    let requests: Vec<_> = told.try_iter().map(|(request, _tap)| request).collect();
    assert_eq!(requests, [detach(0), detach(1), attach(0)]);
    // Another process that goes by the journal knows the same.
    let mut other = PodNetwork::open(&lab.path).unwrap();
    other.take_up(&crate::journal::read(&pod.dir).unwrap());
    assert_eq!(other.slots, network.slots);
}
