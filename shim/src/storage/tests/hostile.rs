//! Archives that want to write where they may not, or to use up the host.

use std::fs;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::path::Path;

use proptest::prelude::*;
use tar::EntryType;

use super::kit::{Tar, apply, chain, inventory};
use crate::storage::beneath::{Dir, Implied, NameError, Root, components};
use crate::storage::member::Members;
use crate::storage::remove::remove_tree;

#[test]
fn parent_components_are_refused_with_the_members_name() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["../evil", "a/../../evil", "/../evil", ".."] {
        let error = apply(
            &Tar::default().file(name, b"x").end(),
            &temp.path().join("layer"),
            &[],
        )
        .unwrap_err();
        assert!(
            chain(&error).contains(name) && chain(&error).contains(".."),
            "{}",
            chain(&error)
        );
    }
    let error = apply(
        &Tar::default().link("a", "../evil").end(),
        &temp.path().join("layer"),
        &[],
    )
    .unwrap_err();
    assert!(
        chain(&error).contains("hard link to \"../evil\""),
        "{}",
        chain(&error)
    );
    assert!(!temp.path().join("evil").exists());
}

#[test]
fn absolute_names_and_symlinked_parents_stay_in_the_layer() {
    let temp = tempfile::tempdir().unwrap();
    let layer = temp.path().join("layer");
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let outside_name = outside.to_str().unwrap();
    let tar = Tar::default()
        .file("/etc/motd", b"1")
        .symlink("abs", outside_name)
        .file("abs/evil", b"2");
    let tar = tar
        .symlink("up", "../../../outside")
        .file("up/evil", b"3")
        .link("stolen", "abs/evil");
    apply(&tar.end(), &layer, &[]).unwrap();
    assert_eq!(fs::read(layer.join("etc/motd")).unwrap(), b"1");
    assert_eq!(
        fs::read(
            layer
                .join(outside_name.trim_start_matches('/'))
                .join("evil")
        )
        .unwrap(),
        b"2"
    );
    assert_eq!(fs::read(layer.join("outside/evil")).unwrap(), b"3");
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

#[test]
fn link_loops_end() {
    let temp = tempfile::tempdir().unwrap();
    let error = apply(
        &Tar::default()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x", b"")
            .end(),
        temp.path(),
        &[],
    );
    assert!(chain(&error.unwrap_err()).contains("\"a/x\""));
}

#[test]
fn whiteouts_of_dots_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["d/.wh.", "d/.wh..", "d/.wh..."] {
        let error = apply(
            &Tar::default().file(name, b"").end(),
            &temp.path().join("layer"),
            &[],
        )
        .unwrap_err();
        assert!(chain(&error).contains("names no file"), "{}", chain(&error));
    }
}

#[test]
fn huge_extension_headers_are_refused_before_they_are_read() {
    let header = Tar::header(EntryType::XHeader, b"pax", b"", 0, 1 << 33);
    let tar = Tar::default().raw(header, b"").end();
    let error = Members::new(tar.as_slice()).next_member().unwrap_err();
    assert!(error.to_string().contains("longer than 1 MiB"), "{error}");
}

#[test]
fn truncated_archives_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let tar = Tar::default().file("a", &[1; 5000]).end();
    for length in [100, 700, 3000] {
        let error = apply(&tar[..length], &temp.path().join("layer"), &[]).unwrap_err();
        assert!(
            chain(&error).contains("truncated"),
            "{length}: {}",
            chain(&error)
        );
        remove_tree(&temp.path().join("layer")).unwrap();
    }
}

#[test]
fn trees_deeper_than_any_limit_are_removed() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("deep");
    fs::create_dir(&root).unwrap();
    std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
    let mut current =
        rustix::fs::open(&root, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..5000 {
        rustix::fs::mkdirat(&current, "d", rustix::fs::Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&current, "e", rustix::fs::Mode::empty()).unwrap();
        current = rustix::fs::openat(
            &current,
            "d",
            rustix::fs::OFlags::PATH,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
    }
    remove_tree(&root).unwrap();
    assert!(!root.exists() && Path::new("/etc/passwd").exists());
}

/// Few names, so that members hit each other and each other's links.
fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", ".", "..", "", ".wh.a", ".wh..wh..opq"]);
    (any::<bool>(), prop::collection::vec(part, 1..5)).prop_map(|(absolute, parts)| {
        format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
    })
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        name(),
        Just("../../outside".to_owned()),
        Just("../outside/kept".to_owned()),
        Just("/".to_owned())
    ]
}

