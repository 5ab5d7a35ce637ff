//! What `docs/SEMANTICS.md` guarantees for a store: one test for each row of its table, on a plain
//! file and on a packed one.
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

#[path = "store_semantics/attributes.rs"]
mod attributes;
#[path = "store_semantics/content.rs"]
mod content;
#[path = "store_semantics/locks.rs"]
mod locks;
#[path = "store_semantics/maps.rs"]
mod maps;
#[path = "store_semantics/names.rs"]
mod names;
#[path = "store_semantics/other_mounts.rs"]
mod other_mounts;
#[path = "store_semantics/own_archives.rs"]
mod own_archives;
#[path = "store_semantics/packing.rs"]
mod packing;
#[path = "store_semantics/renames.rs"]
mod renames;
#[path = "store_semantics/space.rs"]
mod space;
#[path = "store_semantics/store.rs"]
mod store;
#[path = "store_semantics/users.rs"]
mod users;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The names of the test functions in a directory's sources.
fn tests_in(dir: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line == "#[test]" {
                let function = lines.next().unwrap_or_default();
                let name = function.strip_prefix("fn ").and_then(|rest| rest.split_once('('));
                names.insert(name.expect("a function").0.to_owned());
            }
        }
    }
    names
}

#[test]
fn every_guarantee_has_a_test_and_every_test_a_guarantee() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/SEMANTICS.md")).unwrap();
    let mut named = BTreeSet::new();
    let rows = document.lines().skip_while(|line| !line.starts_with("| guarantee | test |"));
    for row in rows.skip(2).take_while(|line| line.starts_with('|')) {
        let (_, test) = row.trim_end_matches([' ', '|']).rsplit_once('|').expect("two columns");
        let test = test.trim().trim_matches('`').to_owned();
        assert!(named.insert(test), "two rows name the same test: {row}");
    }
    assert!(named.len() > 20, "the table is there");
    let there = tests_in(&root.join("tests/store_semantics"));
    let missing: Vec<_> = named.difference(&there).collect();
    let unnamed: Vec<_> = there.difference(&named).collect();
    assert!(missing.is_empty(), "named in docs/SEMANTICS.md, but no test: {missing:?}");
    assert!(unnamed.is_empty(), "not named in docs/SEMANTICS.md: {unnamed:?}");
}
