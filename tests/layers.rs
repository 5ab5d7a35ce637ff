//! The architecture holds: which layer may use which, where `unsafe` may stand, what a source file looks like.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer with the layers it may use. `src/lib.rs` and `src/main.rs` stand above all.
const ARROWS: &[(&str, &[&str])] = &[
    ("escape", &[]),
    ("error", &["escape"]),
    ("input", &["error"]),
    ("sha256", &[]),
    ("output", &["error", "escape", "input", "sha256"]),
    ("codec", &["error"]),
    ("format", &["error", "sha256", "codec"]),
    ("pack", &["error", "escape", "input", "output", "sha256", "codec", "format"]),
    ("read", &["error", "escape", "input", "output", "sha256", "codec", "format"]),
    ("gpu", &["error", "codec", "format", "read"]),
    ("mount", &["error", "escape", "input", "codec", "format", "read", "gpu"]),
    ("store", &["error", "output", "codec", "format", "read", "mount"]),
    (
        "cli",
        &[
            "error", "escape", "input", "output", "codec", "format", "pack", "read", "mount",
            "store", "gpu",
        ],
    ),
];

/// The only places where `unsafe` may stand.
const UNSAFE: [&str; 7] = [
    "src/codec/simd",
    "src/sha256/simd.rs",
    "src/pack/lease.rs",
    "src/read/pages.rs",
    "src/read/storage.rs",
    "src/gpu",
    "src/mount/handed.rs",
];

/// The longest file, in lines.
const LONGEST: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.rs` file under `dir`, as (path below the root, text).
fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut todo = vec![root().join(dir)];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for path in entries.map(|entry| entry.expect("a directory entry").path()) {
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                found.push((path.strip_prefix(root()).expect("below the root").into(), text));
            }
        }
    }
    found.sort();
    found
}

/// The text without its comments and without the text of its strings, as far as line by line goes.
fn code(text: &str) -> String {
    let bare = |line: &str| {
        let parts: Vec<&str> = line.split('"').collect();
        let unquoted: Vec<&str> = parts.into_iter().step_by(2).collect();
        let unquoted = unquoted.join("\"\"");
        unquoted.split("//").next().unwrap_or_default().to_string()
    };
    text.lines().map(bare).collect::<Vec<_>>().join("\n")
}

/// The identifier at the start of `text`.
fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The modules at the crate's root that `code` names, as `crate::x` or in `crate::{x, y::z}`.
fn modules_used(code: &str) -> BTreeSet<&str> {
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = code[at + "crate::".len()..].trim_start();
        let Some(group) = rest.strip_prefix('{') else {
            used.insert(identifier(rest));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && !c.is_whitespace() => {
                    used.insert(identifier(&group[i..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    // What lib.rs re-exports (types, so capitals) is of the error layer, which all may use.
    used.retain(|name| name.starts_with(char::is_lowercase));
    used
}

#[test]
fn layers_use_only_the_layers_below_them() {
    for (path, text) in sources("src") {
        let layer =
            path.components().nth(1).expect("below src").as_os_str().to_str().expect("UTF-8");
        let layer = layer.trim_end_matches(".rs");
        if ["lib", "main"].contains(&layer) {
            continue;
        }
        let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == layer).unwrap_or_else(|| {
            panic!(
                "{}: a layer that is not in the map; draw its arrows in {}",
                path.display(),
                file!()
            )
        });
        let code = code(&text);
        for module in modules_used(&code) {
            assert!(
                module == layer || allowed.contains(&module),
                "{}: {layer} may not use {module}",
                path.display()
            );
        }
    }
}

#[test]
fn the_arrows_make_no_circle() {
    for (i, (layer, uses)) in ARROWS.iter().enumerate() {
        for used in *uses {
            let below = ARROWS[..i].iter().any(|(name, _)| name == used);
            assert!(below || *layer == "cli", "{layer} uses {used}, which is not below it");
        }
    }
}

#[test]
fn unsafe_stands_only_where_it_must() {
    for (path, text) in sources("src") {
        if UNSAFE.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        let code = code(&text);
        let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        assert!(
            words.all(|word| word != "unsafe"),
            "{}: unsafe outside {UNSAFE:?}",
            path.display()
        );
    }
}

#[test]
fn only_the_command_line_prints() {
    for (path, text) in sources("src").into_iter().filter(|(path, _)| !path.starts_with("src/cli"))
    {
        let code = code(&text);
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        let prints = ["print!(", "println!(", "dbg!("].iter().any(|p| code.contains(p));
        assert!(!prints, "{}: prints; report through a trait, or log", path.display());
    }
}

#[test]
fn every_file_says_its_one_job_and_stays_short() {
    for (path, text) in ["src", "tests", "benches", "examples"].iter().flat_map(|dir| sources(dir))
    {
        assert!(text.starts_with("//!"), "{}: does not open with `//!`", path.display());
        let lines = text.lines().count();
        assert!(lines <= LONGEST, "{}: {lines} lines, more than {LONGEST}", path.display());
    }
}

#[test]
fn the_reader_of_imports_reads_groups_and_paths() {
    let code =
        "use crate::{codec::{self, a::b}, error::Error, Result};\nlet x = crate::read::peek(f);";
    assert_eq!(modules_used(code), BTreeSet::from(["codec", "error", "read"]));
}
