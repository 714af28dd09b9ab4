//! The share is POSIX: suites that others wrote, on the virtio-fs root of a container.

use std::fs;

use crate::kit::{Corner, image};

/// What Debian's virtiofsd scores on the same kernel: the bar.
const PJDFSTEST_PASSES: u32 = 384;

/// Everything that Linux offers and pjdfstest can judge; Debian's names for the two identities that it switches to.
const PJDFSTEST_CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}

[settings]
naptime = 0.01
allow_remount = false
expected_failures = []

[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"#;

/// On a volume, which is the share without an overlay: overlayfs refuses to make a character device 0:0, its own mark of a
/// deleted file, and pjdfstest makes many.
#[test]
fn pjdfstest_passes_what_virtiofsd_passes() {
    let corner = Corner::new("pjdfstest");
    let volume = corner.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(corner.path("pjdfstest.toml"), PJDFSTEST_CONFIG).unwrap();
    let work = format!("{}:/work", volume.display());
    let config = format!(
        "{}:/pjdfstest.toml:ro",
        corner.path("pjdfstest.toml").display()
    );
    let options = [
        "--memory",
        "512M",
        "--cap-add",
        "ALL",
        "-v",
        &work,
        "-v",
        &config,
    ];
    let script = "mkdir -m 755 /dev/shm/second && cd /work && pjdfstest -c /pjdfstest.toml -p /work -s /dev/shm/second 2>&1 | tail -n 400";
    let out = corner.sh(&options, script).stdout;
    let passed = number_before(&out, "passed");
    let failed = number_before(&out, "failed");
    println!("pjdfstest: {passed} passed, {failed} failed");
    assert!(passed >= PJDFSTEST_PASSES && failed == 0, "{out}");
}

/// The number that stands before `word` in the last line which has both.
fn number_before(text: &str, word: &str) -> u32 {
    let found = |line: &str| {
        let words: Vec<_> = line
            .split(|c: char| !c.is_alphanumeric())
            .filter(|w| !w.is_empty())
            .collect();
        words
            .windows(2)
            .find(|pair| pair[1] == word)
            .and_then(|pair| pair[0].parse().ok())
    };
    text.lines()
        .rev()
        .find_map(found)
        .unwrap_or_else(|| panic!("no number before {word:?} in:\n{text}"))
}

fn fsx(corner: &Corner, operations: u32, dax: &str, mmap: bool) {
    let config = if mmap {
        "[weights]\n"
    } else {
        "[weights]\nmapread = 0\nmapwrite = 0\n"
    };
    let script =
        format!("printf '{config}' > /fsx.toml; fsx -f /fsx.toml -N {operations} -S 42 /fsx.data");
    let done = corner.run([
        "--rm",
        "--memory",
        "256M",
        "--dax-window",
        dax,
        &image(),
        "sh",
        "-c",
        &script,
    ]);
    assert!(
        done.status.success(),
        "dax {dax}, mmap {mmap}:\n{}\n{}",
        done.stdout,
        done.stderr
    );
}

/// With and without a DAX window, with and without mmap.
const WAYS: [(&str, bool); 4] = [("0", false), ("0", true), ("64M", false), ("64M", true)];

#[test]
fn fsx_finds_nothing_in_200_operations_each_way() {
    for (dax, mmap) in WAYS {
        fsx(&Corner::new("fsx"), 200, dax, mmap);
    }
}

#[test]
#[ignore = "half an hour under emulation: `cargo dev test --tier long`"]
fn fsx_finds_nothing_in_20000_operations_each_way() {
    for (dax, mmap) in WAYS {
        fsx(&Corner::new("fsx-long"), 20_000, dax, mmap);
    }
}
