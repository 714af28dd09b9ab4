//! Tests of device rules: the program is run by a small interpreter of the instructions that it uses.

use super::*;
use serde_json::{Value, json};

fn run(program: &[Instruction], context: [u32; 3]) -> u64 {
    let mut registers = [0u64; 11];
    let mut at = 0;
    loop {
        let i = program[at];
        let (to, source) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
        // Immediates are sign-extended to 64 bits.
        let immediate = i64::from(i.immediate) as u64;
        at += 1;
        let jump = match i.code {
            LOAD_WORD => {
                assert_eq!(source, usize::from(CONTEXT));
                registers[to] = u64::from(context[usize::try_from(i.offset).unwrap() / 4]);
                false
            }
            MOVE => {
                registers[to] = immediate;
                false
            }
            MOVE_REGISTER => {
                registers[to] = registers[source];
                false
            }
            AND => {
                registers[to] &= immediate;
                false
            }
            SHIFT_RIGHT => {
                registers[to] >>= immediate;
                false
            }
            JUMP_IF_EQUAL => registers[to] == immediate,
            JUMP_UNLESS_EQUAL => registers[to] != immediate,
            EXIT => return registers[0],
            code => panic!("unknown instruction {code:#x}"),
        };
        if jump {
            at += usize::try_from(i.offset).unwrap();
        }
    }
}

fn allowed(asked: Value, kind: Kind, device: (u32, u32), access: u8) -> bool {
    let asked: Vec<LinuxDeviceCgroup> = serde_json::from_value(asked).unwrap();
    let program = program(&rules(&[], &asked).unwrap());
    run(
        &program,
        [u32::from(access) << 16 | kind as u32, device.0, device.1],
    ) == 1
}

#[test]
fn without_rules_only_the_default_devices_can_be_used() {
    assert!(allowed(json!([]), Kind::Char, (1, 3), READ | WRITE));
    assert!(allowed(json!([]), Kind::Char, (136, 17), READ));
    assert!(!allowed(json!([]), Kind::Char, (10, 229), READ));
    assert!(!allowed(json!([]), Kind::Block, (254, 0), READ));
    // A node may be made of any, and then not be opened.
    assert!(allowed(json!([]), Kind::Block, (254, 0), MKNOD));
}

#[test]
fn listed_devices_can_be_used_unless_all_are_denied_at_first() {
    let disk = json!([{ "path": "/dev/vda", "type": "b", "major": 254, "minor": 0 }]);
    let listed: Vec<LinuxDevice> = serde_json::from_value(disk).unwrap();
    let allowed = |asked: Value| {
        let asked: Vec<LinuxDeviceCgroup> = serde_json::from_value(asked).unwrap();
        let program = program(&rules(&listed, &asked).unwrap());
        run(
            &program,
            [u32::from(READ) << 16 | Kind::Block as u32, 254, 0],
        ) == 1
    };
    assert!(allowed(json!([])));
    assert!(!allowed(json!([{ "allow": false, "access": "rwm" }])));
}

#[test]
fn the_last_rule_counts() {
    let fuse = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" });
    let none = json!({ "allow": false, "access": "rwm" });
    assert!(allowed(
        json!([none, fuse]),
        Kind::Char,
        (10, 229),
        READ | WRITE
    ));
    assert!(!allowed(json!([fuse, none]), Kind::Char, (10, 229), READ));
    assert!(!allowed(json!([none, fuse]), Kind::Char, (10, 200), READ));
    assert!(!allowed(json!([none, fuse]), Kind::Block, (10, 229), READ));
}

#[test]
fn denying_to_write_denies_to_open_for_both() {
    let rules = json!([{ "allow": true, "type": "a", "access": "rwm" },
                       { "allow": false, "type": "b", "major": 254, "access": "w" }]);
    assert!(allowed(rules.clone(), Kind::Block, (254, 0), READ));
    assert!(!allowed(rules.clone(), Kind::Block, (254, 0), WRITE));
    assert!(!allowed(rules.clone(), Kind::Block, (254, 0), READ | WRITE));
    assert!(allowed(rules, Kind::Block, (8, 0), READ | WRITE));
}

#[test]
fn two_rules_together_allow_what_each_allows_in_part() {
    let rules = json!([{ "allow": true, "type": "c", "major": 10, "access": "r" },
                       { "allow": true, "type": "c", "minor": 229, "access": "w" }]);
    assert!(allowed(rules.clone(), Kind::Char, (10, 229), READ | WRITE));
    assert!(!allowed(rules, Kind::Char, (10, 228), READ | WRITE));
}

#[test]
fn denying_what_is_no_access_denies_all_and_allowing_it_is_refused() {
    let kmsg = |allow: bool| {
        let rule = json!({ "type": "c", "major": 1, "minor": 11, "access": "ra", "allow": allow });
        json!([{ "allow": true, "access": "rwm" }, rule])
    };
    assert!(!allowed(kmsg(false), Kind::Char, (1, 11), WRITE));
    let asked: Vec<LinuxDeviceCgroup> = serde_json::from_value(kmsg(true)).unwrap();
    assert_eq!(rules(&[], &asked).unwrap_err().field, "devices[1].access");
}

#[test]
fn a_rule_that_says_nothing_is_refused_by_its_number() {
    for (rule, field) in [
        (json!({ "allow": true }), "devices[1].access"),
        (
            json!({ "allow": true, "access": "rx" }),
            "devices[1].access",
        ),
        (
            json!({ "allow": true, "access": "r", "major": -7 }),
            "devices[1].major",
        ),
    ] {
        let asked = json!([{ "allow": false, "access": "rwm" }, rule]);
        let asked: Vec<LinuxDeviceCgroup> = serde_json::from_value(asked).unwrap();
        assert_eq!(rules(&[], &asked).unwrap_err().field, field);
    }
}
