//! Drives an agent through its whole protocol as the host would, with a root file system that is already in the guest.
//!
//! `drive vsock ROOTFS` listens on vsock port 1024 of this host and waits for a guest; `drive unix:SOCKET ROOTFS` connects to
//! `vmbox-agent --serve SOCKET`. ROOTFS (a path in the guest) needs a busybox at /bin/busybox. Exits 0 when every promise held.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use vmbox_protocol::agent::*;
use vmbox_protocol::agent_ttrpc::{ContainersClient, PodClient, ProcessesClient};
use vmbox_protocol::{AGENT_PORT, FIRST_STREAM_PORT, Hello};

trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}
type Stream = Box<dyn Duplex>;

enum Listener {
    Vsock(VsockListener),
    Unix(tokio::net::UnixListener),
}

impl Listener {
    async fn accept(self) -> Stream {
        match self {
            Self::Vsock(l) => Box::new(l.accept().await.unwrap().0),
            Self::Unix(l) => Box::new(l.accept().await.unwrap().0),
        }
    }
}

struct Driver {
    place: String,
    rootfs: String,
    next_port: u32,
    pod: PodClient,
    containers: ContainersClient,
    processes: ProcessesClient,
}

fn ctx() -> ttrpc::context::Context {
    ttrpc::context::with_timeout(120_000_000_000)
}

fn listen(place: &str, port: u32) -> Listener {
    match place.strip_prefix("unix:") {
        Some(path) => {
            Listener::Unix(tokio::net::UnixListener::bind(format!("{path}_{port}")).unwrap())
        }
        None => Listener::Vsock(VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).unwrap()),
    }
}

async fn connect(place: &str) -> Stream {
    match place.strip_prefix("unix:") {
        Some(path) => Box::new(tokio::net::UnixStream::connect(path).await.unwrap()),
        None => listen(place, AGENT_PORT).accept().await,
    }
}

fn code(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("{other}"),
    }
}

/// What a process said and how it ended.
#[derive(Debug)]
struct Said {
    out: Vec<u8>,
    err: Vec<u8>,
    status: u32,
    oom: bool,
}

impl Said {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).trim().to_owned()
    }
}

