//! What a guest may hold is bounded, and a guest that keeps to the bounds doesn't notice them.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

/// Of which at most 10 are for inodes, and 15 files can be open.
const FEW: usize = 40;

impl Guest {
    /// How many descriptors of this process are of something in the share.
    fn descriptors(&self) -> usize {
        let root = self.path().to_str().unwrap().to_owned();
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with(&root))
            .count()
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Answer {
        let head = [to.0.to_le_bytes().to_vec(), words(&[flags, 0])].concat();
        self.ask(45, from.0, &[head, cstr(from.1), cstr(to.1)].concat(), 0)
    }

    fn open_directory(&mut self, node: u64) -> Answer {
        self.ask(27, node, &[0; 8], 16)
    }

    fn release(&mut self, (node, handle): (u64, u64)) -> i32 {
        let body = [handle.to_le_bytes().to_vec(), vec![0; 16]].concat();
        self.ask(18, node, &body, 0).errno
    }

    /// Makes and looks up so many files, so that older inodes lose their descriptors.
    fn crowd(&mut self, count: usize) {
        for number in 0..count {
            let name = format!("crowd-{number}");
            std::fs::write(self.path().join(&name), "").unwrap();
            self.lookup(ROOT, &name).node();
        }
    }
}

#[test]
fn a_guest_that_holds_thousands_of_inodes_costs_a_few_descriptors() {
    let mut guest = Guest::with_descriptors(FEW);
    let mut nodes = Vec::new();
    for directory in 0..40 {
        let name = format!("d{directory}");
        let parent = guest.mkdir(ROOT, &name, 0o755).node();
        for file in 0..50usize {
            let content = vec![0; directory * 50 + file];
            let path = guest.path().join(&name).join(format!("f{file}"));
            std::fs::write(path, content).unwrap();
            nodes.push(guest.lookup(parent, &format!("f{file}")).node());
        }
    }
    assert!(guest.descriptors() <= FEW, "{}", guest.descriptors());
    for (size, node) in nodes.into_iter().enumerate() {
        let answer = guest.getattr(node);
        assert_eq!((answer.errno, answer.u64(24)), (0, size as u64));
    }
    assert!(guest.descriptors() <= FEW, "{}", guest.descriptors());
}

#[test]
fn a_directory_that_the_guest_has_renamed_is_found_again() {
    let mut guest = Guest::with_descriptors(FEW);
    let (a, b) = (
        guest.mkdir(ROOT, "a", 0o755).node(),
        guest.mkdir(ROOT, "b", 0o755).node(),
    );
    let (inner, _) = guest.create(a, "f", libc::O_RDWR, 0o640);
    assert_eq!(guest.rename((ROOT, "a"), (b, "c"), 0).errno, 0);
    guest.crowd(100);
    assert_eq!(guest.getattr(a).errno, 0);
    assert_eq!(guest.getattr(inner).errno, 0);
    guest.mkdir(ROOT, "d", 0o755).node();
    let exchange = guest.rename((ROOT, "d"), (b, "c"), libc::RENAME_EXCHANGE);
    assert_eq!(exchange.errno, 0);
    guest.crowd(100);
    assert_eq!(guest.lookup(a, "f").node(), inner);
}

#[test]
fn an_inode_that_the_host_has_replaced_is_stale_and_its_name_is_another() {
    let mut guest = Guest::with_descriptors(FEW);
    let path = guest.path().join("f");
    std::fs::write(&path, "old").unwrap();
    let node = guest.lookup(ROOT, "f").node();
    guest.crowd(100);
    std::fs::write(guest.path().join("g"), "new").unwrap();
    std::fs::rename(guest.path().join("g"), &path).unwrap();
    assert_eq!(guest.getattr(node).errno, libc::ESTALE);
    assert_ne!(guest.lookup(ROOT, "f").node(), node);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(guest.open(node, libc::O_RDONLY).errno, libc::ESTALE);
}

