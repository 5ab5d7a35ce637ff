//! What the archives of a directory's files are called: each name is given once, and none that something else has.

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

/// Gives names to the archives in one directory.
pub(super) struct Names<'a> {
    /// Where they are to be, if that is there already.
    dir: Option<&'a Dir>,
    taken: HashSet<OsString>,
}

/// What stands at a name.
enum Occupant {
    Nothing,
    /// An archive that shows this name.
    Shows(OsString),
    Other,
}

impl<'a> Names<'a> {
    /// For archives in `dir`, where other files called `taken` are going to be.
    pub(super) fn new(dir: Option<&'a Dir>, taken: HashSet<OsString>) -> Self {
        Self { dir, taken }
    }

    /// Names for the archives of all `originals`; none for those to which all possible names are lost. Originals of which
    /// [`Naming`] knows one name only have theirs first.
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

    /// The name that is the original's with `.bsz` behind it, if that can be had.
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
                // An older archive of this very name, or this one from an earlier run.
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

/// The name that the archive `name` of `dir` shows; `None` where it is no archive that can be read.
pub(super) fn shown(dir: &Dir, name: &OsStr) -> Option<OsString> {
    let footer = peek(&dir.open_file(name).ok()?).ok()??;
    footer.naming.original_name(name)
}

/// What the archive of `original` can be called, the best name first.
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
    fn every_original_has_an_archive_of_its_own_name() {
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
