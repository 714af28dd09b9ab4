//! Which layers stay, and several processes at one store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::kit::{Tar, gzip, layout};
use crate::storage::{Collected, ImageRef, StorageError, Store, WritableLayer};

/// A directory with an image `name` of one layer, which holds many files of that name, and the store.
struct Corner {
    temp: tempfile::TempDir,
    store: Store,
}

impl Corner {
    fn new(images: &[&str]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        for name in images {
            let files = (0..300).fold(Tar::default(), |tar, index| {
                tar.file(&format!("{name}/{index}"), &[7; 3000])
            });
            let layer = files.end();
            layout(
                &temp.path().join(name),
                "v1",
                &[(layer.clone(), gzip(&layer))],
            );
        }
        let store = Store::open(&temp.path().join("store")).unwrap();
        Self { temp, store }
    }

    fn image(&self, name: &str) -> ImageRef {
        image(&self.temp.path().join(name))
    }

    fn layers(&self) -> Vec<String> {
        let layers = fs::read_dir(self.temp.path().join("store/layers")).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        layers.map(|entry| name(entry.unwrap())).collect()
    }

    fn tmp_is_empty(&self) -> bool {
        let mut tmp = fs::read_dir(self.temp.path().join("store/tmp")).unwrap();
        tmp.next().is_none()
    }
}

fn image(dir: &Path) -> ImageRef {
    ImageRef::parse(&format!("oci:{}", dir.display())).unwrap()
}

fn reserved(store: &Store, id: &str) -> WritableLayer {
    let announce = || Ok::<_, StorageError>(());
    store.reserve(id, announce).unwrap().unwrap()
}

#[test]
fn layers_that_no_container_uses_are_removed_and_others_stay() {
    let corner = Corner::new(&["used", "unused"]);
    let used = corner.store.prepare(&corner.image("used")).unwrap();
    corner
        .store
        .claim(&reserved(&corner.store, "web"), &used)
        .unwrap();
    let kept = used.layers[0].file_name().unwrap().to_owned();
    drop(used);
    drop(corner.store.prepare(&corner.image("unused")).unwrap());
    let Collected::Layers(removed) = corner.store.collect().unwrap() else {
        panic!("busy");
    };
    assert_eq!(removed.len(), 1);
    assert_eq!(corner.layers(), [kept.into_string().unwrap()]);
    assert!(corner.tmp_is_empty());
}

#[test]
fn a_containers_layers_go_after_the_container() {
    let corner = Corner::new(&["image"]);
    let image = corner.store.prepare(&corner.image("image")).unwrap();
    let writable = reserved(&corner.store, "web");
    corner.store.claim(&writable, &image).unwrap();
    drop(image);
    corner.store.remove_container("web").unwrap();
    corner.store.collect().unwrap();
    assert!(corner.layers().is_empty());
}

#[test]
fn layers_of_an_image_about_to_be_mounted_stay() {
    let corner = Corner::new(&["image"]);
    let image = corner.store.prepare(&corner.image("image")).unwrap();
    assert_eq!(corner.store.collect().unwrap(), Collected::Busy);
    assert!(image.layers[0].is_dir());
}

#[test]
fn what_a_killed_collector_left_is_removed_by_the_next() {
    let corner = Corner::new(&[]);
    let left = corner.temp.path().join("store/tmp/removed-abc");
    fs::create_dir_all(left.join("half")).unwrap();
    fs::write(left.with_extension("lock"), "").unwrap();
    corner.store.collect().unwrap();
    assert!(corner.tmp_is_empty());
}

/// Runs one of the tests below, which are this file's other processes.
fn process(corner: &Corner, work: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg(format!("storage::tests::collecting::{work}"))
        .env("VMBOX_TEST_CORNER", corner.temp.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn corner_of_parent() -> PathBuf {
    std::env::var_os("VMBOX_TEST_CORNER").unwrap().into()
}

#[test]
#[ignore = "a process of other tests"]
fn unpack_again_and_again() {
    let corner = corner_of_parent();
    let store = Store::open(&corner.join("store")).unwrap();
    for _ in 0..40 {
        let image = store.prepare(&image(&corner.join("image"))).unwrap();
        let files = fs::read_dir(image.layers[0].join("image")).unwrap();
        assert_eq!(files.count(), 300);
    }
}

#[test]
#[ignore = "a process of other tests"]
fn collect_again_and_again() {
    let store = Store::open(&corner_of_parent().join("store")).unwrap();
    for _ in 0..400 {
        store.collect().unwrap();
    }
}

#[test]
fn processes_that_unpack_the_same_layer_have_it_whole_and_once() {
    let corner = Corner::new(&["image"]);
    let all: Vec<Child> = (0..3)
        .map(|_| process(&corner, "unpack_again_and_again"))
        .collect();
    for mut child in all {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(corner.layers().len(), 1);
    assert!(corner.tmp_is_empty());
}

#[test]
fn processes_that_collect_take_nothing_from_those_that_unpack() {
    let corner = Corner::new(&["image"]);
    let work = [
        "unpack_again_and_again",
        "collect_again_and_again",
        "unpack_again_and_again",
        "collect_again_and_again",
    ];
    let all: Vec<Child> = work.map(|work| process(&corner, work)).into();
    for mut child in all {
        assert!(child.wait().unwrap().success());
    }
    corner.store.collect().unwrap();
    assert!(corner.layers().is_empty() && corner.tmp_is_empty());
}

#[test]
fn a_killed_unpacking_process_leaves_nothing_for_long() {
    let corner = Corner::new(&["image"]);
    let mut child = process(&corner, "unpack_again_and_again");
    while corner.layers().is_empty() && corner.tmp_is_empty() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    corner.store.collect().unwrap();
    assert!(corner.layers().is_empty() && corner.tmp_is_empty());
}
