//! Mounted images, as a container sees them.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::kit::{Tar, apply, layout};
use crate::storage::{ImageRef, RootFs, RootFsError, StorageError, Store, WritableLayer};

fn writable(dir: &Path) -> WritableLayer {
    WritableLayer {
        upper: dir.join("upper"),
        work: dir.join("work"),
    }
}

fn announced() -> Result<(), StorageError> {
    Ok(())
}

fn reserved(store: &Store, id: &str) -> WritableLayer {
    store.reserve(id, announced).unwrap().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_image_is_mounted_with_whiteouts_and_written_to() {
    let temp = tempfile::tempdir().unwrap();
    let low = Tar::default()
        .dir("./", 0o711)
        .file("a", b"1")
        .file("b/x", b"2")
        .file("c/y", b"3")
        .file("d/z", b"4")
        .end();
    let top = Tar::default()
        .file(".wh.a", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/n", b"5")
        .link("hard", "c/y")
        .end();
    layout(
        &temp.path().join("image"),
        "v1",
        &[(low.clone(), low), (top.clone(), top)],
    );
    let store = Store::open(&temp.path().join("store")).unwrap();
    let image = store
        .prepare(&ImageRef::parse(&format!("oci:{}/image", temp.path().display())).unwrap())
        .unwrap();
    let target = temp.path().join("target");
    fs::create_dir(&target).unwrap();
    let container = reserved(&store, "c1");
    let rootfs = RootFs::mount(&image.layers, &container, &target).unwrap();
    assert_eq!(names(&target), ["b", "c", "d", "hard"]);
    assert_eq!(names(&target.join("b")), ["n"]);
    assert_eq!(fs::read(target.join("hard")).unwrap(), b"3");
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o711);
    let inode = fs::metadata(target.join("d/z")).unwrap().ino();
    fs::write(target.join("d/z"), "changed").unwrap();
    assert_eq!(fs::metadata(target.join("d/z")).unwrap().ino(), inode);
    fs::rename(target.join("c"), target.join("moved")).unwrap();
    assert_eq!(fs::read(target.join("moved/y")).unwrap(), b"3");
    rootfs.unmount().unwrap();
    assert_eq!(names(&target), [""; 0]);
    assert_eq!(fs::read(image.layers[0].join("d/z")).unwrap(), b"4");
    let again = RootFs::mount(&image.layers, &container, &target).unwrap();
    assert_eq!(fs::read(target.join("d/z")).unwrap(), b"changed");
    drop(again);
    assert_eq!(names(&target), [""; 0]);
    store.remove_container("c1").unwrap();
    store.remove_container("c1").unwrap();
    assert_eq!(names(&temp.path().join("store/containers")), [""; 0]);
}

#[test]
fn a_root_directory_is_never_written_to() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("it's, a: root\\dir");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "1").unwrap();
    let store = Store::open(&temp.path().join("store")).unwrap();
    let image = store
        .prepare(&ImageRef::parse(&format!("dir:{}", root.display())).unwrap())
        .unwrap();
    let target = temp.path().join("target");
    fs::create_dir(&target).unwrap();
    let rootfs = RootFs::mount(&image.layers, &reserved(&store, "c"), &target).unwrap();
    fs::remove_file(target.join("file")).unwrap();
    fs::write(target.join("new"), "2").unwrap();
    assert_eq!(names(&target), ["new"]);
    drop(rootfs);
    assert_eq!(names(&root), ["file"]);
}

#[test]
fn more_layers_than_a_page_of_options_are_mounted() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path().join("x".repeat(200)).join("y".repeat(100));
    let layers: Vec<PathBuf> = (0..120)
        .map(|index| {
            let layer = base.join(index.to_string());
            apply(
                &Tar::default()
                    .file(&format!("f{index}"), b"1")
                    .file("same", index.to_string().as_bytes())
                    .end(),
                &layer,
                &[],
            )
            .unwrap();
            layer
        })
        .collect();
    let target = temp.path().join("target");
    fs::create_dir(&target).unwrap();
    let _rootfs = RootFs::mount(&layers, &writable(temp.path()), &target).unwrap();
    assert_eq!(names(&target).len(), 121);
    assert_eq!(fs::read(target.join("same")).unwrap(), b"119");
}

#[test]
fn the_layer_with_a_root_member_has_the_last_word_about_the_root() {
    let temp = tempfile::tempdir().unwrap();
    let layers = ["low", "middle", "top"].map(|name| temp.path().join(name));
    apply(&Tar::default().dir("./", 0o755).end(), &layers[0], &[]).unwrap();
    apply(&Tar::default().dir("./", 0o1777).end(), &layers[1], &[]).unwrap();
    apply(&Tar::default().file("x", b"").end(), &layers[2], &[]).unwrap();
    let target = temp.path().join("target");
    fs::create_dir(&target).unwrap();
    let _rootfs = RootFs::mount(&layers, &writable(temp.path()), &target).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o1777);
}

#[test]
fn a_store_on_tmpfs_works_and_one_on_overlayfs_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let memory = temp.path().join("memory");
    fs::create_dir(&memory).unwrap();
    rustix::mount::mount("vmbox", &memory, "tmpfs", MountFlags::empty(), c"size=8m").unwrap();
    let low = Tar::default().file("a", b"1").end();
    layout(&temp.path().join("image"), "v1", &[(low.clone(), low)]);
    let reference = ImageRef::parse(&format!("oci:{}/image", temp.path().display())).unwrap();
    let target = memory.join("target");
    fs::create_dir(&target).unwrap();
    let store = Store::open(&memory.join("store")).unwrap();
    let image = store.prepare(&reference).unwrap();
    let rootfs = RootFs::mount(&image.layers, &reserved(&store, "c"), &target).unwrap();
    let on_overlay = Store::open(&target.join("store")).unwrap();
    let prepared = on_overlay.prepare(&reference).unwrap_err().to_string();
    let mounted = RootFs::mount(
        &image.layers,
        &reserved(&on_overlay, "c"),
        &memory.join("target"),
    );
    let refused = matches!(mounted, Err(RootFsError::UpperOnOverlay(_)));
    drop(rootfs);
    rustix::mount::unmount(&memory, UnmountFlags::DETACH).unwrap();
    assert!(
        prepared.contains("put it on ext4, xfs, btrfs or tmpfs"),
        "{prepared}"
    );
    assert!(refused);
}

#[test]
fn ids_that_are_no_names_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    symlink("/etc", temp.path().join("link")).unwrap();
    let store = Store::open(temp.path()).unwrap();
    for id in ["", ".", "..", "a/b", "../layers"] {
        assert!(
            store.reserve(id, announced).is_err() && store.remove_container(id).is_err(),
            "{id:?}"
        );
    }
}

#[test]
fn a_place_is_written_down_before_it_is_made() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(temp.path()).unwrap();
    let place = temp.path().join("containers/web");
    let mut there_before = None;
    let announce = || {
        there_before = Some(place.exists());
        announced()
    };
    store.reserve("web", announce).unwrap().unwrap();
    assert_eq!(there_before, Some(false));
    assert!(place.exists());
}

#[test]
fn a_place_that_is_taken_is_not_written_down() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(temp.path()).unwrap();
    reserved(&store, "web");
    let never = || -> Result<(), StorageError> { panic!("another's place was written down") };
    assert!(store.reserve("web", never).unwrap().is_none());
}

#[test]
fn a_place_that_can_not_be_written_down_is_not_made() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(temp.path()).unwrap();
    let full = || Err(StorageError::ContainerId("journal full".into()));
    store.reserve("web", full).unwrap_err();
    assert!(!temp.path().join("containers/web").exists());
}
