//! Names stay beneath the root; directories list what is there.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn names_that_are_no_children_are_refused() {
    let mut guest = Guest::new();
    let directory = guest.mkdir(ROOT, "d", 0o755).node();
    for parent in [ROOT, directory] {
        for name in ["..", ".", "", "a/b", "/etc/passwd", "../x"] {
            assert_eq!(guest.lookup(parent, name).errno, libc::EINVAL, "{name:?}");
            assert_eq!(guest.mkdir(parent, name, 0o755).errno, libc::EINVAL);
        }
    }
}

#[test]
fn rename_to_a_path_is_refused() {
    let mut guest = Guest::new();
    guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    let body = [ROOT.to_le_bytes().to_vec(), cstr("f"), cstr("../f")].concat();
    assert_eq!(guest.ask(12, ROOT, &body, 0).errno, libc::EINVAL);
    assert!(guest.host("f").is_file());
}

#[test]
fn symbolic_links_are_not_followed() {
    let mut guest = Guest::new();
    symlink("/", guest.path().join("out")).unwrap();
    let link = guest.lookup(ROOT, "out").node();
    assert_eq!(guest.lookup(link, "etc").errno, libc::ENOTDIR);
    assert_eq!(guest.open(link, libc::O_RDONLY).errno, libc::EACCES);
    assert_eq!(guest.ask(5, link, &[], 4095).data, b"/");
}

#[test]
fn listing_has_every_name_once_with_dots() {
    let mut guest = Guest::new();
    for number in 0..200 {
        std::fs::write(guest.path().join(format!("file-{number}")), "").unwrap();
    }
    let mut names = list(&mut guest);
    names.sort();
    assert_eq!(names.len(), 202);
    names.dedup();
    assert_eq!(names.len(), 202);
    assert_eq!(names[..2], [".", ".."]);
}

fn list(guest: &mut Guest) -> Vec<String> {
    let handle = guest.ask(27, ROOT, &[0; 8], 16).u64(0);
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let answer = guest.ask(44, ROOT, &read_body(handle, offset, 4096), 4096);
        assert_eq!(answer.errno, 0);
        if answer.data.is_empty() {
            return names;
        }
        let mut at = 0;
        while at < answer.data.len() {
            let entry = at + 128;
            offset = answer.u64(entry + 8);
            let length = answer.u32(entry + 16) as usize;
            let name = &answer.data[entry + 24..entry + 24 + length];
            let is_child = name != b"." && name != b"..";
            assert_eq!(answer.u64(at) != 0, is_child, "only children have a node");
            names.push(String::from_utf8(name.to_vec()).unwrap());
            at = entry + (24 + length).next_multiple_of(8);
        }
    }
}

#[test]
fn hard_links_are_one_node() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "a", libc::O_RDWR, 0o644);
    let body = [node.to_le_bytes().to_vec(), cstr("b")].concat();
    let linked = guest.ask(13, ROOT, &body, 128);
    assert_eq!(linked.node(), node);
    assert_eq!(guest.host("a").nlink(), 2);
}

#[test]
fn forgotten_node_is_gone_and_its_number_is_not_used_again() {
    let mut guest = Guest::new();
    std::fs::write(guest.path().join("f"), "").unwrap();
    let node = guest.lookup(ROOT, "f").node();
    assert_eq!(guest.lookup(ROOT, "f").node(), node);
    guest.forget(node, 1);
    assert_eq!(guest.getattr(node).errno, 0);
    guest.forget(node, 1);
    assert_eq!(guest.getattr(node).errno, libc::ESTALE);
    assert_ne!(guest.lookup(ROOT, "f").node(), node);
}

#[test]
fn root_can_not_be_forgotten() {
    let mut guest = Guest::new();
    guest.forget(ROOT, u64::MAX);
    assert_eq!(guest.getattr(ROOT).errno, 0);
}

#[test]
fn rename_can_exchange_and_can_refuse_to_replace() {
    let mut guest = Guest::new();
    std::fs::write(guest.path().join("a"), "a").unwrap();
    std::fs::write(guest.path().join("b"), "b").unwrap();
    let rename = |flags: u32| {
        let head = [ROOT.to_le_bytes().to_vec(), words(&[flags, 0])].concat();
        [head, cstr("a"), cstr("b")].concat()
    };
    let refused = guest.ask(45, ROOT, &rename(libc::RENAME_NOREPLACE), 0);
    assert_eq!(refused.errno, libc::EEXIST);
    let exchanged = guest.ask(45, ROOT, &rename(libc::RENAME_EXCHANGE), 0);
    assert_eq!(exchanged.errno, 0);
    assert_eq!(std::fs::read(guest.path().join("a")).unwrap(), b"b");
}

#[test]
fn fifos_and_devices_are_made_and_not_opened() {
    let mut guest = Guest::new();
    let body = [words(&[libc::S_IFIFO | 0o640, 0, 0, 0]), cstr("pipe")].concat();
    let pipe = guest.ask(8, ROOT, &body, 128).node();
    assert_eq!(guest.host("pipe").mode(), libc::S_IFIFO | 0o640);
    assert_eq!(guest.open(pipe, libc::O_RDONLY).errno, libc::EACCES);
}
