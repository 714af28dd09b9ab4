//! Device rules (OCI runtime-spec config-linux.md#allowed-device-list) as a BPF program: cgroup v2 has no files for them.
//!
//! Of the rules that match a device the last one counts, for each kind of access by itself, as in cgroup v1. So the program goes
//! through them from the last to the first and strikes off what is allowed, until nothing is left or something is denied.
//!
//! Not libcgroups' `cgroupsv2_devices`: it brings libbpf, libelf and zlib in C into the guest for one system call, and takes a
//! rule that denies writing for one that says nothing about opening for reading and writing.

use libcontainer::oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::limits::LimitError;

/// As the kernel numbers them (include/uapi/linux/bpf.h, BPF_DEVCG_ACC_*).
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// Kind of device (BPF_DEVCG_DEV_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Block = 1,
    Char = 2,
}

/// One rule; None matches all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub kind: Option<Kind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    access: u8,
}

const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    }
}

/// What every container may use, whatever its rules say (config-linux.md#default-devices), and make nodes of (runc).
const ALWAYS: &[Rule] = &[
    allow(Kind::Char, None, None, MKNOD),
    allow(Kind::Block, None, None, MKNOD),
    allow(Kind::Char, Some(1), Some(3), ALL), // null
    allow(Kind::Char, Some(1), Some(5), ALL), // zero
    allow(Kind::Char, Some(1), Some(7), ALL), // full
    allow(Kind::Char, Some(1), Some(8), ALL), // random
    allow(Kind::Char, Some(1), Some(9), ALL), // urandom
    allow(Kind::Char, Some(5), Some(0), ALL), // tty
    allow(Kind::Char, Some(5), Some(2), ALL), // ptmx
    allow(Kind::Char, Some(136), None, ALL),  // pts
];

/// The rules of a container in the order in which they count; at first all is denied but the devices that are `listed` as its
/// own. (Engines deny all by a first rule, and then allow what they list.)
///
/// # Errors
/// A rule without access, or with one that is none.
pub fn rules(listed: &[LinuxDevice], asked: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, LimitError> {
    let mut rules: Vec<_> = listed.iter().filter_map(own).collect();
    for (number, rule) in asked.iter().enumerate() {
        rules.push(parse(number, rule)?);
    }
    rules.extend_from_slice(ALWAYS);
    Ok(rules)
}

fn own(device: &LinuxDevice) -> Option<Rule> {
    let kind = match device.typ() {
        LinuxDeviceType::B => Kind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => Kind::Char,
        LinuxDeviceType::A | LinuxDeviceType::P => return None,
    };
    let number = |id: i64| u32::try_from(id).ok();
    Some(allow(
        kind,
        Some(number(device.major())?),
        Some(number(device.minor())?),
        ALL,
    ))
}

fn parse(number: usize, rule: &LinuxDeviceCgroup) -> Result<Rule, LimitError> {
    let field = |name: &str| format!("devices[{number}].{name}");
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(Kind::Block),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Kind::Char),
        Some(LinuxDeviceType::P) => {
            return Err(LimitError::new(field("type"), "a FIFO needs no rule"));
        }
    };
    let id = |name: &str, id: Option<i64>| match id {
        None | Some(-1) => Ok(None),
        Some(id) => u32::try_from(id)
            .map(Some)
            .map_err(|_| LimitError::new(field(name), format!("{id} is no device number"))),
    };
    let mut access = 0;
    for letter in rule.access().iter().flat_map(|text| text.chars()) {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            // Not in the specification; runc takes it for nothing. All is the reading that denies the most.
            'a' if !rule.allow() => ALL,
            other => {
                let why = format!("{other:?} is none of r, w, m");
                return Err(LimitError::new(field("access"), why));
            }
        };
    }
    if access == 0 {
        return Err(LimitError::new(field("access"), "is empty"));
    }
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: id("major", rule.major())?,
        minor: id("minor", rule.minor())?,
        access,
    })
}

/// One BPF instruction (include/uapi/linux/bpf.h, struct bpf_insn).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high ones.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// The answer; the context; what is still to be allowed; type, major and minor of the device.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const WANTED: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const fn op(code: u8, destination: u8, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: destination,
        offset: 0,
        immediate,
    }
}

const fn from(code: u8, destination: u8, source: u8, offset: i16) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate: 0,
    }
}

/// The program of BPF_PROG_TYPE_CGROUP_DEVICE: its context is `access << 16 | type`, major, minor; 1 allows.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        from(LOAD_WORD, WANTED, CONTEXT, 0),
        from(MOVE_REGISTER, KIND, WANTED, 0),
        op(AND, KIND, 0xffff),
        op(SHIFT_RIGHT, WANTED, 16),
        from(LOAD_WORD, MAJOR, CONTEXT, 4),
        from(LOAD_WORD, MINOR, CONTEXT, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(block(rule));
    }
    program.extend([op(MOVE, ANSWER, 0), op(EXIT, 0, 0)]);
    program
}

/// A rule that does not match jumps behind its own block.
fn block(rule: &Rule) -> Vec<Instruction> {
    let matches = [
        (KIND, rule.kind.map(|kind| kind as u32)),
        (MAJOR, rule.major),
        (MINOR, rule.minor),
    ];
    let mut block: Vec<_> = matches
        .into_iter()
        .filter_map(|(register, value)| {
            // Device numbers have 12 and 20 bits, so none is cut off.
            value.map(|value| op(JUMP_UNLESS_EQUAL, register, value as i32))
        })
        .collect();
    let access = i32::from(rule.access);
    if rule.allow {
        block.push(op(AND, WANTED, !access));
        block.push(op(JUMP_UNLESS_EQUAL, WANTED, 0));
    } else {
        block.push(from(MOVE_REGISTER, ANSWER, WANTED, 0));
        block.push(op(AND, ANSWER, access));
        block.push(op(JUMP_IF_EQUAL, ANSWER, 0));
    }
    block.push(op(MOVE, ANSWER, i32::from(rule.allow)));
    block.push(op(EXIT, 0, 0));
    let end = block.len();
    for (at, instruction) in block.iter_mut().enumerate() {
        if matches!(instruction.code, JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL) {
            instruction.offset = (end - at - 1) as i16;
        }
    }
    block
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
