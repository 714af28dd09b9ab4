//! Messages of D-Bus: calls as they are written, and what is read, as far as a client of systemd's has to know it (D-Bus
//! specification, "Message Protocol"). zbus knows how the values in them are written.

use serde::Serialize;
use zbus::{
    ObjectPath, Signature, Type, Variant,
    wire::{
        LE,
        serialized::{Context, Data},
        to_bytes,
    },
};

/// Whom a call is for: the name on the bus, the object, the interface.
pub type Target = (&'static str, &'static str, &'static str);

/// The signal at the end of a job.
pub const JOB_REMOVED: &str = "JobRemoved";

/// The end of a job.
#[derive(Debug, PartialEq, Eq)]
pub struct JobEnd {
    /// The path of its object.
    pub job: String,
    /// `done`, or something worse.
    pub result: String,
}

/// A message, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// To the call with this serial number.
    Reply { to: u32, body: Vec<u8> },
    /// As well; the error has a name, for programs, and a text.
    Refusal { to: u32, name: String, text: String },
    /// A job has ended.
    JobEnd(JobEnd),
    /// Of no interest.
    Other,
}

/// D-Bus specification, "Message Format": 128 MiB.
const LARGEST_MESSAGE: usize = 1 << 27;
/// D-Bus specification, "Message Format": byte order, type, flags, version, the body's length, serial, fields.
type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);

/// That part of a header whose length doesn't vary, up to the length of the fields.
pub const HEAD: usize = 16;
/// Little-endian, as both architectures are.
const LITTLE: u8 = b'l';
const VERSION: u8 = 1;
/// Types of messages.
const CALL: u8 = 1;
const REPLY: u8 = 2;
const REFUSAL: u8 = 3;
const SIGNAL: u8 = 4;
/// Fields of the header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// The value of a field of a call's header, a variant: all of them are texts of some type.
#[derive(Serialize)]
struct Text<'a> {
    signature: Signature,
    value: &'a str,
}

impl Type for Text<'_> {
    const SIGNATURE: &'static Signature = &Signature::Variant;
}

/// A whole message that calls a method.
///
/// # Errors
/// The body is too long, or can't be written.
pub fn encode<B: Serialize + Type>(
    serial: u32,
    (name, path, interface): Target,
    member: &str,
    body: &B,
) -> Result<Vec<u8>, zbus::Error> {
    let context = Context::new(LE, 0);
    // A body is the values themselves, not a structure that holds them.
    let types = B::SIGNATURE.to_string_no_parens();
    let text = |field, signature, value| (field, Text { signature, value });
    let mut fields = vec![
        text(PATH, Signature::ObjectPath, path),
        text(INTERFACE, Signature::Str, interface),
        text(MEMBER, Signature::Str, member),
        text(DESTINATION, Signature::Str, name),
    ];
    if !types.is_empty() {
        fields.push(text(SIGNATURE, Signature::Signature, &types));
    }
    let body = to_bytes(context, body)?;
    let length = u32::try_from(body.len()).map_err(|_| zbus::Error::ExcessData)?;
    let header = (LITTLE, CALL, 0_u8, VERSION, length, serial, fields);
    let mut message = to_bytes(context, &header)?.to_vec();
    message.resize(message.len().next_multiple_of(8), 0);
    message.extend_from_slice(&body);
    Ok(message)
}

/// The length in bytes of a message that begins with these, [`HEAD`] of them.
///
/// # Errors
/// It is none, or too long.
pub fn length(head: &[u8]) -> Result<usize, zbus::Error> {
    let number = |at: usize| {
        let bytes = head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| u32::from_le_bytes(bytes) as usize)
    };
    match (head.first(), number(4), number(12)) {
        (Some(&LITTLE), Some(body), Some(fields)) => {
            let length = HEAD + fields.next_multiple_of(8) + body;
            if length > LARGEST_MESSAGE {
                return Err(zbus::Error::ExcessData);
            }
            Ok(length)
        }
        _ => Err(zbus::Error::IncorrectEndian),
    }
}

