//! Images of all kinds into the store.

use std::fs;
use std::path::Path;
use std::sync::Barrier;

use serde_json::json;

use super::kit::{Tar, chain, gzip, image_config, inventory, layout, zstd};
use crate::storage::digest::Digest;
use crate::storage::{ImageRef, LayerError, StorageError, Store};

fn two_layers() -> [Vec<u8>; 2] {
    [
        Tar::default().dir("./", 0o711).file("a", b"1").end(),
        Tar::default().file("b", b"2").end(),
    ]
}

fn prepared(store: &Store, path: &Path) -> Vec<String> {
    let image = store
        .prepare(&ImageRef::parse(path.to_str().unwrap()).unwrap())
        .unwrap();
    assert_eq!(image.config.user.as_deref(), Some("1000:50"));
    assert_eq!(image.config.cmd, ["/bin/true"]);
    image
        .layers
        .iter()
        .map(|layer| layer.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}

fn oci(dir: &Path) -> ImageRef {
    ImageRef::parse(&format!("oci:{}", dir.display())).unwrap()
}

#[test]
fn layers_of_every_compression_are_unpacked_once() {
    let temp = tempfile::tempdir().unwrap();
    let [low, top] = two_layers();
    let two_members = [gzip(&low[..700]), gzip(&low[700..])].concat();
    layout(
        &temp.path().join("gzip"),
        "v1",
        &[(low.clone(), two_members), (top.clone(), gzip(&top))],
    );
    layout(
        &temp.path().join("zstd"),
        "v1",
        &[(low.clone(), zstd(&low)), (top.clone(), top.clone())],
    );
    let store = Store::open(&temp.path().join("store")).unwrap();
    let first = store.prepare(&oci(&temp.path().join("gzip"))).unwrap();
    assert_eq!(
        first.layers[0].file_name().unwrap().to_str().unwrap(),
        Digest::of(&low).hex()
    );
    let before = inventory(&temp.path().join("store"));
    assert_eq!(
        store
            .prepare(&oci(&temp.path().join("zstd")))
            .unwrap()
            .layers,
        first.layers
    );
    assert_eq!(inventory(&temp.path().join("store")), before);
    assert_eq!(fs::read(first.layers[1].join("b")).unwrap(), b"2");
}

#[test]
fn docker_archives_are_read_compressed_or_not() {
    let temp = tempfile::tempdir().unwrap();
    let [low, top] = two_layers();
    let config = image_config(&[low.clone(), top.clone(), low.clone()]).to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest = json!([{"Config": name, "RepoTags": ["example.org/x:v1"], "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"]}]);
    let tar = Tar::default()
        .file(&name, config.as_bytes())
        .file("1/layer.tar", &low)
        .file("./2/layer.tar", &top);
    let tar = tar
        .symlink("3/layer.tar", "../1/layer.tar")
        .file("manifest.json", manifest.to_string().as_bytes())
        .end();
    let store = Store::open(&temp.path().join("store")).unwrap();
    for (name, bytes) in [
        ("plain", tar.clone()),
        ("gz", gzip(&tar)),
        ("zst", zstd(&tar)),
    ] {
        fs::write(temp.path().join(name), bytes).unwrap();
        let layers = prepared(&store, &temp.path().join(name));
        assert_eq!(
            layers,
            [&low, &top, &low].map(|layer| Digest::of(layer).hex())
        );
    }
    let error = store
        .prepare(&ImageRef::parse(&format!("{}/plain:v2", temp.path().display())).unwrap())
        .unwrap_err();
    assert!(
        chain(&error).contains("no image named \"v2\"; it has: example.org/x:v1"),
        "{}",
        chain(&error)
    );
    assert_eq!(
        fs::read_dir(temp.path().join("store/tmp")).unwrap().count(),
        0
    );
}

#[test]
fn wrong_digests_are_told_and_leave_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let [low, top] = two_layers();
    let store = Store::open(&temp.path().join("store")).unwrap();
    let before = inventory(&temp.path().join("store"));
    let blobs = layout(
        &temp.path().join("blob"),
        "v1",
        &[(low.clone(), low.clone())],
    );
    for position in [0, 600, low.len() - 1] {
        let mut damaged = low.clone();
        damaged[position] ^= 0x55;
        fs::write(&blobs[0], &damaged).unwrap();
        let text = chain(&store.prepare(&oci(&temp.path().join("blob"))).unwrap_err());
        let (expected, actual) = (
            Digest::of(&low).to_string(),
            Digest::of(&damaged).to_string(),
        );
        assert!(
            text.contains(&format!("expected digest {expected}, actual {actual}")),
            "{text}"
        );
        assert_eq!(inventory(&temp.path().join("store")), before);
    }
    layout(
        &temp.path().join("diff"),
        "v1",
        &[(low.clone(), gzip(&top))],
    );
    let text = chain(&store.prepare(&oci(&temp.path().join("diff"))).unwrap_err());
    let (expected, actual) = (Digest::of(&low), Digest::of(&top));
    assert!(text.contains(&format!("layer {expected}")), "{text}");
    assert!(
        text.contains(&format!("expected diff_id {expected}, actual {actual}")),
        "{text}"
    );
    assert_eq!(inventory(&temp.path().join("store")), before);
}

