//! The rules of the house that a machine can check.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "agent",
    "benches",
    "guest-kernel",
    "guest-rootfs",
    "shim",
    "tests",
    "vmm",
];

/// Which crate of ours may depend on which: the arrows of the picture in README.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("vmm/config", &[]),
    ("vmm/devices", &[]),
    ("vmm", &["vmbox-config", "vmbox-devices"]),
    ("agent/protocol", &[]),
    ("agent", &["vmbox-protocol"]),
    ("shim", &["vmbox-config", "vmbox-protocol"]),
    ("guest-rootfs", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Every tracked or new file that is not ignored, relative to the root.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(listed.status.success(), "git ls-files failed");
    let names = String::from_utf8(listed.stdout).unwrap();
    let files: Vec<_> = names
        .lines()
        .map(PathBuf::from)
        .filter(|path| root().join(path).is_file())
        .collect();
    assert!(
        files.len() > 30,
        "only {} files: not in a checkout?",
        files.len()
    );
    files
}

fn rust_files() -> Vec<(PathBuf, String)> {
    let rust = |path: &PathBuf| path.extension().is_some_and(|e| e == "rs");
    files()
        .into_iter()
        .filter(rust)
        .map(|path| {
            (
                path.clone(),
                fs::read_to_string(root().join(&path)).unwrap(),
            )
        })
        .collect()
}

fn offenders(mut offends: impl FnMut(&Path, &str) -> Option<String>) -> Vec<String> {
    rust_files()
        .iter()
        .filter_map(|(path, text)| offends(path, text))
        .collect()
}

#[track_caller]
fn none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn top_level_holds_only_the_rooms() {
    let mut strangers: Vec<_> = files()
        .iter()
        .map(|path| {
            path.components()
                .next()
                .unwrap()
                .as_os_str()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()))
        .collect();
    strangers.dedup();
    none("not a room", &strangers);
}