#[test]
fn a_directory_swapped_for_a_link_to_the_outside_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("f"), "secret").unwrap();
    let mut guest = Guest::with_descriptors(FEW);
    let directory = guest.mkdir(ROOT, "d", 0o755).node();
    let (file, handle) = guest.create(directory, "f", libc::O_RDWR, 0o644);
    assert_eq!(guest.release((file, handle)), 0);
    guest.crowd(100);
    std::fs::rename(guest.path().join("d"), guest.path().join("e")).unwrap();
    symlink(outside.path(), guest.path().join("d")).unwrap();
    assert_eq!(guest.getattr(directory).errno, libc::ESTALE);
    assert_eq!(guest.open(file, libc::O_RDWR).errno, libc::ESTALE);
    assert_eq!(guest.lookup(directory, "f").errno, libc::ESTALE);
}

#[test]
fn an_open_file_outlives_its_name() {
    let mut guest = Guest::with_descriptors(FEW);
    let file = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    guest.write(file, 0, b"kept", libc::O_RDWR);
    assert_eq!(guest.ask(10, ROOT, &cstr("f"), 0).errno, 0);
    guest.crowd(100);
    assert_eq!(guest.read(file, 0, 64, 64).data, b"kept");
    let attributes = guest.getattr(file.0);
    assert_eq!((attributes.errno, attributes.u64(24)), (0, 4));
}

#[test]
fn open_files_and_directories_are_limited_and_come_back() {
    let mut guest = Guest::with_descriptors(FEW);
    let first = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    let mut opened = 1;
    while guest.open(first.0, libc::O_RDONLY).errno == 0 {
        opened += 1;
        assert_eq!(guest.open_directory(ROOT).errno, 0);
        opened += 1;
    }
    assert_eq!(opened, 15);
    assert_eq!(guest.open_directory(ROOT).errno, libc::ENFILE);
    let body = [words(&[libc::O_RDWR as u32, 0o644, 0, 0]), cstr("g")].concat();
    assert_eq!(guest.ask(35, ROOT, &body, 144).errno, libc::ENFILE);
    assert!(
        !guest.path().join("g").exists(),
        "refused before it is made"
    );
    assert!(guest.descriptors() <= FEW, "{}", guest.descriptors());
    assert_eq!(guest.release(first), 0);
    assert_eq!(guest.open_directory(ROOT).errno, 0);
}

#[test]
fn inodes_are_limited_by_the_guests_memory_and_come_back() {
    let mut guest = Guest::with_descriptors(FEW);
    let limit = 8 << 10;
    let mut last = 0;
    for number in 1..limit {
        let name = format!("f{number}");
        std::fs::write(guest.path().join(&name), "").unwrap();
        last = guest.lookup(ROOT, &name).node();
    }
    assert_eq!(guest.mkdir(ROOT, "d", 0o755).errno, libc::ENFILE);
    assert!(
        !guest.path().join("d").exists(),
        "refused before it is made"
    );
    assert_eq!(guest.lookup(ROOT, "f1").errno, 0);
    guest.forget(last, 1);
    assert_eq!(guest.mkdir(ROOT, "d", 0o755).errno, 0);
}

/// What a program in the guest does, by paths of a small tree.
#[derive(Debug, Clone)]
enum Act {
    MakeDirectory(usize, u8),
    MakeFile(usize, u8),
    Rename(usize, usize, u8),
    Write(usize),
    Look(usize),
    Unlink(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let path = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 16));
    prop_oneof![
        (path(), any::<u8>()).prop_map(|(at, name)| Act::MakeDirectory(at, name)),
        (path(), any::<u8>()).prop_map(|(at, name)| Act::MakeFile(at, name)),
        (path(), path(), any::<u8>()).prop_map(|(from, to, name)| Act::Rename(from, to, name)),
        path().prop_map(Act::Write),
        path().prop_map(Act::Look),
        path().prop_map(Act::Unlink),
    ]
}

/// A guest whose cache never drops a name: it knows the node of each path, and uses it without looking it up again.
struct Cache {
    guest: Guest,
    nodes: BTreeMap<String, u64>,
}

