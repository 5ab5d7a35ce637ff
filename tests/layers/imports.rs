//! Who imports whom: paths resolved to modules, and circles among the modules of a room.
//!
//! A room is a module with children; the crate's root is one, too. A child counts with everything
//! below it as one node of the room.

use crate::source::{Import, Module, Segments, Source, moved};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// How many re-exports a path is followed through.
const MOST_HOPS: usize = 16;

/// All modules of the crate.
pub struct Crate {
    modules: BTreeMap<Segments, Module>,
}

/// Imports among the children of one room: (importer, imported) with the first place that says so.
pub type Graph = BTreeMap<(String, String), String>;

/// Read source files, given as (path below `src`, text).
pub fn read(files: impl IntoIterator<Item = (PathBuf, String)>) -> Vec<Source> {
    let mut sources: Vec<Source> = files
        .into_iter()
        .map(|(path, text)| {
            let module = module_of(&path);
            Source::new(path, module, &text)
        })
        .collect();
    let mut elsewhere = BTreeMap::new();
    for source in &sources {
        for (file, name) in moved(&source.tokens) {
            let module = source.module.iter().cloned().chain([name]).collect::<Segments>();
            elsewhere.insert(source.path.with_file_name(file), module);
        }
    }
    for source in &mut sources {
        if let Some(module) = elsewhere.remove(&source.path) {
            source.module = module;
        }
    }
    sources
}

/// The module that a file holds: `read/mod.rs` is `read`, `lib.rs` is the crate's root.
fn module_of(path: &Path) -> Segments {
    let path = path.with_extension("");
    let mut module: Segments =
        path.iter().map(|part| part.to_str().expect("UTF-8").to_owned()).collect();
    if module.last().is_some_and(|name| name == "mod") || module == ["lib"] {
        module.pop();
    }
    module
}

impl Crate {
    pub fn new(sources: &[Source]) -> Self {
        let modules = sources.iter().flat_map(Source::modules);
        Self { modules: modules.map(|module| (module.path.clone(), module)).collect() }
    }

    /// The rooms, each with the imports among its children.
    pub fn rooms(&self) -> BTreeMap<Segments, Graph> {
        let mut rooms: BTreeMap<Segments, Graph> = BTreeMap::new();
        for module in self.modules.values() {
            for (used, line, path) in self.uses(module) {
                let shared = module.path.iter().zip(&used).take_while(|(a, b)| a == b).count();
                // One of them is the room itself.
                let (Some(from), Some(to)) = (module.path.get(shared), used.get(shared)) else {
                    continue;
                };
                let place = format!("{}:{line}: {}", module.file.display(), path.join("::"));
                let graph = rooms.entry(used[..shared].to_vec()).or_default();
                graph.entry((from.clone(), to.clone())).or_insert(place);
            }
        }
        rooms
    }

    /// The modules that `module` uses, with the lines and the paths that say so.
    fn uses<'a>(
        &'a self,
        module: &'a Module,
    ) -> impl Iterator<Item = (Segments, usize, &'a [String])> {
        let imports = module.imports.iter().map(|import| {
            let mut used = BTreeSet::new();
            self.resolve(&module.path, &import.path, true, MOST_HOPS, &mut used);
            if import.name.is_none() {
                // A glob of a room brings in all that the room re-exports.
                let above = used.iter().filter(|m| module.path.starts_with(m)).cloned();
                let room = above.max_by_key(Vec::len).filter(|m| *m != module.path);
                if let Some(room) = room {
                    for Import { path, .. } in &self.modules[&room].imports {
                        self.resolve(&room, path, true, MOST_HOPS, &mut used);
                    }
                }
            }
            (used, import.line, &import.path[..])
        });
        let paths = module.paths.iter().map(|(path, line)| {
            let mut used = BTreeSet::new();
            self.resolve(&module.path, path, false, MOST_HOPS, &mut used);
            (used, *line, &path[..])
        });
        imports
            .chain(paths)
            .flat_map(|(used, line, path)| used.into_iter().map(move |m| (m, line, path)))
    }

    /// Add the modules that `path`, as written in the module `from`, leads through.
    fn resolve(
        &self,
        from: &[String],
        path: &[String],
        import: bool,
        hops: usize,
        used: &mut BTreeSet<Segments>,
    ) {
        let (mut at, mut rest) = (from, path);
        match path.first().map(String::as_str) {
            Some("crate") => (at, rest) = (&[], &rest[1..]),
            Some("self") => rest = &rest[1..],
            _ => {
                while let Some(("super", tail)) = rest.split_first().map(|(s, t)| (s.as_str(), t)) {
                    (at, rest) = (&at[..at.len().saturating_sub(1)], tail);
                }
            }
        }
        self.walk(at, rest, import, hops, used);
    }

    /// Add the module `at` and those that `rest`, which starts in it, leads through.
    fn walk(
        &self,
        at: &[String],
        rest: &[String],
        import: bool,
        hops: usize,
        used: &mut BTreeSet<Segments>,
    ) {
        let Some(module) = self.modules.get(at) else { return };
        used.insert(at.to_vec());
        let ([name, tail @ ..], Some(hops)) = (rest, hops.checked_sub(1)) else { return };
        let child = [at, std::slice::from_ref(name)].concat();
        let is_child = self.modules.contains_key(&child);
        if is_child && !tail.is_empty() {
            return self.walk(&child, tail, import, hops, used);
        }
        let bound: Vec<&Import> =
            module.imports.iter().filter(|import| import.name.as_ref() == Some(name)).collect();
        let known = !bound.is_empty() || module.items.contains(name);
        // A module and a function may share a name: `use` takes both, an expression the function.
        if is_child && (import || !known) {
            self.walk(&child, tail, import, hops, used);
        }
        for Import { path, .. } in bound {
            self.resolve(at, &[path, tail].concat(), import, hops, used);
        }
        if !is_child && !known {
            let globs = module.imports.iter().filter(|import| {
                import.name.is_none()
                    && ["crate", "self", "super"].contains(&import.path[0].as_str())
            });
            for glob in globs {
                self.resolve(at, &[&glob.path, rest].concat(), import, hops, used);
            }
        }
    }
}

/// The shortest circles of imports in each room, one through each import that is part of any.
pub fn circles(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for (room, graph) in Crate::new(sources).rooms() {
        let mut seen = BTreeSet::new();
        for (from, to) in graph.keys() {
            let Some(back) = shortest(&graph, to, from) else { continue };
            let nodes: BTreeSet<&str> = back.iter().copied().collect();
            if seen.insert(nodes) {
                let places = [[from.as_str()].as_slice(), &back].concat();
                let places = places.windows(2).map(|pair| {
                    let place = &graph[&(pair[0].to_owned(), pair[1].to_owned())];
                    format!("\n    {} imports {}: {place}", pair[0], pair[1])
                });
                found.push(format!("in src/{}{}", room.join("/"), places.collect::<String>()));
            }
        }
    }
    found
}

/// The shortest way from one node to another, both included.
fn shortest<'a>(graph: &'a Graph, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut ways = VecDeque::from([vec![from]]);
    let mut seen = BTreeSet::from([from]);
    while let Some(way) = ways.pop_front() {
        let last = *way.last().expect("a way has a node");
        if last == to {
            return Some(way);
        }
        for (_, next) in graph.keys().filter(|(a, _)| a == last) {
            if seen.insert(next) {
                ways.push_back([&way[..], &[next]].concat());
            }
        }
    }
    None
}
