//! What has to be said to systemd: one call at a time over D-Bus, and then waiting for the end of the job that it began
//! (D-Bus specification, "Message Protocol"; org.freedesktop.systemd1(5)). zbus knows how values are written.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde::Serialize;
use zbus::{ObjectPath, Type};

use super::message::{self, HEAD, Heard, JOB_REMOVED, JobEnd, Target};

/// systemd's own socket, for root: it is there without a bus daemon, and systemctl(1) too takes it first.
const PRIVATE: &str = "/run/systemd/private";
/// The bus, for those who see no more of the host's systemd: engines in a container, say.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// How long all that is said in one conversation may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a line while we introduce ourselves.
const LONGEST_LINE: u64 = 512;

const MANAGER: Target = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
);
const DAEMON: Target = (
    "org.freedesktop.DBus",
    "/org/freedesktop/DBus",
    "org.freedesktop.DBus",
);

/// Why systemd did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// It can't be reached.
    #[error(
        "--systemd-cgroup needs systemd, and without it engines need the cgroupfs driver: {}",
        PRIVATE
    )]
    NotThere(#[source] io::Error),
    /// It does not know us.
    #[error("systemd's socket does not let us in: {0}")]
    NotLetIn(String),
    /// It said no more.
    #[error("talk to systemd")]
    Silent(#[from] io::Error),
    /// It said what we don't understand.
    #[error("understand systemd")]
    Unclear(#[from] zbus::Error),
    /// It refused a call.
    #[error("{text}")]
    Refused {
        /// The name of its error.
        name: String,
        /// What it says.
        text: String,
    },
    /// What it tried came to nothing.
    #[error("the job's result is `{0}`")]
    Failed(String),
}

/// A conversation.
pub struct Bus {
    stream: BufReader<UnixStream>,
    deadline: Instant,
    /// Of our last call.
    serial: u32,
    /// Jobs that have ended so far.
    ended: Vec<JobEnd>,
}

impl Bus {
    /// Reaches systemd.
    ///
    /// # Errors
    /// It does not run, or we are not root.
    pub fn open() -> Result<Self, SystemdError> {
        let private = match UnixStream::connect(PRIVATE) {
            Ok(stream) => return Self::greet(stream),
            Err(error) => error,
        };
        let stream =
            UnixStream::connect(SYSTEM_BUS).map_err(|_| SystemdError::NotThere(private))?;
        let mut bus = Self::greet(stream)?;
        bus.call(DAEMON, "Hello", &())?;
        let (name, path, interface) = MANAGER;
        let rule = format!(
            "type='signal',sender='{name}',path='{path}',interface='{interface}',member='{JOB_REMOVED}'"
        );
        bus.call(DAEMON, "AddMatch", &rule)?;
        bus.call(MANAGER, "Subscribe", &())?;
        Ok(bus)
    }

    /// Says who we are (D-Bus specification, "Authentication Protocol"), in one breath, as systemd's own clients do: a call
    /// that systemd reads together with a late `BEGIN` is left lying there until something else comes.
    fn greet(stream: UnixStream) -> Result<Self, SystemdError> {
        let mut bus = Self {
            stream: BufReader::new(stream),
            deadline: Instant::now() + PATIENCE,
            serial: 0,
            ended: Vec::new(),
        };
        let uid = rustix::process::geteuid().as_raw().to_string();
        let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        bus.say(format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").as_bytes())?;
        bus.hurry()?;
        let mut line = String::new();
        (&mut bus.stream).take(LONGEST_LINE).read_line(&mut line)?;
        match line.split_whitespace().next() {
            Some("OK") => Ok(bus),
            _ => Err(SystemdError::NotLetIn(line.trim().to_owned())),
        }
    }

    /// Has systemd's manager begin a job, and waits for its end.
    ///
    /// # Errors
    /// It refuses, or the job fails.
    pub fn job(
        &mut self,
        member: &str,
        body: &(impl Serialize + Type),
    ) -> Result<(), SystemdError> {
        let reply = self.call(MANAGER, member, body)?;
        let reply = message::body(reply);
        let job = reply.deserialize::<ObjectPath<'_>>()?.0;
        loop {
            // Its end may have been told before the reply.
            if let Some(end) = self.ended.iter().find(|end| end.job == job.as_str()) {
                return match end.result.as_str() {
                    "done" => Ok(()),
                    result => Err(SystemdError::Failed(result.to_owned())),
                };
            }
            self.hear()?;
        }
    }

    /// Calls a method; the body of the reply.
    fn call(
        &mut self,
        target: Target,
        member: &str,
        body: &(impl Serialize + Type),
    ) -> Result<Vec<u8>, SystemdError> {
        self.serial += 1;
        let call = message::encode(self.serial, target, member, body)?;
        self.say(&call)?;
        loop {
            match self.hear()? {
                Heard::Reply { to, body } if to == self.serial => return Ok(body),
                Heard::Refusal { to, name, text } if to == self.serial => {
                    return Err(SystemdError::Refused { name, text });
                }
                Heard::Reply { .. } | Heard::Refusal { .. } | Heard::JobEnd(_) | Heard::Other => {}
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// What comes next; ends of jobs are remembered.
    fn hear(&mut self) -> Result<Heard, SystemdError> {
        let mut bytes = vec![0; HEAD];
        self.read(&mut bytes)?;
        bytes.resize(message::length(&bytes)?, 0);
        self.read(&mut bytes[HEAD..])?;
        match message::decode(bytes)? {
            Heard::JobEnd(end) => {
                self.ended.push(end);
                Ok(Heard::Other)
            }
            heard => Ok(heard),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.hurry()?;
        let read = self.stream.read_exact(bytes);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }

    /// Nothing is waited for beyond the deadline.
    fn hurry(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.get_ref().set_read_timeout(Some(left))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::oci::systemd::message::systemds::{job_removed, refusal, reply};

    /// A systemd that lets us in, waits for one call, and answers this.
    fn answers(answers: Vec<Vec<u8>>) -> (Bus, thread::JoinHandle<Vec<u8>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let systemd = thread::spawn(move || {
            let mut stream = BufReader::new(theirs);
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            assert!(line.starts_with("\0AUTH EXTERNAL 3"), "{line}");
            line.clear();
            stream.read_line(&mut line).unwrap();
            assert_eq!(line, "BEGIN\r\n");
            stream.get_mut().write_all(b"OK 0123\r\n").unwrap();
            let mut call = vec![0; HEAD];
            stream.read_exact(&mut call).unwrap();
            call.resize(message::length(&call).unwrap(), 0);
            stream.read_exact(&mut call[HEAD..]).unwrap();
            for answer in answers {
                stream.get_mut().write_all(&answer).unwrap();
            }
            call
        });
        (Bus::greet(ours).unwrap(), systemd)
    }

    #[test]
    fn a_job_is_waited_for() {
        let (mut bus, systemd) = answers(vec![
            job_removed("/job/1", "failed"),
            reply("/job/2"),
            job_removed("/job/2", "done"),
        ]);
        bus.job("StopUnit", &("a.scope", "replace")).unwrap();
        let call = systemd.join().unwrap();
        assert!(String::from_utf8_lossy(&call).contains("StopUnit"));
    }

    #[test]
    fn a_job_may_end_before_its_beginning_is_told() {
        let answer = [job_removed("/job/2", "canceled"), reply("/job/2")].concat();
        let (mut bus, _systemd) = answers(vec![answer]);
        let failed = bus.job("StopUnit", &("a.scope", "replace"));
        assert!(matches!(failed, Err(SystemdError::Failed(result)) if result == "canceled"));
    }

    #[test]
    fn a_refusal_is_told_in_systemds_words() {
        let (mut bus, _systemd) = answers(vec![refusal("Unit not loaded.")]);
        let refused = bus.job("StopUnit", &("a.scope", "replace")).unwrap_err();
        assert_eq!(refused.to_string(), "Unit not loaded.");
    }

    #[test]
    fn an_end_in_the_middle_is_an_error() {
        let (mut bus, _systemd) = answers(vec![reply("/job/2")]);
        let silent = bus.job("StopUnit", &("a.scope", "replace"));
        assert!(matches!(silent, Err(SystemdError::Silent(_))));
    }
}
