//! Image references.

use std::fs;

use crate::storage::{ImageRef, ImageRefError};

#[test]
fn layouts_are_told_from_their_tags() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["image", "with:colon"] {
        fs::create_dir(temp.path().join(name)).unwrap();
        fs::write(temp.path().join(name).join("oci-layout"), "{}").unwrap();
    }
    let base = temp.path().to_str().unwrap();
    let parsed = |text: &str| match ImageRef::parse(&format!("oci:{base}/{text}")).unwrap() {
        ImageRef::Layout { dir, tag } => {
            (dir.file_name().unwrap().to_str().unwrap().to_owned(), tag)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(parsed("image"), ("image".into(), None));
    assert_eq!(parsed("image:v1"), ("image".into(), Some("v1".into())));
    assert_eq!(parsed("with:colon"), ("with:colon".into(), None));
    assert_eq!(
        parsed("with:colon:v1"),
        ("with:colon".into(), Some("v1".into()))
    );
    assert_eq!(
        parsed("image:example.org/a:v1"),
        ("image".into(), Some("example.org/a:v1".into()))
    );
}

#[test]
fn wrong_references_say_what_to_do() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_str().unwrap();
    let error = |text: &str| ImageRef::parse(text).unwrap_err();
    assert_eq!(error(""), ImageRefError::Empty);
    assert_eq!(error("oci:"), ImageRefError::Empty);
    assert!(
        error("debian:12")
            .to_string()
            .contains("skopeo copy docker://")
    );
    assert!(error(dir).to_string().contains(&format!("dir:{dir}")));
    assert!(
        error(&format!("oci:{dir}"))
            .to_string()
            .contains("oci-layout")
    );
    assert!(error("dir:/nowhere").to_string().contains("/nowhere"));
    assert!(
        error("/dev/null")
            .to_string()
            .contains("neither a regular file")
    );
}
