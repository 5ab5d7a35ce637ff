//! The architecture holds: which layer may use which, that no files of a room import each other,
//! where `unsafe` may stand, and what a source file looks like.

use imports::{Crate, circles};
use proc_macro2::TokenTree;
use source::{Source, any, functions, is_punct, without_tests};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "layers/imports.rs"]
mod imports;
#[path = "layers/source.rs"]
mod source;

/// Each layer with the layers it may use. `src/lib.rs` and `src/main.rs` stand above all.
const ARROWS: &[(&str, &[&str])] = &[
    ("escape", &[]),
    ("error", &["escape"]),
    ("log_once", &[]),
    ("program", &["error"]),
    ("input", &["error"]),
    ("sha256", &[]),
    ("output", &["error", "escape", "input", "sha256"]),
    ("codec", &["error"]),
    ("format", &["error", "sha256", "codec"]),
    ("pack", &["error", "escape", "input", "output", "sha256", "codec", "format"]),
    ("remote", &["error"]),
    ("read", &["error", "escape", "input", "output", "sha256", "codec", "format", "remote"]),
    ("cache", &["error", "codec", "format", "read"]),
    ("gpu", &["error", "codec", "format", "read", "cache"]),
    (
        "readahead",
        &["error", "escape", "log_once", "program", "codec", "format", "read", "cache", "gpu"],
    ),
    (
        "mount",
        &[
            "error",
            "escape",
            "log_once",
            "program",
            "input",
            "codec",
            "format",
            "remote",
            "read",
            "cache",
            "gpu",
            "readahead",
        ],
    ),
    (
        "store",
        &[
            "error",
            "escape",
            "log_once",
            "output",
            "codec",
            "format",
            "pack",
            "read",
            "cache",
            "readahead",
            "mount",
        ],
    ),
    (
        "cli",
        &[
            "error",
            "escape",
            "input",
            "output",
            "program",
            "codec",
            "format",
            "pack",
            "remote",
            "read",
            "cache",
            "gpu",
            "readahead",
            "mount",
            "store",
        ],
    ),
];

/// The only places where `unsafe` may stand.
const UNSAFE: [&str; 13] = [
    "src/codec/simd",
    "src/sha256/simd.rs",
    "src/output/clone.rs",
    "src/pack/lease.rs",
    "src/cache/region.rs",
    "src/cache/slab.rs",
    "src/read/local.rs",
    "src/gpu",
    "src/mount/inherited_fd.rs",
    "src/store/idle.rs",
    "python/src/memory.rs",
    // Vouches for the memory that its caller vouches for.
    "python/src/archive.rs",
    "python/src/cuda.rs",
];

/// The longest file in `src`, and elsewhere, in lines.
const LONGEST: usize = 400;
const LONGEST_TEST: usize = 500;

/// The longest line, in characters.
const WIDEST: usize = 100;

/// The longest function in `src`, in lines.
const LONGEST_FUNCTION: usize = 60;

