//! Files are made, read, written, copied and mapped as on the host.

use super::*;

#[test]
fn what_is_written_is_on_the_host_and_is_read_back() {
    let mut guest = Guest::new();
    let file = guest.create(ROOT, "f", libc::O_RDWR, 0o640);
    assert_eq!(guest.write(file, 3, b"hello", libc::O_RDWR).u32(0), 5);
    assert_eq!(
        std::fs::read(guest.path().join("f")).unwrap(),
        b"\0\0\0hello"
    );
    assert_eq!(guest.read(file, 3, 64, 64).data, b"hello");
    assert_eq!(guest.host("f").mode() & 0o7777, 0o640);
}

#[test]
fn created_file_belongs_to_the_caller() {
    if !is_root() {
        eprintln!("skipped: giving files away needs root");
        return;
    }
    let mut guest = Guest::new();
    std::fs::set_permissions(
        guest.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    guest.caller = (1234, 5678);
    // The guest's kernel has let this user in: by a supplementary group, say.
    guest.create(ROOT, "f", libc::O_RDWR, 0o600);
    guest.mkdir(ROOT, "d", 0o700).node();
    for name in ["f", "d"] {
        assert_eq!(
            (guest.host(name).uid(), guest.host(name).gid()),
            (1234, 5678)
        );
    }
    assert!(is_root());
    assert_eq!(rustix::process::getegid().as_raw(), 0);
}

#[test]
fn set_group_id_directory_gives_its_group_on() {
    if !is_root() {
        eprintln!("skipped: giving files away needs root");
        return;
    }
    let mut guest = Guest::new();
    let directory = guest.mkdir(ROOT, "d", 0o755).node();
    std::os::unix::fs::chown(guest.path().join("d"), Some(0), Some(99)).unwrap();
    std::fs::set_permissions(
        guest.path().join("d"),
        std::os::unix::fs::PermissionsExt::from_mode(0o2777),
    )
    .unwrap();
    guest.caller = (1234, 5678);
    guest.create(directory, "f", libc::O_RDWR, 0o2755);
    let made = guest.host("d/f");
    assert_eq!((made.uid(), made.gid()), (1234, 99));
    assert_eq!(made.mode() & 0o7777, 0o2755);
}

#[test]
fn existing_file_is_opened_by_create_and_keeps_its_owner() {
    let mut guest = Guest::new();
    std::fs::write(guest.path().join("f"), "old").unwrap();
    guest.caller = (1234, 5678);
    let file = guest.create(ROOT, "f", libc::O_RDWR, 0o600);
    assert_eq!(guest.read(file, 0, 8, 8).data, b"old");
    assert_ne!(guest.host("f").uid(), 1234);
}

#[test]
fn exclusive_create_of_an_existing_file_is_refused() {
    let mut guest = Guest::new();
    std::fs::write(guest.path().join("f"), "old").unwrap();
    let flags = (libc::O_RDWR | libc::O_EXCL) as u32;
    let body = [words(&[flags, 0o600, 0, 0]), cstr("f")].concat();
    assert_eq!(guest.ask(35, ROOT, &body, 144).errno, libc::EEXIST);
}

#[test]
fn appending_ignores_the_offset_but_writing_back_a_mapped_page_does_not() {
    const FROM_PAGE_CACHE: u32 = 1;
    let mut guest = Guest::new();
    let flags = libc::O_RDWR | libc::O_APPEND;
    let file = guest.create(ROOT, "f", flags, 0o644);
    guest.write(file, 0, b"abc", flags);
    guest.write(file, 0, b"def", flags);
    guest.write_as(file, 0, b"X", 0, FROM_PAGE_CACHE);
    guest.write(file, 0, b"g", flags);
    assert_eq!(std::fs::read(guest.path().join("f")).unwrap(), b"Xbcdefg");
}

#[test]
fn unlinked_file_lives_while_it_is_open() {
    let mut guest = Guest::new();
    let file = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    guest.write(file, 0, b"abc", libc::O_RDWR);
    assert_eq!(guest.ask(10, ROOT, &cstr("f"), 0).errno, 0);
    assert_eq!(guest.read(file, 0, 8, 8).data, b"abc");
    let attributes = guest.getattr(file.0);
    assert_eq!(attributes.errno, 0);
    assert_eq!(attributes.u32(16 + 64), 0, "nlink");
}

#[test]
fn unnamed_file_can_be_given_a_name() {
    let mut guest = Guest::new();
    let body = words(&[(libc::O_TMPFILE | libc::O_RDWR) as u32, 0o600, 0, 0]);
    let answer = guest.ask(51, ROOT, &[body, cstr("/")].concat(), 144);
    if answer.errno == libc::EOPNOTSUPP {
        eprintln!("skipped: the file system of temporary files has no O_TMPFILE");
        return;
    }
    let file = (answer.node(), answer.u64(128));
    guest.write(file, 0, b"abc", libc::O_RDWR);
    let body = [file.0.to_le_bytes().to_vec(), cstr("named")].concat();
    assert_eq!(guest.ask(13, ROOT, &body, 128).node(), file.0);
    assert_eq!(std::fs::read(guest.path().join("named")).unwrap(), b"abc");
}

#[test]
fn ranges_are_copied_on_the_host() {
    let mut guest = Guest::new();
    let from = guest.create(ROOT, "from", libc::O_RDWR, 0o644);
    let to = guest.create(ROOT, "to", libc::O_RDWR, 0o644);
    guest.write(from, 0, b"0123456789", libc::O_RDWR);
    let fields = [from.1, 2, to.0, to.1, 1, u64::MAX, 0];
    let body: Vec<u8> = fields.iter().flat_map(|f| f.to_le_bytes()).collect();
    let answer = guest.ask(47, from.0, &body, 8);
    assert_eq!((answer.errno, answer.u32(0)), (0, 8));
    assert_eq!(
        std::fs::read(guest.path().join("to")).unwrap(),
        b"\x0023456789"
    );
}

#[test]
fn holes_are_found() {
    let mut guest = Guest::new();
    let file = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    guest.write(file, 1 << 20, b"x", libc::O_RDWR);
    let seek = |offset: u64, whence: i32| {
        let head = [file.1.to_le_bytes(), offset.to_le_bytes()].concat();
        [head, words(&[whence as u32, 0])].concat()
    };
    let hole = guest.ask(46, file.0, &seek(0, libc::SEEK_HOLE), 8);
    assert!(hole.u64(0) == 0 || hole.u64(0) == (1 << 20) + 1);
    let end = guest.ask(46, file.0, &seek(2 << 20, libc::SEEK_DATA), 8);
    assert_eq!(end.errno, libc::ENXIO);
    assert_eq!(
        guest.ask(46, file.0, &seek(0, libc::SEEK_SET), 8).errno,
        libc::EINVAL
    );
}

#[test]
fn handle_of_another_node_is_refused() {
    let mut guest = Guest::new();
    let one = guest.create(ROOT, "one", libc::O_RDWR, 0o644);
    let two = guest.create(ROOT, "two", libc::O_RDWR, 0o644);
    assert_eq!(guest.read((one.0, two.1), 0, 8, 8).errno, libc::EBADF);
}
