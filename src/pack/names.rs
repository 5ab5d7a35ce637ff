//! The names of the archives in a directory: each is given once, and none that is taken.

use crate::{
    error::Result,
    format::{Naming, peek},
    output::Dir,
};
use rustix::fs::FileType;
use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
};

/// The longest name of a directory entry, in bytes.
const NAME_MAX: usize = 255;

/// Names the archives in one directory.
pub(super) struct Names<'a> {
    /// The directory of the archives, if it exists already.
    dir: Option<&'a Dir>,
    taken: HashSet<OsString>,
}

/// What has a name.
enum Occupant {
    Nothing,
    /// An archive that shows this name.
    Shows(OsString),
    Other,
}

impl<'a> Names<'a> {
    /// Name archives in `dir`, where other files are going to have the names `taken`.
    pub(super) fn new(dir: Option<&'a Dir>, taken: HashSet<OsString>) -> Self {
        Self { dir, taken }
    }

    /// Name the archives of all `originals`; those whose possible names are all taken get none.
    /// Originals with a single possible name come first.
    pub(super) fn give(
        &mut self,
        originals: &[OsString],
    ) -> Result<HashMap<OsString, (OsString, Naming)>> {
        let mut given = HashMap::new();
        let (few, many): (Vec<_>, Vec<_>) =
            originals.iter().partition(|name| candidates(name).len() < 2);
        for original in few.into_iter().chain(many) {
            if let Some(name) = self.give_one(original, &candidates(original))? {
                given.insert(original.clone(), name);
            }
        }
        Ok(given)
    }

    /// The name of the original with `.bsz` appended, if it is free.
    pub(super) fn give_appended(&mut self, original: &OsStr) -> Result<Option<OsString>> {
        let name = (Naming::Appended.archive_name(original), Naming::Appended);
        Ok(self.give_one(original, &[name])?.map(|(name, _)| name))
    }

    fn give_one(
        &mut self,
        original: &OsStr,
        candidates: &[(OsString, Naming)],
    ) -> Result<Option<(OsString, Naming)>> {
        let mut free = None;
        for candidate in candidates.iter().filter(|(name, _)| !self.taken.contains(name)) {
            match self.occupant(&candidate.0)? {
                // The archive of an older file of this name, or this one from an earlier run.
                Occupant::Shows(name) if name == original => {
                    free = Some(candidate);
                    break;
                }
                Occupant::Nothing => free = free.or(Some(candidate)),
                _ => {}
            }
        }
        self.taken.extend(free.map(|(name, _)| name.clone()));
        Ok(free.cloned())
    }

    fn occupant(&self, name: &OsStr) -> Result<Occupant> {
        let Some(dir) = self.dir else { return Ok(Occupant::Nothing) };
        let Some(stat) = dir.stat(name)? else { return Ok(Occupant::Nothing) };
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(Occupant::Other);
        }
        Ok(shown(dir, name).map_or(Occupant::Other, Occupant::Shows))
    }
}

/// The name that the archive `name` of `dir` shows; `None` if it is not a readable archive.
pub(super) fn shown(dir: &Dir, name: &OsStr) -> Option<OsString> {
    let footer = peek(&dir.open_file(name).ok()?).ok()??;
    footer.naming.original_name(name)
}

/// The possible names of the archive of `original`, the best first.
fn candidates(original: &OsStr) -> Vec<(OsString, Naming)> {
    let short = Naming::of(original);
    let all = match short {
        Naming::Safetensors => vec![short, Naming::Appended],
        Naming::Appended => vec![short],
    };
    let named = all.into_iter().map(|naming| (naming.archive_name(original), naming));
    named.filter(|(name, _)| name.len() <= NAME_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn give(originals: &[&str], taken: &[&str]) -> Vec<Option<String>> {
        let originals: Vec<OsString> = originals.iter().map(OsString::from).collect();
        let mut names = Names::new(None, taken.iter().map(OsString::from).collect());
        let given = names.give(&originals).expect("given");
        let name =
            |original| given.get(original).map(|(name, _)| name.to_string_lossy().into_owned());
        originals.iter().map(name).collect()
    }

    #[test]
    fn every_archive_gets_a_name_of_its_own() {
        let some = |names: &[&str]| names.iter().map(|n| Some((*n).to_owned())).collect::<Vec<_>>();
        assert_eq!(give(&["model.safetensors"], &[]), some(&["model.bsz"]));
        let both = some(&["model.bsz", "model.safetensors.bsz"]);
        assert_eq!(give(&["model", "model.safetensors"], &[]), both);
        assert_eq!(give(&["model.safetensors"], &["model.bsz"]), some(&["model.safetensors.bsz"]));
        assert_eq!(give(&["blob"], &["blob.bsz"]), [None]);
        assert_eq!(give(&[&"b".repeat(252)], &[]), [None]);
        let long = format!("{}.safetensors", "m".repeat(243));
        assert_eq!(give(&[&long], &[]), [Some(format!("{}.bsz", "m".repeat(243)))]);
    }
}