impl Driver {
    fn spec(&self, args: &[&str]) -> Value {
        let caps = json!([
            "CAP_CHOWN",
            "CAP_KILL",
            "CAP_SETUID",
            "CAP_SETGID",
            "CAP_NET_BIND_SERVICE"
        ]);
        json!({
            "ociVersion": "1.2.0",
            "root": { "path": self.rootfs },
            "hostname": "box",
            "process": {
                "cwd": "/", "args": args, "env": ["PATH=/bin", "A=b"], "user": { "uid": 0, "gid": 0 },
                "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
                "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 777, "hard": 777 }]
            },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["mode=1777"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"] }
            ],
            "linux": {
                "namespaces": (["pid", "mount", "ipc", "uts", "cgroup"].map(|t| json!({ "type": t }))),
                "maskedPaths": ["/proc/kcore", "/proc/keys"],
                "readonlyPaths": ["/proc/sys"],
                "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                             "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }] }
            }
        })
    }

    fn ports(&mut self) -> ([u32; 3], [Listener; 3]) {
        let ports = [0, 1, 2].map(|i| self.next_port + i);
        self.next_port += 3;
        (ports, ports.map(|port| listen(&self.place, port)))
    }

    fn stdio(&mut self, terminal: bool) -> (Stdio, [Listener; 3]) {
        let ([stdin_port, stdout_port, stderr_port], listeners) = self.ports();
        let stderr_port = if terminal { 0 } else { stderr_port };
        (
            Stdio {
                terminal,
                stdin_port,
                stdout_port,
                stderr_port,
                columns: 91,
                rows: 23,
                ..Default::default()
            },
            listeners,
        )
    }

    async fn collect(
        &self,
        id: &str,
        process: &str,
        [stdin, stdout, stderr]: [Listener; 3],
        input: &[u8],
        terminal: bool,
    ) -> Said {
        let (mut stdin, mut stdout) = (stdin.accept().await, stdout.accept().await);
        let mut stderr = if terminal {
            None
        } else {
            Some(stderr.accept().await)
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let send = async {
            let _ = stdin.write_all(input).await;
            if !terminal {
                let _ = stdin.shutdown().await;
            }
        };
        let errors = async {
            if let Some(stderr) = &mut stderr {
                stderr.read_to_end(&mut err).await.unwrap();
            }
        };
        let exit = self.wait(id, process);
        let ((), _, (), exit) = tokio::join!(send, stdout.read_to_end(&mut out), errors, exit);
        Said {
            out,
            err,
            status: exit.status,
            oom: exit.oom_killed,
        }
    }

    async fn wait(&self, id: &str, process: &str) -> WaitResponse {
        let request = ProcessRequest {
            id: id.into(),
            process: process.into(),
            ..Default::default()
        };
        self.processes.wait(ctx(), &request).await.unwrap()
    }

    async fn create(
        &mut self,
        id: &str,
        spec: &Value,
        terminal: bool,
    ) -> Result<[Listener; 3], (Code, String)> {
        let (stdio, listeners) = self.stdio(terminal);
        let request = CreateRequest {
            id: id.into(),
            spec: spec.to_string().into(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        self.containers
            .create(ctx(), &request)
            .await
            .map_err(code)?;
        Ok(listeners)
    }

    fn named(id: &str) -> ContainerRequest {
        ContainerRequest {
            id: id.into(),
            ..Default::default()
        }
    }

    async fn start(&self, id: &str) -> Result<(), (Code, String)> {
        self.containers
            .start(ctx(), &Self::named(id))
            .await
            .map(drop)
            .map_err(code)
    }

    async fn delete(&self, id: &str, force: bool) -> Result<(), (Code, String)> {
        let request = DeleteRequest {
            id: id.into(),
            force,
            ..Default::default()
        };
        self.containers
            .delete(ctx(), &request)
            .await
            .map(drop)
            .map_err(code)
    }

    async fn run(&mut self, spec: &Value, input: &[u8], terminal: bool) -> Said {
        let listeners = self.create("c", spec, terminal).await.unwrap();
        let started = self.start("c");
        let (started, said) =
            tokio::join!(started, self.collect("c", "", listeners, input, terminal));
        started.unwrap();
        self.delete("c", false).await.unwrap();
        said
    }

    async fn sh(&mut self, script: &str) -> Said {
        let spec = self.spec(&["/bin/busybox", "sh", "-c", script]);
        self.run(&spec, b"", false).await
    }

    async fn exec(
        &mut self,
        id: &str,
        name: &str,
        process: &Value,
        terminal: bool,
    ) -> Result<Said, (Code, String)> {
        let (stdio, listeners) = self.stdio(terminal);
        let request = ExecRequest {
            id: id.into(),
            process: name.into(),
            spec: process.to_string().into(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        self.processes.exec(ctx(), &request).await.map_err(code)?;
        Ok(self.collect(id, name, listeners, b"", terminal).await)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (place, rootfs) = (args[1].clone(), args[2].clone());
    let mut stream = BufReader::new(connect(&place).await);
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    Hello::accept(&line).unwrap();
    stream.write_all(b"\"ok\"\n").await.unwrap();
    let client = Client::new(Socket::new(stream));
    let mut d = Driver {
        pod: PodClient::new(client.clone()),
        containers: ContainersClient::new(client.clone()),
        processes: ProcessesClient::new(client),
        next_port: FIRST_STREAM_PORT,
        place,
        rootfs,
    };
    let begin = Instant::now();
    let step = |name: &str| println!("{:6.2} s  ok  {name}", begin.elapsed().as_secs_f32());
    setup(&d).await;
    step("setup, once");
    basics(&mut d).await;
    step("isolation, identity, limits, seccomp");
    streams(&mut d).await;
    step("streams: 4 MiB both ways, stderr apart, last line, SIGPIPE, /dev/stdout");
    failures(&mut d).await;
    step("126, 127, bad specs; nothing is left");
    lifecycle(&mut d).await;
    step("created, running, exec, paused, killed, deleted");
    terminals(&mut d).await;
    step("terminals");
    memory(&mut d).await;
    step("memory and pids limits");
    users(&mut d).await;
    step("user namespace");
    d.pod.shutdown(ctx(), &Empty::new()).await.unwrap();
    step("shutdown");
}

async fn setup(d: &Driver) {
    let request = SetupRequest {
        hostname: "pod-1".into(),
        // A fixed one: a guest without a clock may be the driver's own machine.
        time_unix_ns: 1_800_000_000_000_000_000,
        entropy: vec![7; 64],
        ..Default::default()
    };
    d.pod.setup(ctx(), &request).await.unwrap();
    assert_eq!(
        code(d.pod.setup(ctx(), &request).await.unwrap_err()).0,
        Code::FAILED_PRECONDITION
    );
    let crash = d.pod.debug_crash(ctx(), &Empty::new()).await;
    assert_eq!(code(crash.unwrap_err()).0, Code::FAILED_PRECONDITION);
}

async fn basics(d: &mut Driver) {
    let said = d
        .sh("echo $$ $(busybox hostname) $A $HOME $(ulimit -n); busybox pwd; exit 7")
        .await;
    assert_eq!(
        (said.text().as_str(), said.status),
        ("1 box b / 777\n/", 7),
        "{said:?}"
    );
    let said = d.sh("busybox mkdir /tmp/x || echo refused").await;
    assert_eq!(said.text(), "refused", "{said:?}");
    let said = d.sh("echo 1 > /proc/sys/vm/swappiness || echo readonly; busybox grep CapEff /proc/self/status; busybox cat /proc/self/cgroup; busybox ps | busybox wc -l").await;
    assert!(
        said.text()
            .starts_with("readonly\nCapEff:\t00000000000004e1\n0::/\n"),
        "{said:?}"
    );
    let said = d.sh("busybox kill -9 $$").await;
    assert_eq!(said.status, 0, "a PID 1 is immune to itself: {said:?}");
    let mut spec = d.spec(&["busybox", "id"]);
    spec["process"]["user"] =
        json!({ "uid": 1000, "gid": 100, "additionalGids": [5, 6], "umask": 0o77 });
    let said = d.run(&spec, b"", false).await;
    assert_eq!(said.text(), "uid=1000 gid=100 groups=5,6", "{said:?}");
}

async fn streams(d: &mut Driver) {
    let bytes: Vec<u8> = (0..4u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let spec = d.spec(&["busybox", "cat"]);
    let said = d.run(&spec, &bytes, false).await;
    assert!(said.out == bytes && said.status == 0);
    let said = d.sh("echo out; echo err >&2").await;
    assert_eq!(
        (said.out.as_slice(), said.err.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    for _ in 0..20 {
        let said = d.sh("busybox seq 1 1000").await;
        assert!(said.text().ends_with("\n1000"), "{}", said.text());
    }
    // Ends at once only if SIGPIPE is at its default.
    let said = d.sh("(busybox yes; echo $? >&2) | busybox head -n 1").await;
    assert_eq!(
        (
            said.text().as_str(),
            String::from_utf8_lossy(&said.err).trim()
        ),
        ("y", "141"),
        "{said:?}"
    );
    let mut spec = d.spec(&["busybox", "sh", "-c", "echo again > /dev/stdout"]);
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    assert_eq!(d.run(&spec, b"", false).await.text(), "again");
}

async fn failures(d: &mut Driver) {
    let missing = d.spec(&["nothing-like-it"]);
    let (kind, message) = d.create("c", &missing, false).await.err().unwrap();
    assert_eq!(
        (kind, message.as_str()),
        (
            Code::NOT_FOUND,
            r#"exec: "nothing-like-it": executable file not found in $PATH"#
        )
    );
    let directory = d.spec(&["/tmp"]);
    assert_eq!(
        d.create("c", &directory, false).await.err().unwrap().0,
        Code::PERMISSION_DENIED
    );
    let mut rootless = d.spec(&["sh"]);
    rootless["root"]["path"] = json!("/no/such/root");
    assert_eq!(
        d.create("c", &rootless, false).await.err().unwrap().0,
        Code::INVALID_ARGUMENT
    );
    let mut bad_mount = d.spec(&["busybox", "true"]);
    bad_mount["mounts"].as_array_mut().unwrap().push(json!({ "destination": "/data", "type": "bind", "source": "/no/such", "options": ["bind"] }));
    let (kind, message) = d.create("c", &bad_mount, false).await.err().unwrap();
    println!("           message of a bad bind mount: {message}");
    assert!(
        kind == Code::INTERNAL && message.contains("/no/such"),
        "{message}"
    );
    let mut cwd = d.spec(&["busybox", "true"]);
    cwd["process"]["cwd"] = json!("/no/such/cwd");
    println!(
        "           message of a bad cwd: {}",
        d.create("c", &cwd, false).await.err().unwrap().1
    );
    // The name is free again, so nothing was left.
    assert_eq!(d.sh("echo fine").await.text(), "fine");
}

async fn lifecycle(d: &mut Driver) {
    let spec = d.spec(&[
        "busybox",
        "sh",
        "-c",
        "busybox sleep 1000 & exec busybox sleep 1000",
    ]);
    let listeners = d.create("one", &spec, false).await.unwrap();
    assert_eq!(
        d.create("one", &spec, false).await.err().unwrap().0,
        Code::ALREADY_EXISTS
    );
    let state = d
        .containers
        .state(ctx(), &Driver::named("one"))
        .await
        .unwrap();
    assert_eq!(state.status, "created");
    d.start("one").await.unwrap();
    assert_eq!(
        d.start("one").await.unwrap_err().0,
        Code::FAILED_PRECONDITION
    );
    let process = json!({ "cwd": "/", "args": ["busybox", "sh", "-c", "busybox mkdir /tmp/x || echo refused; busybox ps | busybox grep -c 'sleep 1000$'; busybox cat /proc/self/cgroup; exit 4"],
                          "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
    let said = d.exec("one", "e1", &process, false).await.unwrap();
    assert!(
        said.text().starts_with("refused\n2\n0::/") && said.status == 4,
        "{said:?}"
    );
    let mut missing = process.clone();
    missing["args"] = json!(["nothing-like-it"]);
    let (kind, message) = d.exec("one", "e2", &missing, false).await.err().unwrap();
    assert_eq!(
        (kind, message.as_str()),
        (
            Code::NOT_FOUND,
            r#"exec: "nothing-like-it": executable file not found in $PATH"#
        )
    );
    let mut daemon = process.clone();
    daemon["args"] = json!(["busybox", "sh", "-c", "busybox sleep 1000 & echo left"]);
    assert_eq!(
        d.exec("one", "e3", &daemon, false).await.unwrap().text(),
        "left"
    );
    let pids = d
        .containers
        .processes(ctx(), &Driver::named("one"))
        .await
        .unwrap()
        .pids;
    assert_eq!(pids.len(), 3, "{pids:?}");
    d.containers
        .pause(ctx(), &Driver::named("one"))
        .await
        .unwrap();
    assert_eq!(
        d.exec("one", "e4", &process, false).await.err().unwrap().0,
        Code::FAILED_PRECONDITION
    );
    d.containers
        .resume(ctx(), &Driver::named("one"))
        .await
        .unwrap();
    let stats = d
        .containers
        .stats(ctx(), &Driver::named("one"))
        .await
        .unwrap();
    assert!(
        stats.pids == 3 && stats.memory_bytes > 0 && stats.cpu_usage_us > 0,
        "{stats:?}"
    );
    assert_eq!(
        d.delete("one", false).await.unwrap_err().0,
        Code::FAILED_PRECONDITION
    );
    let kill = KillRequest {
        id: "one".into(),
        signal: 9,
        ..Default::default()
    };
    d.containers.kill(ctx(), &kill).await.unwrap();
    let said = d.collect("one", "", listeners, b"", false).await;
    assert_eq!(said.status, 137);
    let state = d
        .containers
        .state(ctx(), &Driver::named("one"))
        .await
        .unwrap();
    assert_eq!(state.status, "stopped");
    d.delete("one", false).await.unwrap();
    d.create("two", &spec, false).await.unwrap();
    d.delete("two", true).await.unwrap();
}

async fn terminals(d: &mut Driver) {
    let mut spec = d.spec(&["busybox", "sh", "-c", "busybox stty size; busybox tty; read line; echo got $line; echo e >&2; echo c > /dev/console"]);
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let said = d.run(&spec, b"hello\n", true).await;
    for part in ["23 91\r\n", "/dev/pts/0\r\n", "got hello\r\n", "e\r\n"] {
        assert!(
            String::from_utf8_lossy(&said.out).contains(part),
            "{said:?}"
        );
    }
    let spec = d.spec(&["busybox", "sleep", "1000"]);
    d.create("t", &spec, false).await.unwrap();
    d.start("t").await.unwrap();
    let process = json!({ "cwd": "/", "args": ["busybox", "sh", "-c", "busybox stty size; echo x > /dev/tty"], "env": ["PATH=/bin"], "user": { "uid": 1000, "gid": 0 } });
    let said = d.exec("t", "e", &process, true).await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&said.out),
        "23 91\r\nx\r\n",
        "{said:?}"
    );
    d.delete("t", true).await.unwrap();
}

async fn memory(d: &mut Driver) {
    let mut spec = d.spec(&[
        "busybox",
        "sh",
        "-c",
        "busybox dd if=/dev/zero of=/dev/null bs=64M count=1; echo dd $?; busybox tail /dev/zero",
    ]);
    spec["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20 } });
    let said = d.run(&spec, b"", false).await;
    assert!(said.oom && said.status == 137, "{said:?}");
    let mut spec = d.spec(&["busybox", "tail", "/dev/zero"]);
    spec["linux"]["resources"] = json!({});
    let said = d.run(&spec, b"", false).await;
    assert!(said.oom && said.status == 137, "under the roof: {said:?}");
    let mut spec = d.spec(&[
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8 9; do busybox sleep 1 & done; busybox true; echo end",
    ]);
    spec["linux"]["resources"] = json!({ "pids": { "limit": 5 } });
    let said = d.run(&spec, b"", false).await;
    assert!(
        String::from_utf8_lossy(&said.err).contains("fork"),
        "{said:?}"
    );
}

async fn users(d: &mut Driver) {
    let mut spec = d.spec(&["busybox", "sleep", "1000"]);
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|m| m["type"] != "sysfs" && m["type"] != "cgroup");
    d.create("u", &spec, false).await.unwrap();
    d.start("u").await.unwrap();
    let process = json!({ "cwd": "/", "args": ["busybox", "sh", "-c", "busybox id -u; busybox cat /proc/self/uid_map; echo x > /dev/stdout"], "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
    let said = d.exec("u", "e", &process, false).await.unwrap();
    assert_eq!(
        said.text().split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "100000", "65536", "x"],
        "{said:?}"
    );
    d.delete("u", true).await.unwrap();
}
