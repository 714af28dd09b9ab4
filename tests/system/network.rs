//! The network of a pod: what an engine has put into a network namespace works in the guest, and nothing of ours stays.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bundle::Bundle;
use crate::kit::{Corner, Done, PATIENCE, Running, eventually, image, monitors};

/// How long the guest may take to follow a change of its namespace.
const FOLLOWS: Duration = Duration::from_secs(60);

#[track_caller]
pub fn ip(words: &str) -> String {
    let out = Command::new("ip").args(words.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "ip {words}: {error}");
    String::from_utf8(out.stdout).unwrap()
}

/// A network namespace as a CNI plug-in makes it: a veth to the host, addresses and default routes of both families.
pub struct Netns {
    pub name: &'static str,
    number: u8,
}

impl Netns {
    pub fn new(name: &'static str, number: u8) -> Self {
        let netns = Self { name, number };
        netns.remove();
        ip(&format!("netns add {name}"));
        netns.plug("eth0", 0);
        netns.inside(&format!("route add default via {}", netns.host_v4()));
        netns.inside(&format!("-6 route add default via {}", netns.host_v6()));
        netns
    }

    /// Another interface; the host's end is `vt<number>x<which>`.
    pub fn plug(&self, interface: &str, which: u8) {
        let (n, name) = (self.number, self.name);
        let host = format!("vt{n}x{which}");
        ip(&format!(
            "link add {host} type veth peer name {interface} netns {name}"
        ));
        ip(&format!("link set {host} up mtu 1400"));
        ip(&format!("addr add 10.77.{n}{which}.1/24 dev {host}"));
        ip(&format!("addr add fd77:{n}{which}::1/64 dev {host} nodad"));
        self.inside(&format!("link set {interface} mtu 1400"));
        self.inside(&format!("addr add 10.77.{n}{which}.2/24 dev {interface}"));
        self.inside(&format!(
            "addr add fd77:{n}{which}::2/64 dev {interface} nodad"
        ));
        self.inside(&format!("link set {interface} up"));
    }