#[test]
fn arrows_point_down() {
    for (crate_dir, allowed) in ARROWS {
        let manifest = fs::read_to_string(root().join(crate_dir).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let ours: Vec<_> = dependencies
            .lines()
            .take_while(|line| !line.starts_with('['))
            .filter_map(|line| line.split(['.', ' ', '=']).next())
            .filter(|name| name.starts_with("vmbox-") && !allowed.contains(name))
            .map(|name| format!("{crate_dir} -> {name}"))
            .collect();
        none("an arrow points the wrong way", &ours);
    }
}

/// The rooms whose programs users install.
const PRODUCT: &[&str] = &["vmm", "agent", "shim", "guest-rootfs"];

/// In any form: an attribute, `cfg!`, inside of `all(…)`.
#[test]
fn target_arch_appears_only_in_the_arch_module() {
    let needle = concat!("target", "_arch");
    none(
        "what depends on the architecture belongs in vmm/src/arch",
        &offenders(|path, text| {
            let product = PRODUCT.iter().any(|room| path.starts_with(room));
            (product && text.contains(needle) && path != Path::new("vmm/src/arch/mod.rs"))
                .then(|| path.display().to_string())
        }),
    );
}

/// Where the product asks at run time what it was built for: seccomp's and OCI's names of this machine.
const ASK_THE_ARCHITECTURE: &[&str] = &["shim/src/pod/seccomp.rs", "shim/src/storage/manifest.rs"];

#[test]
fn only_names_depend_on_the_architecture_outside_of_the_arch_module() {
    let needle = concat!("consts::", "ARCH");
    let mut asking = offenders(|path, text| {
        let product = PRODUCT.iter().any(|room| path.starts_with(room));
        (product && text.contains(needle)).then(|| path.display().to_string())
    });
    asking.sort();
    assert_eq!(asking, ASK_THE_ARCHITECTURE);
}

/// A value may differ between the architectures (`cfg!`); a test is for both, and one that is not in every run says why.
#[test]
fn no_system_test_is_left_out_without_a_reason() {
    let attributes = [concat!("#[", "cfg"), concat!("#![", "cfg")];
    let mut left_out = Vec::new();
    for (path, text) in rust_files() {
        if !path.starts_with("tests/system") {
            continue;
        }
        let attribute = |line: &&str| {
            let line = line.trim_start();
            attributes.iter().any(|start| line.starts_with(start))
                || line.starts_with(concat!("#[", "ignore]"))
        };
        let lines = text.lines().filter(attribute);
        left_out.extend(lines.map(|line| format!("{}: {}", path.display(), line.trim())));
    }
    none("left out, or without saying why", &left_out);
}

#[test]
fn devices_are_safe_code() {
    none(
        "unsafe has no place in vmm/devices/src",
        &offenders(|path, text| {
            let unsafe_code =
                |line: &&str| line.contains("unsafe {") || line.trim_start().starts_with("unsafe ");
            let found =
                path.starts_with("vmm/devices/src") && text.lines().any(|line| unsafe_code(&line));
            found.then(|| path.display().to_string())
        }),
    );
}

#[test]
fn devices_name_no_kvm_and_no_container() {
    none(
        "vmm/devices knows neither KVM nor containers",
        &offenders(|path, text| {
            (path.starts_with("vmm/devices/src") && text.contains("kvm_ioctls"))
                .then(|| path.display().to_string())
        }),
    );
}

#[test]
fn every_virtio_device_cites_its_section() {
    for device in [
        "rng",
        "blk/mod",
        "balloon",
        "mem",
        "net/mod",
        "vsock/mod",
        "fs/mod",
    ] {
        let text = fs::read_to_string(root().join(format!("vmm/devices/src/{device}.rs"))).unwrap();
        let head: String = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .collect();
        assert!(
            head.contains('§'),
            "{device}.rs: the module doc cites no section of virtio 1.2"
        );
    }
}

#[test]
fn files_open_with_their_purpose() {
    none(
        "a file opens with one sentence that says what it is for",
        &offenders(|path, text| {
            let documented = text.starts_with("//!") || text.starts_with("#![");
            (!documented).then(|| path.display().to_string())
        }),
    );
}

#[test]
fn files_stay_readable() {
    none(
        "longer than 500 lines",
        &offenders(|path, text| {
            let lines = text.lines().count();
            (lines > 500).then(|| format!("{} ({lines})", path.display()))
        }),
    );
}

#[test]
fn no_drawer_for_odds_and_ends() {
    let strangers: Vec<_> = files()
        .iter()
        .filter(|path| {
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_str()
                .unwrap_or_default();
            [
                "util", "utils", "common", "helper", "helpers", "manager", "misc",
            ]
            .contains(&stem)
        })
        .map(|path| path.display().to_string())
        .collect();
    none("names that say nothing", &strangers);
}

#[test]
fn each_room_has_a_readme_of_a_screen() {
    for room in [
        "vmm",
        "vmm/devices",
        "agent",
        "shim",
        "guest-kernel",
        "guest-rootfs",
        "tests",
        "benches",
    ] {
        let text = fs::read_to_string(root().join(room).join("README.md"))
            .unwrap_or_else(|e| panic!("{room}/README.md: {e}"));
        assert!(
            text.lines().count() <= 70,
            "{room}/README.md is longer than a screen"
        );
    }
}

/// Words in backquotes that look like paths of ours (`vmm/src/…`) must be there.
#[test]
fn paths_named_in_readmes_exist() {
    let rooms = [
        "vmm/",
        "agent/",
        "shim/",
        "tests/",
        "benches/",
        "guest-kernel/",
        "guest-rootfs/",
        ".ci/",
        ".cargo/",
    ];
    let mut missing = Vec::new();
    for readme in files().iter().filter(|path| path.ends_with("README.md")) {
        let text = fs::read_to_string(root().join(readme)).unwrap();
        for word in text.split('`').skip(1).step_by(2) {
            let path_like = rooms.iter().any(|room| word.starts_with(room))
                && !word.contains(['*', '<', '{', ' ', '…']);
            if path_like && !root().join(word).exists() {
                missing.push(format!("{}: {word}", readme.display()));
            }
        }
    }
    none("named, but not there", &missing);
}

#[test]
fn no_work_is_left_as_a_note() {
    let notes = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    none(
        "an open end in the code",
        &offenders(|path, text| {
            notes
                .iter()
                .any(|note| text.contains(note))
                .then(|| path.display().to_string())
        }),
    );
}
