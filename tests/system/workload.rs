//! Work that people do in containers, not toys.

use std::fs;

use crate::kit::Corner;

#[test]
fn apt_reads_a_repository() {
    let corner = Corner::new("apt");
    // A flat repository made of what dpkg knows to be installed: a real index, without a network.
    let script = r#"set -e
mkdir /repo
awk 'BEGIN { RS=""; ORS="\n\n" } { sub(/\nStatus: [^\n]*/, ""); match($0, /^Package: [^\n]*/);
  print $0 "\nFilename: ./" substr($0, 10, RLENGTH - 9) ".deb\nSize: 1\nSHA256: 0000000000000000000000000000000000000000000000000000000000000000" }' /var/lib/dpkg/status > /repo/Packages
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] copy:/repo ./' > /etc/apt/sources.list
apt-get -o APT::Sandbox::User=root update >/dev/null
apt-cache policy coreutils | grep -q 'copy:/repo'
apt-cache pkgnames | wc -l
grep -c ^Package: /repo/Packages"#;
    let out = corner.sh(&["--memory", "256M"], script).exits(0);
    let counts: Vec<u32> = out
        .lines()
        .map(|line| line.trim().parse().unwrap())
        .collect();
    assert!(counts[0] >= counts[1] && counts[1] > 50, "{out}");
}

#[test]
fn python_multiprocessing_works() {
    let corner = Corner::new("python");
    let script = "python3 -c '
from multiprocessing import Pool, Value, Lock
import hashlib
def work(n): return hashlib.sha256(str(n).encode()).hexdigest()
if __name__ == \"__main__\":
    with Pool(4) as pool: print(len(set(pool.map(work, range(2000)))))
'";
    assert_eq!(
        corner
            .sh(&["--cpus", "2", "--memory", "256M"], script)
            .exits(0),
        "2000\n"
    );
}

#[test]
fn fio_verifies_on_the_share() {
    let corner = Corner::new("fio-share");
    let script = "fio --name=v --filename=/fio.data --size=8m --rw=randwrite --bs=4k --verify=crc32c --do_verify=1 --verify_fatal=1 --ioengine=psync --minimal >/dev/null && echo ok";
    assert_eq!(corner.sh(&["--memory", "256M"], script).exits(0), "ok\n");
}

#[test]
fn fio_verifies_on_a_disk() {
    let corner = Corner::new("fio-disk");
    let disk = corner.path("disk.img");
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let script = "fio --name=v --filename=/dev/vda --size=16m --rw=randwrite --bs=4k --verify=crc32c --do_verify=1 --verify_fatal=1 --direct=1 --ioengine=psync --minimal >/dev/null && echo ok";
    let out = corner
        .sh(
            &["--memory", "256M", "--disk", disk.to_str().unwrap()],
            script,
        )
        .exits(0);
    assert_eq!(out, "ok\n");
    assert!(
        fs::read(&disk).unwrap().iter().any(|&byte| byte != 0),
        "nothing reached the file"
    );
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let corner = Corner::new("disk-ro");
    let disk = corner.path("disk.img");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let option = format!("{}:ro", disk.display());
    let out = corner.sh(&["--disk", &option], "head -c 1 /dev/vda | od -An -tu1; dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null || echo refused").exits(0);
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["7", "refused"]);
    assert!(fs::read(&disk).unwrap().iter().all(|&byte| byte == 7));
}