    #[track_caller]
    pub fn inside(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.name))
    }

    fn host_v4(&self) -> IpAddr {
        format!("10.77.{}0.1", self.number).parse().unwrap()
    }

    fn host_v6(&self) -> IpAddr {
        format!("fd77:{}0::1", self.number).parse().unwrap()
    }

    pub fn guest_v4(&self) -> IpAddr {
        format!("10.77.{}0.2", self.number).parse().unwrap()
    }

    fn guest_v6(&self) -> IpAddr {
        format!("fd77:{}0::2", self.number).parse().unwrap()
    }

    /// What a VM could have left here: interfaces and their queueing disciplines.
    pub fn inventory(&self) -> String {
        let links: Value = serde_json::from_str(&self.inside("-j link")).unwrap();
        let links: Vec<_> = links
            .as_array()
            .unwrap()
            .iter()
            .map(|l| &l["ifname"])
            .collect();
        let tc = Command::new("tc")
            .args(["-n", self.name, "qdisc", "show"])
            .output()
            .unwrap();
        format!("{links:?} {}", String::from_utf8_lossy(&tc.stdout))
    }

    #[track_caller]
    pub fn assert_as(&self, before: &str) {
        let same = eventually(Duration::from_secs(5), || self.inventory() == before);
        assert!(same, "before: {before}\nafter: {}", self.inventory());
    }

    fn remove(&self) {
        // Fine if it isn't there; its veths go with it.
        let _ = Command::new("ip")
            .args(["netns", "del", self.name])
            .output();
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A container in `netns` that runs a line of shell for each line it is told, and then says END.
fn shell(corner: &Corner, netns: &Netns) -> Running {
    let script = "echo ready; while read -r line; do eval \"$line\"; echo END; done";
    let image = image();
    let args = [
        "run",
        "--rm",
        "-i",
        "--name",
        corner.name,
        "--network",
        netns.name,
        &image,
        "sh",
        "-c",
        script,
    ];
    Running::start(corner.vmbox(args))
}

fn tell(shell: &mut Running, line: &str) -> String {
    shell.say(line);
    let mut said = String::new();
    loop {
        match shell.hear() {
            end if end == "END" => return said,
            line => said = said + &line + "\n",
        }
    }
}

fn links(shell: &mut Running) -> Vec<Value> {
    serde_json::from_str(&tell(shell, "ip -j addr")).unwrap()
}

fn names(links: &[Value]) -> Vec<&str> {
    let names = links.iter().map(|link| link["ifname"].as_str().unwrap());
    names.collect()
}

fn addresses(link: &Value) -> Vec<String> {
    let all = link["addr_info"].as_array().unwrap().iter();
    let mut all: Vec<_> = all
        .map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
        .collect();
    all.sort();
    all
}

#[test]
fn the_guest_has_what_the_engine_made_and_no_more() {
    let (corner, netns) = (Corner::new("net-same"), Netns::new("vmbox-same", 1));
    netns.inside("route add 192.0.2.0/24 via 10.77.10.9 metric 7");
    netns.inside("route add 198.51.100.0/24 via 203.0.113.1 dev eth0 onlink");
    netns.inside("neigh add 10.77.10.9 lladdr 02:00:00:00:00:09 dev eth0");
    // Link-local addresses come when the other end is there.
    let on_host =
        || serde_json::from_str::<Vec<Value>>(&netns.inside("-j addr show eth0")).unwrap();
    assert!(eventually(FOLLOWS, || addresses(&on_host()[0]).len() == 3));
    let mut shell = shell(&corner, &netns);
    let seen = links(&mut shell);
    assert_eq!(names(&seen), ["lo", "eth0"]);
    let host = on_host();
    for field in ["address", "mtu"] {
        assert_eq!(seen[1][field], host[0][field], "{field}");
    }
    assert_eq!(addresses(&seen[1]), addresses(&host[0]));
    let routes = tell(&mut shell, "ip route; ip -6 route");
    for route in [
        "default via 10.77.10.1 dev eth0",
        "192.0.2.0/24 via 10.77.10.9 dev eth0",
        "metric 7",
        "198.51.100.0/24 via 203.0.113.1 dev eth0",
        "onlink",
        "default via fd77:10::1 dev eth0",
    ] {
        assert!(routes.contains(route), "no {route:?} in:\n{routes}");
    }
    let neighbours = tell(&mut shell, "ip neigh");
    let wanted = "10.77.10.9 dev eth0 lladdr 02:00:00:00:00:09 PERMANENT";
    assert!(neighbours.contains(wanted), "{neighbours}");
    shell.finish().exits(0);
}

/// One end of a conversation: dials, or listens and says so; reads all that the other says, answers with its SHA-256 and with
/// bytes of its own, and prints the SHA-256 of those.
const PEER: &str = r#"
import hashlib, os, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
if host == "listen":
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    print("listening", flush=True)
    peer, _ = server.accept()
else:
    peer = socket.create_connection((host, port), timeout=300)
    peer.settimeout(None)
heard = hashlib.sha256()
while block := peer.recv(1 << 16):
    heard.update(block)
said = os.urandom(1 << 16) * (count >> 16)
peer.sendall(heard.hexdigest().encode() + said)
print(hashlib.sha256(said).hexdigest(), flush=True)
"#;

/// Starts [`PEER`] in a container.
fn peer(corner: &Corner, netns: &Netns, host: &str, port: u16, bytes: usize) -> Running {
    let (image, port, bytes) = (image(), port.to_string(), bytes.to_string());
    let options = ["run", "--rm", "--network", netns.name, &image];
    let command = ["python3", "-c", PEER, host, &port, &bytes];
    Running::start(corner.vmbox([&options[..], &command[..]].concat()))
}

fn digest(bytes: &[u8]) -> String {
    let bytes = Sha256::digest(bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The host's part; asserts that both sides got what the other has sent.
#[track_caller]
fn converse(mut stream: TcpStream, mut peer: Running, bytes: usize) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // A block that repeats, each time with its number: every byte by itself takes minutes under emulation.
    let block: Vec<u8> = (0..1usize << 16).map(|i| (i * i >> 7) as u8).collect();
    let mut ours = block.repeat(bytes >> 16);
    for (number, block) in ours.chunks_mut(1 << 16).enumerate() {
        block[..8].copy_from_slice(&number.to_le_bytes());
    }
    stream.write_all(&ours).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut theirs = Vec::new();
    stream.read_to_end(&mut theirs).unwrap();
    if theirs.len() < 64 {
        panic!("the guest has sent no digest: {:?}", peer.finish());
    }
    let (heard, said) = theirs.split_at(64);
    assert_eq!(heard, digest(&ours).as_bytes(), "the guest got other bytes");
    assert_eq!(peer.hear(), digest(said), "the guest has sent other bytes");
    assert_eq!(said.len(), bytes);
    peer.finish().exits(0);
}

#[track_caller]
fn guest_dials(name: &'static str, netns: &Netns, host: IpAddr, bytes: usize) {
    let corner = Corner::new(name);
    let listener = TcpListener::bind(SocketAddr::new(host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = peer(&corner, netns, &host.to_string(), port, bytes);
    converse(listener.accept().unwrap().0, peer, bytes);
}

#[track_caller]
fn host_dials(name: &'static str, netns: &Netns, guest: IpAddr, bytes: usize) {
    let corner = Corner::new(name);
    let mut peer = peer(&corner, netns, "listen", 4000, bytes);
    assert_eq!(peer.hear(), "listening");
    let stream = TcpStream::connect_timeout(&SocketAddr::new(guest, 4000), FOLLOWS).unwrap();
    converse(stream, peer, bytes);
}

#[test]
fn a_container_reaches_out_and_is_reached_over_both_families() {
    let netns = Netns::new("vmbox-reach", 2);
    let before = netns.inventory();
    guest_dials("net-reach-1", &netns, netns.host_v4(), 1 << 16);
    guest_dials("net-reach-2", &netns, netns.host_v6(), 1 << 16);
    host_dials("net-reach-3", &netns, netns.guest_v4(), 1 << 16);
    host_dials("net-reach-4", &netns, netns.guest_v6(), 1 << 16);
    netns.assert_as(&before);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn large_transfers_arrive_intact_in_both_directions() {
    let netns = Netns::new("vmbox-large", 3);
    guest_dials("net-large-1", &netns, netns.host_v4(), 64 << 20);
    host_dials("net-large-2", &netns, netns.guest_v6(), 32 << 20);
}

#[test]
fn the_guest_answers_pings_as_long_as_its_interfaces_take() {
    let (corner, netns) = (Corner::new("net-ping"), Netns::new("vmbox-ping", 4));
    let shell = shell(&corner, &netns);
    for guest in [netns.guest_v4(), netns.guest_v6()] {
        // Fragments, whole packets of the MTU, and small ones.
        for size in ["4000", "1352", "16"] {
            let mut ping = Command::new("ping");
            ping.args(["-c", "2", "-w", "60", "-s", size]);
            let out = ping.arg(guest.to_string()).output().unwrap();
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success(), "{guest}, {size} bytes: {said}");
        }
    }
    shell.finish().exits(0);
}

/// Sends every datagram back to where it came from, until its input ends.
const ECHO: &str = r#"
import select, socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 4001))
print("ready", flush=True)
while server in select.select([server, sys.stdin], [], [])[0]:
    data, peer = server.recvfrom(65536)
    server.sendto(data, peer)
"#;

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn datagrams_pass_whatever_their_length() {
    let (corner, netns) = (Corner::new("net-udp"), Netns::new("vmbox-udp", 5));
    let socket = UdpSocket::bind(SocketAddr::new(netns.host_v4(), 0)).unwrap();
    socket.set_read_timeout(Some(FOLLOWS)).unwrap();
    let image = image();
    let options = ["run", "--rm", "-i", "--network", netns.name, &image];
    let echo = Running::start(corner.vmbox([&options[..], &["python3", "-c", ECHO]].concat()));
    for length in [1, 1372, 1373, 9000, 60000] {
        let sent: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let guest = SocketAddr::new(netns.guest_v4(), 4001);
        socket.send_to(&sent, guest).unwrap();
        let mut heard = vec![0; 65536];
        let count = socket.recv(&mut heard).unwrap();
        assert_eq!(digest(&heard[..count]), digest(&sent), "{length} bytes");
    }
    echo.finish().exits(0);
}

#[test]
fn interfaces_come_change_and_go_while_the_container_runs() {
    let (corner, netns) = (Corner::new("net-late"), Netns::new("vmbox-late", 6));
    let before = netns.inventory();
    let mut shell = shell(&corner, &netns);
    let mut follows = |what: &str, holds: &dyn Fn(&[Value]) -> bool| {
        let mut seen = Vec::new();
        let did = eventually(FOLLOWS, || {
            seen = links(&mut shell);
            holds(&seen)
        });
        assert!(did, "{what}: {seen:#?}");
    };
    netns.plug("eth1", 1);
    follows("eth1 appears with its addresses", &|links| {
        names(links) == ["lo", "eth0", "eth1"]
            && addresses(&links[2]).contains(&"10.77.61.2/24".into())
            && addresses(&links[2]).contains(&"fd77:61::2/64".into())
            && links[2]["mtu"] == 1400
    });
    netns.inside("addr add 10.99.0.2/24 dev eth1");
    netns.inside("addr del 10.77.61.2/24 dev eth1");
    netns.inside("link set eth1 mtu 1300");
    follows("eth1 changes", &|links| {
        addresses(&links[2]).contains(&"10.99.0.2/24".into())
            && !addresses(&links[2]).contains(&"10.77.61.2/24".into())
            && links[2]["mtu"] == 1300
    });
    netns.inside("link del eth1");
    follows("eth1 goes", &|links| names(links) == ["lo", "eth0"]);
    netns.plug("net9", 2);
    follows("another comes", &|links| {
        names(links) == ["lo", "eth0", "net9"]
    });
    netns.inside("link del net9");
    follows("and goes", &|links| names(links) == ["lo", "eth0"]);
    shell.finish().exits(0);
    netns.assert_as(&before);
}

#[test]
fn a_pod_in_an_empty_namespace_gets_its_network_when_that_comes() {
    let (corner, netns) = (Corner::new("net-empty"), Netns::new("vmbox-empty", 7));
    netns.inside("link del eth0");
    let mut shell = shell(&corner, &netns);
    assert_eq!(names(&links(&mut shell)), ["lo"]);
    netns.plug("eth0", 1);
    let came = eventually(FOLLOWS, || names(&links(&mut shell)) == ["lo", "eth0"]);
    assert!(came);
    shell.finish().exits(0);
}

#[test]
fn a_killed_vmbox_leaves_nothing_in_the_namespace() {
    let (corner, netns) = (Corner::new("net-kill"), Netns::new("vmbox-kill", 8));
    let (before, files) = (netns.inventory(), corner.inventory());
    for victim in ["vmbox", "monitor"] {
        let mut shell = shell(&corner, &netns);
        assert_ne!(netns.inventory(), before, "there is nothing to be left");
        let pid = match victim {
            "vmbox" => shell.pid(),
            _ => monitors(&corner)[0],
        };
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        shell.child.wait().unwrap();
        netns.assert_as(&before);
        corner.assert_nothing_left(&files);
    }
}

#[test]
fn gc_takes_a_network_back_that_nobody_else_could() {
    let (corner, netns) = (Corner::new("net-gc"), Netns::new("vmbox-gc", 9));
    let before = netns.inventory();
    let mut shell = shell(&corner, &netns);
    let warden = Command::new("pgrep")
        .args(["-f", &format!("warden {}", corner.run_dir().display())])
        .output()
        .unwrap();
    let warden: i32 = String::from_utf8(warden.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    kill(Pid::from_raw(warden), Signal::SIGKILL).unwrap();
    kill(Pid::from_raw(shell.pid()), Signal::SIGKILL).unwrap();
    shell.child.wait().unwrap();
    let mut gc = corner.vmbox(["gc"]);
    gc.env("VMBOX_STORE", corner.path("store"));
    Done::of(gc.output().unwrap()).exits(0);
    netns.assert_as(&before);
}

#[test]
fn two_pods_can_not_have_the_same_interfaces() {
    let (corner, netns) = (Corner::new("net-twice"), Netns::new("vmbox-twice", 10));
    let first = shell(&corner, &netns);
    corner
        .sh(&["--network", netns.name], "echo ran")
        .refuses(125, &["eth0", "another VM"]);
    first.finish().exits(0);
    corner.sh(&["--network", netns.name], "true").exits(0);
}

#[test]
fn the_hosts_network_is_refused_before_anything_is_made() {
    let corner = Corner::new("net-host");
    let before = corner.inventory();
    for host in ["host", "/proc/1/ns/net"] {
        corner
            .sh(&["--network", host], "echo ran")
            .refuses(125, &["host network"]);
    }
    corner
        .sh(&["--network", "vmbox-no-such"], "echo ran")
        .refuses(125, &["/run/netns/vmbox-no-such"]);
    let mut bundle = Bundle::new("net-host-bundle");
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    bundle.refuses(&["host network"]);
    corner.assert_nothing_left(&before);
}

#[test]
fn a_bundle_names_its_network_namespace() {
    let netns = Netns::new("vmbox-bundle", 11);
    let mut bundle = Bundle::new("net-bundle");
    let path = json!(format!("/run/netns/{}", netns.name));
    for namespace in bundle.spec["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "network" {
            namespace["path"] = path.clone();
        }
    }
    let seen = bundle.lines("ip -o -4 addr show eth0");
    assert!(seen[0].contains("10.77.110.2/24"), "{seen:?}");
}