impl Cache {
    fn new(descriptors: usize) -> Self {
        Self {
            guest: Guest::with_descriptors(descriptors),
            nodes: BTreeMap::from([(String::new(), ROOT)]),
        }
    }

    fn pick(&self, index: usize) -> (String, u64) {
        let (path, node) = self.nodes.iter().nth(index % self.nodes.len()).unwrap();
        (path.clone(), *node)
    }

    /// The name and the parent's node of a path.
    fn split<'a>(&self, path: &'a str) -> (u64, &'a str) {
        let (parent, name) = path.rsplit_once('/').unwrap();
        (self.nodes[parent], name)
    }

    fn run(&mut self, act: &Act) -> i32 {
        match *act {
            Act::MakeDirectory(at, name) => {
                let (path, node) = self.pick(at);
                let made = self.guest.mkdir(node, &name.to_string(), 0o755);
                self.learn(format!("{path}/{name}"), made)
            }
            Act::MakeFile(at, name) => {
                let (path, node) = self.pick(at);
                let body = [words(&[2, 0o644, 0, 0]), cstr(&name.to_string())].concat();
                let made = self.guest.ask(35, node, &body, 144);
                if made.errno == 0 {
                    assert_eq!(self.guest.release((made.node(), made.u64(128))), 0);
                }
                self.learn(format!("{path}/{name}"), made)
            }
            Act::Rename(from, to, name) => self.rename(from, to, name),
            Act::Write(at) => {
                let (_, node) = self.pick(at);
                let open = self.guest.open(node, libc::O_RDWR);
                if open.errno == 0 {
                    let file = (node, open.u64(0));
                    self.guest.write(file, 0, &[7; 9], libc::O_RDWR);
                    assert_eq!(self.guest.release(file), 0);
                }
                open.errno
            }
            Act::Look(at) => {
                let (_, node) = self.pick(at);
                self.guest.getattr(node).errno
            }
            Act::Unlink(at) => self.unlink(at),
        }
    }

    fn learn(&mut self, path: String, made: Answer) -> i32 {
        if made.errno == 0 {
            self.nodes.insert(path, made.node());
        }
        made.errno
    }

    fn rename(&mut self, from: usize, to: usize, name: u8) -> i32 {
        let (old, _) = self.pick(from);
        let (parent, target) = self.pick(to);
        let new = format!("{parent}/{name}");
        if old.is_empty() || old == new {
            return 0;
        }
        let errno = self
            .guest
            .rename(self.split(&old), (target, &name.to_string()), 0)
            .errno;
        if errno == 0 {
            self.nodes.remove(&new);
            let below = format!("{old}/");
            let moved: Vec<String> = self.nodes.keys().cloned().collect();
            for path in moved {
                if path == old || path.starts_with(&below) {
                    let node = self.nodes.remove(&path).unwrap();
                    self.nodes
                        .insert(format!("{new}{}", &path[old.len()..]), node);
                }
            }
        }
        errno
    }

    fn unlink(&mut self, at: usize) -> i32 {
        let (path, node) = self.pick(at);
        if path.is_empty() {
            return 0;
        }
        let (parent, name) = self.split(&path);
        let name = cstr(name);
        let errno = match self.guest.ask(10, parent, &name, 0).errno {
            libc::EISDIR => self.guest.ask(11, parent, &name, 0).errno,
            errno => errno,
        };
        if errno == 0 {
            self.nodes.remove(&path);
            self.guest.forget(node, 1);
        }
        errno
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_guest_with_few_descriptors_sees_what_one_with_many_sees(acts in prop::collection::vec(act(), 1..200)) {
        let (mut few, mut many) = (Cache::new(8), Cache::new(10_000));
        for act in &acts {
            prop_assert_eq!(few.run(act), many.run(act), "{:?}", act);
        }
        prop_assert!(few.nodes.keys().eq(many.nodes.keys()));
        for (path, node) in &few.nodes {
            prop_assert_eq!(few.guest.getattr(*node).errno, 0, "{}", path);
        }
        prop_assert!(few.guest.descriptors() <= 8);
    }
}