/// Functions that may be longer: file, name, and the reason.
const LONG_FUNCTIONS: [(&str, &str, &str); 1] =
    [("src/sha256/simd.rs", "compress", "the rounds of SHA-256, in registers from first to last")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `dir` with one of these extensions, as (path below `dir`, text).
fn files(dir: &str, extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let top = root().join(dir);
    let mut found = Vec::new();
    let mut todo = vec![top.clone()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|one| e == *one)) {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                found.push((path.strip_prefix(&top).expect("below the top").into(), text));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    imports::read(files("src", &["rs"]))
}

/// Sources for a test of the checks themselves, given as (path below `src`, text).
fn planted(files: &[(&str, &str)]) -> Vec<Source> {
    let root = [("lib.rs", "")];
    imports::read(root.iter().chain(files).map(|(path, text)| (path.into(), (*text).to_owned())))
}

#[track_caller]
fn none(violations: &[String]) {
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn layers_use_only_the_layers_below_them() {
    let rooms = Crate::new(&sources()).rooms();
    let layers = &rooms[&Vec::new()];
    let forbidden = layers.iter().filter(|((layer, used), _)| {
        let (_, allowed) = ARROWS
            .iter()
            .find(|(name, _)| name == layer)
            .unwrap_or_else(|| panic!("{layer} has no entry in ARROWS"));
        !allowed.contains(&used.as_str())
    });
    let forbidden = forbidden
        .map(|((layer, used), place)| format!("{layer} may not use {used}: src/{place}"))
        .collect::<Vec<_>>();
    none(&forbidden);
}

#[test]
fn the_arrows_point_down() {
    for (i, (layer, uses)) in ARROWS.iter().enumerate() {
        for used in *uses {
            let below = ARROWS[..i].iter().any(|(name, _)| name == used);
            assert!(below, "{layer} uses {used}, which is not below it");
        }
    }
}

#[test]
fn every_entry_names_what_exists() {
    let layers = ARROWS.iter().map(|(name, _)| format!("src/{name}"));
    let files = UNSAFE.iter().copied().chain(LONG_FUNCTIONS.iter().map(|(file, ..)| *file));
    let missing = layers
        .filter(|layer| {
            !root().join(layer).is_dir() && !root().join(format!("{layer}.rs")).is_file()
        })
        .chain(files.filter(|path| !root().join(path).exists()).map(str::to_owned));
    none(&missing.map(|path| format!("{path} does not exist")).collect::<Vec<_>>());
}

#[test]
fn no_files_of_a_room_import_each_other() {
    none(&circles(&sources()));
}

#[test]
fn unsafe_stands_only_where_it_must() {
    let python = imports::read(files("python/src", &["rs"]));
    let python = python.iter().map(|source| (Path::new("python/src").join(&source.path), source));
    let library = sources();
    let library = library.iter().map(|source| (Path::new("src").join(&source.path), source));
    for (path, source) in library.chain(python) {
        if UNSAFE.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        let found =
            any(&source.tokens, &|t| matches!(t, [TokenTree::Ident(word), ..] if word == "unsafe"));
        assert!(!found, "{}: unsafe outside {UNSAFE:?}", path.display());
    }
}

#[test]
fn only_the_command_line_prints() {
    for source in sources().iter().filter(|source| !source.path.starts_with("cli")) {
        let prints = any(&without_tests(&source.tokens), &|tokens| {
            matches!(tokens, [TokenTree::Ident(word), bang, ..] if is_punct(Some(bang), '!')
                && ["print", "println", "eprint", "eprintln", "dbg"].iter().any(|p| word == p))
        });
        assert!(!prints, "src/{}: prints; report through a trait, or log", source.path.display());
    }
}

/// Every file of code with one of these extensions, as (path below the root, text).
fn all_files(extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let dirs = ["src", "tests", "benches", "examples", "fuzz/src", "fuzz/fuzz_targets", "python"];
    let below = |dir| {
        files(dir, extensions)
            .into_iter()
            .map(move |(path, text)| (Path::new(dir).join(path), text))
    };
    dirs.into_iter().flat_map(below).collect()
}

#[test]
fn every_file_opens_with_its_one_job() {
    for (path, text) in all_files(&["rs"]) {
        assert!(text.starts_with("//!"), "{}: does not open with `//!`", path.display());
    }
}

#[test]
fn files_and_lines_stay_short() {
    let mut violations = Vec::new();
    for (path, text) in all_files(&["rs", "py", "cpp", "h", "cu", "cuh"]) {
        let most = if path.starts_with("src") || path.starts_with("python/src") {
            LONGEST
        } else {
            LONGEST_TEST
        };
        let lines = text.lines().count();
        if lines > most {
            violations.push(format!("{}: {lines} lines, more than {most}", path.display()));
        }
        for (i, line) in text.lines().enumerate() {
            let width = line.chars().count();
            if width > WIDEST {
                let place = format!("{}:{}", path.display(), i + 1);
                violations.push(format!("{place}: {width} columns, more than {WIDEST}"));
            }
        }
    }
    none(&violations);
}

#[test]
fn functions_stay_short() {
    let mut violations = Vec::new();
    let mut excused = BTreeSet::new();
    for source in sources() {
        let mut found = Vec::new();
        functions(&source.tokens, &mut found);
        let file = format!("src/{}", source.path.display());
        for function in found.iter().filter(|function| function.lines > LONGEST_FUNCTION) {
            let name = &function.name;
            if LONG_FUNCTIONS.iter().any(|(path, long, _)| *path == file && long == name) {
                excused.insert((file.clone(), name.clone()));
                continue;
            }
            violations
                .push(format!("{file}:{}: {name} has {} lines", function.line, function.lines));
        }
    }
    for (file, name, _) in LONG_FUNCTIONS {
        if !excused.contains(&(file.to_owned(), name.to_owned())) {
            violations.push(format!("{file}: {name} needs no exception"));
        }
    }
    none(&violations);
}

#[test]
fn circles_are_found_however_they_are_written() {
    let a = ("room/a.rs", "use super::b::X; pub struct Y;");
    let reexports = ("room/mod.rs", "mod a; mod b; pub use a::Y;");
    let plain = ("room/mod.rs", "mod a; mod b; mod c;");
    let b: &[(&str, &str)] = &[
        ("a path", "use super::a::Y;"),
        ("a path from the root", "use crate::room::a::Y;"),
        ("a module", "use super::a;"),
        ("a group", "use super::{other::Z, a::{self, Y}};"),
        ("a group of groups", "use crate::{room::{a::Y, other}, error::Error};"),
        ("a glob", "use super::a::*;"),
        ("another name", "use crate::room as here; fn f(y: here::a::Y) {}"),
        ("code", "fn f() -> X { super::a::f::<u8>() }"),
        ("the argument of a macro", r#"fn f() { println!("{}", super::a::f()) }"#),
        ("a type argument", "fn f() { <super::a::Y as Default>::default(); }"),
        ("a test", "#[cfg(test)] mod tests { use super::super::a::Y; }"),
        ("a test's code", "#[cfg(test)] mod tests { fn f() { crate::room::a::f(); } }"),
    ];
    for (what, b) in b {
        let found = circles(&planted(&[plain, a, ("room/b.rs", b)]));
        assert_eq!(found.len(), 1, "{what}: {found:?}");
    }
    let b: &[(&str, &str)] = &[
        ("a re-export", "use super::Y;"),
        ("a re-export, from the root", "use crate::room::Y;"),
        ("a re-export in a group", "use super::{Other, Y};"),
        ("a glob of the room", "use super::*;"),
        ("a re-export in code", "fn f() { super::Y::new(); }"),
        ("a re-export in a test", "#[cfg(test)] mod tests { use super::super::Y; }"),
    ];
    for (what, b) in b {
        let found = circles(&planted(&[reexports, a, ("room/b.rs", b)]));
        assert_eq!(found.len(), 1, "{what}: {found:?}");
    }
}

#[test]
fn circles_are_found_through_several_files_and_rooms() {
    let three = [
        ("a.rs", "use crate::b::X;"),
        ("b.rs", "use super::c::Y;"),
        ("c.rs", "fn f() { crate::a::g() }"),
    ];
    assert_eq!(circles(&planted(&three)).len(), 1);
    assert!(circles(&planted(&three[..2])).is_empty());
    let below = [
        ("room/mod.rs", "mod a; mod b;"),
        ("room/a/mod.rs", "mod deep;"),
        ("room/a/deep.rs", "use super::super::b::X;"),
        ("room/b.rs", "use super::a::Y;"),
    ];
    assert_eq!(circles(&planted(&below)).len(), 1);
    let inside = [
        ("room/mod.rs", "mod a;"),
        ("room/a/mod.rs", "mod x; mod y;"),
        ("room/a/x.rs", "use super::y::Y;"),
        ("room/a/y.rs", "use crate::room::a::x::X;"),
    ];
    assert_eq!(circles(&planted(&inside)).len(), 1);
    let elsewhere = [
        ("a.rs", r#"use crate::b::X; #[cfg(test)] #[path = "a_tests.rs"] mod tests;"#),
        ("a_tests.rs", "use super::*;"),
        ("b.rs", "pub struct X;"),
    ];
    assert!(circles(&planted(&elsewhere)).is_empty());
}

#[test]
fn a_room_may_use_its_children_and_they_its_items() {
    let room = [
        ("room/mod.rs", "mod a; mod b; pub use a::{Y, f}; pub struct Own; fn g() { b::f(); }"),
        ("room/a.rs", "use super::b::X; use super::Own; pub struct Y; use std::b::a;"),
        (
            "room/b.rs",
            r#"//! See [`super::a::Y`].
            use super::{Own, g};
            // use super::a::Y;
            pub(in crate::room) struct X;
            fn f(own: &super::Own) { let s = "super::a::Y"; own.a(); ::a::f(); }
            #[cfg(test)]
            mod tests { use super::*; use super::X; }"#,
        ),
    ];
    assert_eq!(circles(&planted(&room)), Vec::<String>::new());
}

#[test]
fn the_length_of_a_function_is_that_of_its_lines() {
    let text =
        "trait T { fn bodiless(); }\nconst fn long<T>(\n    t: T,\n) {\n    fn short() {}\n}\n";
    let source = planted(&[("a.rs", text)]).remove(1);
    let mut found = Vec::new();
    functions(&source.tokens, &mut found);
    let mut found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.line, f.lines)).collect();
    found.sort_unstable();
    assert_eq!(found, [("long", 2, 5), ("short", 5, 1)]);
}