/// Takes a whole message apart.
///
/// # Errors
/// It is not written as it should be.
pub fn decode(message: Vec<u8>) -> Result<Heard, zbus::Error> {
    let message = Data::new(message, Context::new(LE, 0));
    let ((_, kind, _, _, _, _, fields), header) = message.deserialize::<Header<'_>>()?;
    let field = |code| fields.iter().find(|(field, _)| *field == code);
    let text = |code| {
        let text = field(code).and_then(|(_, value)| <&str>::try_from(value).ok());
        text.unwrap_or_default()
    };
    let to = field(REPLY_SERIAL).and_then(|(_, value)| u32::try_from(value).ok());
    let body = message.slice(header.next_multiple_of(8).min(message.len())..);
    Ok(match (kind, to) {
        (REPLY, Some(to)) => Heard::Reply {
            to,
            body: body.to_vec(),
        },
        (REFUSAL, Some(to)) => Heard::Refusal {
            to,
            name: text(ERROR_NAME).to_owned(),
            // It has one as a rule.
            text: match body.deserialize::<&str>() {
                Ok((text, _)) => text.to_owned(),
                Err(_) => text(ERROR_NAME).to_owned(),
            },
        },
        (SIGNAL, _) if text(MEMBER) == JOB_REMOVED => {
            let (_, job, _, result) = body.deserialize::<(u32, ObjectPath<'_>, &str, &str)>()?.0;
            Heard::JobEnd(JobEnd {
                job: job.to_string(),
                result: result.to_owned(),
            })
        }
        _ => Heard::Other,
    })
}

/// A body, to be taken apart.
pub fn body(bytes: Vec<u8>) -> Data<'static, 'static> {
    Data::new(bytes, Context::new(LE, 0))
}

/// What systemd says, for tests.
#[cfg(test)]
pub mod systemds {
    use super::*;

    /// A message from systemd.
    fn message(
        kind: u8,
        fields: Vec<(u8, Variant<'_>)>,
        body: &(impl Serialize + Type),
    ) -> Vec<u8> {
        let context = Context::new(LE, 0);
        let body = to_bytes(context, body).unwrap();
        let length = u32::try_from(body.len()).unwrap();
        let header = (LITTLE, kind, 0_u8, VERSION, length, 9_u32, fields);
        let mut message = to_bytes(context, &header).unwrap().to_vec();
        message.resize(message.len().next_multiple_of(8), 0);
        message.extend_from_slice(&body);
        message
    }

    pub fn job_removed(job: &str, result: &str) -> Vec<u8> {
        let job = ObjectPath::try_from(job).unwrap();
        let fields = vec![(MEMBER, Variant::new(JOB_REMOVED))];
        message(SIGNAL, fields, &(7_u32, job, "a.scope", result))
    }

    pub fn reply(job: &str) -> Vec<u8> {
        let job = ObjectPath::try_from(job).unwrap();
        message(REPLY, vec![(REPLY_SERIAL, Variant::U32(1))], &job)
    }

    pub fn refusal(text: &str) -> Vec<u8> {
        let fields = vec![
            (
                ERROR_NAME,
                Variant::new("org.freedesktop.systemd1.NoSuchUnit"),
            ),
            (REPLY_SERIAL, Variant::U32(1)),
        ];
        message(REFUSAL, fields, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_as_the_specification_says() {
        let target = ("a.b", "/c", "d.e");
        let call = encode(3, target, "F", &("x", true)).unwrap();
        let expected: [&[u8]; 7] = [
            // Little-endian, a call, no flags, version 1; 12 bytes of body; the third message; 72 bytes of fields.
            b"l\x01\0\x01\x0c\0\0\0\x03\0\0\0\x48\0\0\0",
            b"\x01\x01o\0\x02\0\0\0/c\0\0\0\0\0\0",
            b"\x02\x01s\0\x03\0\0\0d.e\0\0\0\0\0",
            b"\x03\x01s\0\x01\0\0\0F\0\0\0\0\0\0\0",
            b"\x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0",
            b"\x08\x01g\0\x02sb\0",
            b"\x01\0\0\0x\0\0\0\x01\0\0\0",
        ];
        assert_eq!(call, expected.concat());
        assert_eq!(call.len(), length(&call).unwrap());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let endless = b"l\x02\0\x01\xff\xff\xff\xff\x01\0\0\0\xff\xff\xff\xff";
        assert!(length(endless).is_err());
        assert!(length(b"B").is_err());
    }
}