fn kind() -> impl Strategy<Value = EntryType> {
    use EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};
    prop::sample::select(vec![
        Regular, Regular, Directory, Symlink, Symlink, Link, Fifo, Char,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_archive_writes_outside_of_its_layer(members in prop::collection::vec((kind(), name(), target()), 1..24)) {
        let temp = tempfile::tempdir().unwrap();
        let outside = temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        fs::create_dir(temp.path().join("layer")).unwrap();
        let before = (inventory(&outside), fs::read_dir(temp.path()).unwrap().count());
        // Member by member, so that one that is refused doesn't shield those after it.
        for (kind, name, target) in &members {
            let header = Tar::header(*kind, name.as_bytes(), target.as_bytes(), 0o6777, 0);
            let _ = apply(&Tar::default().raw(header, b"").end(), &temp.path().join("layer"), &[]);
        }
        let tar = members.iter().filter(|(_, name, _)| !name.contains("..")).fold(Tar::default(), |tar, (kind, name, target)| {
            tar.raw(Tar::header(*kind, name.as_bytes(), target.as_bytes(), 0o6777, 0), b"")
        });
        let _ = apply(&tar.end(), &temp.path().join("layer"), &[]);
        prop_assert_eq!(before, (inventory(&outside), fs::read_dir(temp.path()).unwrap().count()));
        prop_assert_eq!(fs::metadata(outside.join("kept")).unwrap().len(), 4);
    }

    #[test]
    fn every_name_resolves_beneath_the_root(links in prop::collection::vec((name(), target()), 0..8), path in name()) {
        let temp = tempfile::tempdir().unwrap();
        let layer = temp.path().join("layer");
        fs::create_dir(&layer).unwrap();
        for (name, target) in &links {
            let tar = Tar::default().symlink(name, target).end();
            let _ = apply(&tar, &layer, &[]);
        }
        let Ok(parts) = components(path.as_bytes()) else {
            prop_assert!(path.split('/').any(|part| part == ".."));
            return Ok(());
        };
        if let Ok(dir) = Root::open(&layer).unwrap().dir_or_make(&parts, &mut Ignore) {
            let fd = dir.as_fd().as_raw_fd();
            let real = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
            let told: std::path::PathBuf = std::iter::once(layer.clone().into_os_string()).chain(dir.path.clone()).collect();
            prop_assert!(real.starts_with(&layer), "{real:?}");
            prop_assert_eq!(real, told);
        }
    }

    #[test]
    fn damaged_archives_are_never_fatal(damage in prop::collection::vec((0..6144_usize, any::<u8>()), 1..12), fix in any::<bool>()) {
        let mut tar = Tar::default().pax(&[("path", b"x"), ("GNU.sparse.map", b"0,1,5,6"), ("mtime", b"1.5")])
            .file("a", &[b'1'; 1000]).symlink("b", "c").end();
        for (offset, byte) in &damage {
            if let Some(place) = tar.get_mut(*offset) { *place = *byte; }
        }
        if fix {
            let mut header = tar::Header::new_old();
            header.as_mut_bytes().copy_from_slice(&tar[..512]);
            header.set_cksum();
            tar[..512].copy_from_slice(header.as_bytes());
        }
        let mut members = Members::new(tar.as_slice());
        for _ in 0..tar.len() / 512 {
            if !matches!(members.next_member(), Ok(Some(_))) { break; }
        }
    }

    #[test]
    fn pax_records_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[0-9]{1,3} [a-zA-Z.]{1,20}=[-0-9.,\n]{0,30}\n") {
        let _ = crate::storage::pax::parse(&bytes);
        let _ = crate::storage::pax::parse(text.as_bytes());
    }
}

struct Ignore;

impl Implied for Ignore {
    fn made(&mut self, _: &Dir, _: bool) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn names_with_nul_are_refused() {
    assert_eq!(components(b"a\0b"), Err(NameError::Nul));
}
