//! What to do with each file of a directory: which are packed, under which names, and which are
//! left as they are.

use super::{
    Action, FileReport, Progress, Report, Selection,
    content::Kind,
    mirror::TEMPORARY,
    names::{Names, shown},
    source::Source,
};
use crate::{
    error::{Error, Result},
    format::{Naming, is_pin},
    output::{Dir, DirEntry, is_temporary},
};
use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    fmt,
    path::Path,
    sync::Arc,
};

/// What to do with a file.
pub(super) enum Plan {
    /// Pack it, to an archive of this name if it can have one.
    Pack(Option<(OsString, Naming)>),
    Keep,
}

/// The files of a directory, sorted by what they are.
#[derive(Default)]
struct Files {
    /// What to do with each file; models are still to be added.
    plans: HashMap<OsString, Plan>,
    models: Vec<OsString>,
    /// The names that archives of the directory show.
    shown: HashMap<OsString, OsString>,
}

/// Sorts the files of a tree.
pub(super) struct Sorter<'a> {
    selection: &'a Selection,
    in_place: bool,
    p: &'a dyn Progress,
    others: Others,
    archives: usize,
    failed: usize,
}

impl<'a> Sorter<'a> {
    /// `in_place` says that archives are going to be beside the files.
    pub(super) fn new(selection: &'a Selection, in_place: bool, p: &'a dyn Progress) -> Self {
        Self { selection, in_place, p, others: Others::default(), archives: 0, failed: 0 }
    }

    /// The number of files that could not be sorted; [`Progress::fail`] was told the reasons.
    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    fn fail(&mut self, e: &Error) {
        self.p.fail(e);
        self.failed += 1;
    }

    /// Decide what to do with each file of a directory, and name the archives that go to `out`.
    /// `at` is its path in the tree, or `None` if nothing in it is to be packed.
    ///
    /// # Errors
    /// Io.
    pub(super) fn plan(
        &mut self,
        src: &Arc<Dir>,
        out: Option<&Dir>,
        entries: &[DirEntry],
        at: Option<&Path>,
    ) -> Result<HashMap<OsString, Plan>> {
        let Files { mut plans, mut models, shown } = self.classify(src, entries, at);
        if !self.in_place {
            // A mount would show the copy of such an archive instead.
            models.retain(|name| {
                !shown.contains_key(name) || {
                    let why = "copied, not packed: an archive that shows its name is beside it";
                    self.p.warn(&src.path(name), why);
                    false
                }
            });
        }
        let kept = |name: &OsString| !self.in_place && !models.contains(name);
        let taken = entries.iter().map(|e| e.name.clone()).filter(kept).collect();
        let mut given = Names::new(out, taken).give(&models)?;
        for name in models {
            let archive = given.remove(&name);
            plans.insert(name, Plan::Pack(archive));
        }
        Ok(plans)
    }

    /// Find out what each file of a directory is, if anything in it is to be packed.
    fn classify(&mut self, src: &Arc<Dir>, entries: &[DirEntry], at: Option<&Path>) -> Files {
        let mut files = Files::default();
        for DirEntry { name, .. } in entries.iter().filter(|e| e.kind.is_file()) {
            let path = src.path(name);
            if is_pin(name) && self.in_place {
                continue;
            }
            if is_temporary(name) {
                self.p.warn(&path, TEMPORARY);
                continue;
            }
            let kind = match at.map(|at| self.selection.has(&at.join(name))) {
                Some(true) => Source::open(src, name).and_then(|source| source.kind()),
                Some(false) => Ok(Kind::Other("is not selected")),
                None => Ok(Kind::Other("belongs to a repository")),
            };
            match kind {
                Err(e) if e.errno() == Some(libc::ENOENT) => continue,
                Err(e) => {
                    self.fail(&e);
                    continue;
                }
                Ok(Kind::Model) => files.models.push(name.clone()),
                Ok(Kind::Archive) => {
                    self.archives += 1;
                    files.shown.extend(shown(src, name).map(|shown| (shown, name.clone())));
                }
                Ok(Kind::Unfit(why)) => self.p.warn(&path, &format!("{why}; not packed")),
                Ok(Kind::Other(why)) => self.others.add(name, why),
            }
            files.plans.insert(name.clone(), Plan::Keep);
        }
        files
    }

    /// Say what is left as it is, and warn if that is everything.
    pub(super) fn tell_what_is_left(&self, src: &Path, report: &Report) {
        let packed = |r: &FileReport| !matches!(r.action, Action::Copied | Action::Linked);
        if self.archives + report.failed > 0 || report.files.iter().any(packed) {
            if !self.others.0.is_empty() {
                self.p.left(src, &self.others.to_string());
            }
            return;
        }
        let what = format!("holds no model to pack; it has {}", self.others);
        self.p.warn(src, &what);
    }
}

/// The most extensions that are named for one reason.
const MOST_NAMED: usize = 4;

/// The files that are left as they are: by reason, how many there are of each extension.
#[derive(Default)]
struct Others(BTreeMap<&'static str, BTreeMap<String, usize>>);

impl Others {
    fn add(&mut self, name: &OsStr, why: &'static str) {
        *self.0.entry(why).or_default().entry(extension(name)).or_default() += 1;
    }
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no other files");
        }
        for (i, (why, names)) in self.0.iter().enumerate() {
            let mut names: Vec<_> = names.iter().collect();
            names.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            let rest: usize = names.iter().skip(MOST_NAMED).map(|(_, n)| **n).sum();
            let mut named: Vec<_> =
                names.iter().take(MOST_NAMED).map(|(what, n)| format!("{n} {what}")).collect();
            named.extend((rest > 0).then(|| format!("{rest} others")));
            let separator = if i > 0 { "; " } else { "" };
            write!(f, "{separator}{} ({why})", named.join(", "))?;
        }
        Ok(())
    }
}

/// What files like `name` are called in a message.
fn extension(name: &OsStr) -> String {
    Path::new(name)
        .extension()
        .map_or_else(|| "without a suffix".into(), |e| format!(".{}", e.to_string_lossy()))
}