#[test]
fn layers_that_leave_are_refused_and_leave_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let evil = Tar::default()
        .file("fine", b"1")
        .file("../../evil", b"2")
        .end();
    layout(
        &temp.path().join("image"),
        "v1",
        &[(evil.clone(), gzip(&evil))],
    );
    let store = Store::open(&temp.path().join("store")).unwrap();
    let before = inventory(temp.path());
    let text = chain(&store.prepare(&oci(&temp.path().join("image"))).unwrap_err());
    assert!(text.contains("member \"../../evil\" is refused"), "{text}");
    assert_eq!(inventory(temp.path()), before);
}

#[test]
fn what_is_no_image_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let store = Store::open(&temp.path().join("store")).unwrap();
    let file = temp.path().join("file");
    let error = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        chain(
            &store
                .prepare(&ImageRef::Archive {
                    file: file.clone(),
                    tag: None,
                })
                .unwrap_err(),
        )
    };
    assert!(error(b"hello").contains("no tar archive"));
    assert!(
        error(&Tar::default().file("bin/sh", b"").end())
            .contains("neither index.json nor manifest.json")
    );
    assert!(
        error(&Tar::default().file("manifest.json", b"[{}]").end())
            .contains("manifest.json is malformed: missing field")
    );
    assert!(error(b"\xfd7zXZ\0").contains("xz"));
    layout(&temp.path().join("image"), "v1", &[]);
    assert!(
        chain(&store.prepare(&oci(&temp.path().join("image"))).unwrap_err()).contains("no layers")
    );
}

#[test]
fn many_at_once_unpack_a_layer_once() {
    let temp = tempfile::tempdir().unwrap();
    let low = (0..300)
        .fold(Tar::default(), |tar, index| {
            tar.file(&format!("d/{index}"), &[7; 3000])
        })
        .end();
    layout(
        &temp.path().join("image"),
        "v1",
        &[(low.clone(), gzip(&low))],
    );
    let store = Store::open(&temp.path().join("store")).unwrap();
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                let image = store.prepare(&oci(&temp.path().join("image"))).unwrap();
                assert_eq!(
                    fs::read_dir(image.layers[0].join("d")).unwrap().count(),
                    300
                );
            });
        }
    });
    assert_eq!(
        fs::read_dir(temp.path().join("store/layers"))
            .unwrap()
            .count(),
        1
    );
    assert_eq!(
        fs::read_dir(temp.path().join("store/tmp")).unwrap().count(),
        0
    );
}

#[test]
fn leftovers_of_a_killed_process_are_swept() {
    let temp = tempfile::tempdir().unwrap();
    let [low, _] = two_layers();
    layout(
        &temp.path().join("image"),
        "v1",
        &[(low.clone(), low.clone())],
    );
    let store = Store::open(&temp.path().join("store")).unwrap();
    for name in ["deadbeef", &Digest::of(&low).hex()] {
        fs::create_dir_all(temp.path().join("store/tmp").join(name).join("half")).unwrap();
        fs::write(
            temp.path().join("store/tmp").join(format!("{name}.lock")),
            "",
        )
        .unwrap();
    }
    let image = store.prepare(&oci(&temp.path().join("image"))).unwrap();
    assert!(!image.layers[0].join("half").exists());
    assert_eq!(
        fs::read_dir(temp.path().join("store/tmp")).unwrap().count(),
        0
    );
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("store");
    fs::create_dir(&root).unwrap();
    rustix::mount::mount(
        "vmbox",
        &root,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"size=512k",
    )
    .unwrap();
    let big = Tar::default()
        .file("small", b"1")
        .file("big", &[3; 1 << 20])
        .end();
    layout(
        &temp.path().join("image"),
        "v1",
        &[(big.clone(), gzip(&big))],
    );
    let store = Store::open(&root).unwrap();
    let before = inventory(&root);
    let error = store.prepare(&oci(&temp.path().join("image"))).unwrap_err();
    let after = inventory(&root);
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(
        matches!(&error, StorageError::Layer { source, .. } if matches!(**source, LayerError::NoSpace { .. })),
        "{}",
        chain(&error)
    );
    assert_eq!(after, before);
}

#[test]
fn work_that_is_given_up_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let [low, _] = two_layers();
    layout(
        &temp.path().join("image"),
        "v1",
        &[(low.clone(), gzip(&low))],
    );
    let store = Store::open(&temp.path().join("store")).unwrap();
    let before = inventory(&temp.path().join("store"));
    store.halt().now();
    let error = store.prepare(&oci(&temp.path().join("image"))).unwrap_err();
    assert!(chain(&error).contains("given up"), "{}", chain(&error));
    assert_eq!(inventory(&temp.path().join("store")), before);
}
