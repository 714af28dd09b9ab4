//! Mounts of config.json that host and guest make together: other ids than on disk, and options that disagree.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::bundle::Bundle;

/// A directory of the host with a file of root's and one of user 1000's.
fn two_files(bundle: &Bundle) {
    let data = bundle.host("data");
    fs::create_dir(&data).unwrap();
    for (name, id) in [("roots", 0), ("users", 1000)] {
        fs::write(data.join(name), "").unwrap();
        chown(data.join(name), Some(id), Some(id)).unwrap();
    }
}

/// Mounts that directory on `/mnt/NAME`.
fn mount_data(bundle: &mut Bundle, name: &str, mut fields: Value) {
    fs::create_dir_all(bundle.inside("/mnt").join(name)).unwrap();
    fields["source"] = json!(bundle.host("data"));
    fields["destination"] = json!(format!("/mnt/{name}"));
    bundle.mount(fields);
}

fn one_id(on_disk: u32, outside: u32) -> Value {
    json!([{ "containerID": on_disk, "hostID": outside, "size": 1 }])
}

fn owner(file: &Path) -> (u32, u32) {
    let found = fs::metadata(file).unwrap();
    (found.uid(), found.gid())
}

#[test]
fn a_mapped_mount_shows_the_containers_ids_and_stores_the_hosts() {
    let mut bundle = Bundle::new("mounts-idmap");
    bundle.user_namespace();
    bundle.capabilities(&["CAP_CHOWN"]);
    two_files(&bundle);
    mount_data(
        &mut bundle,
        "mapped",
        json!({ "options": ["rbind", "ridmap"] }),
    );
    mount_data(
        &mut bundle,
        "own",
        json!({ "options": ["bind"], "uidMappings": one_id(1000, 100_005), "gidMappings": one_id(0, 100_006) }),
    );
    mount_data(&mut bundle, "plain", json!({ "options": ["bind"] }));
    let seen = bundle.lines(
        "cd /mnt; stat -c '%n %u %g' mapped/roots mapped/users own/roots own/users plain/users
         touch mapped/new mapped/given; chown 1000:1001 mapped/given; stat -c '%n %u %g' mapped/new mapped/given",
    );
    assert_eq!(
        seen,
        [
            "mapped/roots 0 0",
            "mapped/users 1000 1000",
            "own/roots 65534 6",
            "own/users 5 65534",
            "plain/users 65534 65534",
            "mapped/new 0 0",
            "mapped/given 1000 1001",
        ]
    );
    assert_eq!(owner(&bundle.host("data/new")), (0, 0));
    assert_eq!(owner(&bundle.host("data/given")), (1000, 1001));
}

#[test]
fn ids_are_mapped_without_a_user_namespace_too() {
    let mut bundle = Bundle::new("mounts-idmap-alone");
    bundle.capabilities(&["CAP_DAC_OVERRIDE"]);
    two_files(&bundle);
    let map = one_id(0, 7);
    mount_data(
        &mut bundle,
        "own",
        json!({ "options": ["bind", "idmap"], "uidMappings": map, "gidMappings": map }),
    );
    let seen =
        bundle.lines("cd /mnt/own; stat -c '%u %g' roots users; touch new 2>&1 | sed 's/.*: //'");
    let unmapped = "Value too large for defined data type";
    assert_eq!(seen, ["7 7", "65534 65534", unmapped]);
}

#[test]
fn ids_that_can_not_be_mapped_are_refused_by_name() {
    let refuse = |name: &'static str, mount: &dyn Fn(&Bundle) -> Value, words: &[&str]| {
        let mut bundle = Bundle::new(name);
        let mount = mount(&bundle);
        bundle.mount(mount);
        bundle.refuses(words);
    };
    refuse(
        "mounts-no-idmap",
        &|b| json!({ "source": b.host("."), "destination": "/mnt", "options": ["bind", "idmap"] }),
        &["mounts: /mnt: uidMappings: none"],
    );
    refuse(
        "mounts-no-bind",
        &|_| json!({ "type": "tmpfs", "destination": "/mnt", "options": ["idmap"] }),
        &["mounts: /mnt: only a bind mount"],
    );
    refuse(
        "mounts-no-file-system",
        &|b| {
            let map = one_id(0, 7);
            json!({ "source": b.inside("/srv"), "destination": "/mnt", "options": ["bind"],
                    "uidMappings": map, "gidMappings": map })
        },
        &["rootfs/srv can't be mapped", "the file system overlay"],
    );
}

#[test]
fn options_are_taken_as_runc_takes_them() {
    let mut bundle = Bundle::new("mounts-options");
    two_files(&bundle);
    let below = bundle.host("data/below");
    fs::create_dir(&below).unwrap();
    let none = None::<&str>;
    mount(Some("tmpfs"), &below, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    for (name, options) in [
        ("last", json!(["bind", "ro", "rw", "rslave"])),
        ("all", json!(["rbind", "rro", "rprivate"])),
        ("mixed", json!(["rbind", "ro"])),
        ("alone", json!(["bind", "runbindable"])),
    ] {
        mount_data(&mut bundle, name, json!({ "options": options }));
    }
    // Relative to the root, which runc tells to be deprecated.
    bundle.mount(json!({ "type": "tmpfs", "destination": "mnt/relative",
                         "options": ["size=64k", "mode=0700", "unbindable"] }));
    let seen = bundle.lines(
        "cd /mnt; touch last/x; for file in all/x all/below/x mixed/x mixed/new; do touch $file 2>&1 | sed 's/.*: //'; done
         touch mixed/below/x && ls all/below
         ls alone/below | wc -l; stat -c %a relative; df --output=size relative | tail -1 | tr -d ' '
         awk '$5 ~ /^.mnt.(alone|relative)/ { print $5, $7 }' /proc/self/mountinfo",
    );
    let written = below.join("x").exists();
    umount2(&below, MntFlags::MNT_DETACH).unwrap();
    let refused = "Read-only file system";
    assert_eq!(
        seen,
        [
            refused,
            refused,
            refused,
            refused,
            "x",
            "0",
            "700",
            "64",
            "/mnt/alone unbindable",
            "/mnt/relative unbindable",
        ]
    );
    assert!(written && bundle.host("data/x").exists() && !bundle.host("data/new").exists());
}
