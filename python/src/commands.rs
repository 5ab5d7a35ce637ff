//! What the command `bsz` does, as functions, and the command itself.

use crate::errors::{OrRaise, exception};
use crate::work::{self, Stop};
use bszfs::codec;
use bszfs::error::Context;
use bszfs::format::Footer;
use bszfs::pack::{
    self as packer, Action, FileReport, OpenArchive, Options, Progress, Task, UnpackOptions,
};
use bszfs::read::{self, Archive};
use bszfs::{Error, cli, escape, program};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A path that Python gives: str, bytes or an object with `__fspath__`.
pub fn path(given: &Bound<'_, PyAny>) -> PyResult<OsString> {
    given.py().import("os")?.call_method1("fsdecode", (given,))?.extract()
}

/// Run the command `bsz`. `argv[0]` is its name, and `command` is what starts it again: absolute
/// paths and arguments. Returns the exit code.
#[pyfunction]
pub fn main(py: Python<'_>, argv: Vec<OsString>, command: Vec<OsString>) -> u8 {
    program::started_by(command);
    py.detach(|| cli::run(argv))
}

/// Pack a file or a directory; returns what was done.
#[pyfunction]
#[pyo3(signature = (path, output = None, *, remove = false, threads = None))]
pub fn pack<'py>(
    path: &Bound<'py, PyAny>,
    output: Option<&Bound<'py, PyAny>>,
    remove: bool,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyDict>> {
    let py = path.py();
    if remove && output.is_some() {
        return Err(PyValueError::new_err(
            "an original is only removed if its archive is beside it",
        ));
    }
    let source = PathBuf::from(self::path(path)?);
    let output = output.map(self::path).transpose()?.map(PathBuf::from);
    let options = Options { in_place: remove, ..Options::default() };
    let log = work::run(py, threads.map(|n| n.max(1)), |stop| {
        let watch = Watch::new(stop);
        pack_to(&source, output.as_deref(), &options, &watch)?;
        Ok(watch.into_log())
    })?;
    let log = log.or_raise(py)?;
    if let Some(e) = log.failures.first() {
        return Err(exception(py, e));
    }
    log.report(py)
}

fn pack_to(
    source: &Path,
    output: Option<&Path>,
    options: &Options,
    watch: &Watch<'_>,
) -> bszfs::Result<()> {
    let check = |file: &File, _: &dyn Progress| check(file, watch.stop, options.in_place);
    if std::fs::metadata(source).about_path(source)?.is_dir() {
        let why = "is a directory, which needs an output, or its files to be removed";
        let to = if options.in_place { Some(source) } else { output };
        let to = to.ok_or_else(|| Error::invalid(why).about_path(source))?;
        return packer::tree(source, to, options, &check, watch).map(drop);
    }
    let beside = source.parent().unwrap_or(Path::new(""));
    let archive = match output {
        Some(archive) if !archive.is_dir() => archive.to_owned(),
        dir => {
            let dir = dir.unwrap_or(beside);
            let name = source.file_name().unwrap_or_default().to_owned();
            let free = packer::archive_names(dir, &[name])?.pop().flatten();
            let why = "no name is free for its archive there";
            dir.join(free.ok_or_else(|| Error::invalid(why).about_path(source))?)
        }
    };
    if archive.extension().is_none_or(|e| e != "bsz") {
        let why = "neither a .bsz path nor an existing directory";
        return Err(Error::invalid(why).about_path(&archive));
    }
    packer::file(source, &archive, options, &check, watch).map(drop)
}

/// Decode a new archive. While the original is kept, checksums of its own bytes suffice.
fn check(file: &File, stop: &Stop, removes: bool) -> bszfs::Result<()> {
    let archive = Archive::from_file(file.try_clone()?)?;
    let decoder = stop.interrupts(codec::verifying());
    let verify = if removes { read::verify } else { read::verify_chunks };
    verify(&archive, &decoder, &|_| ())
}

/// Restore the original of an archive, or those of a directory; returns its path.
#[pyfunction]
#[pyo3(signature = (path, output = None))]
pub fn unpack(path: &Bound<'_, PyAny>, output: Option<&Bound<'_, PyAny>>) -> PyResult<OsString> {
    let py = path.py();
    let source = PathBuf::from(self::path(path)?);
    let output = output.map(self::path).transpose()?.map(PathBuf::from);
    let done = work::run(py, None, |stop| {
        let watch = Watch::new(stop);
        let open = |file: File, path: &Path| -> bszfs::Result<Box<dyn OpenArchive>> {
            let archive = Archive::from_file(file)?.beside(path);
            Ok(Box::new(Opened { archive, stop: stop.clone() }))
        };
        let options = UnpackOptions::default();
        if !std::fs::metadata(&source).about_path(&source)?.is_dir() {
            let report = packer::unpack_file(&source, output.as_deref(), options, &open, &watch)?;
            return Ok(report.output);
        }
        let why = "is a directory, which needs an output";
        let output = output.ok_or_else(|| Error::invalid(why).about_path(&source))?;
        packer::unpack_tree(&source, &output, options, &open, &watch)?;
        watch.into_log().failures.into_iter().next().map_or(Ok(output), Err)
    })?;
    Ok(done.or_raise(py)?.into_os_string())
}

/// An archive as the packer unpacks it.
struct Opened {
    archive: Archive,
    stop: Stop,
}

impl OpenArchive for Opened {
    fn footer(&self) -> &Footer {
        self.archive.footer()
    }

    fn file(&self) -> Option<&File> {
        self.archive.file()
    }

    fn unpack(&self, out: &File, path: &Path, p: &dyn Progress) -> bszfs::Result<()> {
        let decoder = self.stop.interrupts(codec::fastest());
        read::unpack(&self.archive, out, path, &decoder, &|bytes| p.advance(bytes))
    }
}

/// Decode an archive, or all of a directory, and compare them with all their checksums.
#[pyfunction]
pub fn verify(path: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = path.py();
    let source = PathBuf::from(self::path(path)?);
    let done = work::run(py, None, |stop| {
        let decoder = stop.interrupts(codec::fastest());
        let mut failure = None;
        let mut fail = |e| _ = failure.get_or_insert(e);
        let found = read::archives(&source, &mut fail)?;
        if found.is_empty() {
            fail(Error::invalid("contains no archives").about_path(&source));
        }
        for path in found {
            let verified = Archive::open(&path).and_then(|a| read::verify(&a, &decoder, &|_| ()));
            verified.about_path(&path)?;
        }
        failure.map_or(Ok(()), Err)
    })?;
    done.or_raise(py)
}

/// Describe an archive, or the archives of a directory, as `bsz info --json` does.
#[pyfunction]
pub fn info<'py>(path: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = path.py();
    let source = PathBuf::from(self::path(path)?);
    let describe = |path: &Path| -> bszfs::Result<String> {
        let archive = Archive::open(path)?;
        let described = read::describe(&archive, &*codec::fastest()).about_path(path)?;
        serde_json::to_string(&described).map_err(std::io::Error::from).about_path(path)
    };
    let loads = |json: &str, path: &Path| {
        let described = py.import("json")?.call_method1("loads", (json,))?;
        described.set_item("path", path.as_os_str())?;
        Ok::<_, PyErr>(described)
    };
    if !source.is_dir() {
        return loads(&py.detach(|| describe(&source)).or_raise(py)?, &source);
    }
    let mut failures = Vec::new();
    let found = py.detach(|| read::archives(&source, &mut |e| failures.push(e.to_string())));
    let archives = PyList::empty(py);
    for path in found.or_raise(py)? {
        py.check_signals()?;
        match py.detach(|| describe(&path)) {
            Ok(json) => archives.append(loads(&json, &path)?)?,
            Err(e) => failures.push(e.to_string()),
        }
    }
    let all = PyDict::new(py);
    all.set_item("archives", archives)?;
    all.set_item("failures", failures)?;
    Ok(all.into_any())
}

/// What became of the files of one call.
#[derive(Default)]
struct Log {
    files: Vec<FileReport>,
    warnings: Vec<String>,
    failures: Vec<Error>,
}

impl Log {
    /// The report, with the names of `bsz pack --json`.
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let files = PyList::empty(py);
        for file in &self.files {
            let (action, why) = match &file.action {
                Action::Packed | Action::PackedFrom(_) => ("packed", None),
                Action::Unpacked => ("unpacked", None),
                Action::Copied => ("copied", None),
                Action::Linked => ("linked", None),
                Action::AlreadyDone => ("already done", None),
                Action::Skipped(why) => ("skipped", Some(why)),
            };
            let row = PyDict::new(py);
            row.set_item("path", file.path.as_os_str())?;
            row.set_item("output", file.output.as_os_str())?;
            row.set_item("action", action)?;
            if let Some(why) = why {
                row.set_item("why", why)?;
            }
            row.set_item("original", file.original)?;
            row.set_item("stored", file.stored)?;
            files.append(row)?;
        }
        let report = PyDict::new(py);
        report.set_item("files", files)?;
        report.set_item("warnings", &self.warnings)?;
        report.set_item("original", self.files.iter().map(|file| file.original).sum::<u64>())?;
        report.set_item("stored", self.files.iter().map(|file| file.stored).sum::<u64>())?;
        Ok(report)
    }
}

/// Listens to the packer, and tells it when to end.
struct Watch<'s> {
    stop: &'s Stop,
    log: Mutex<Log>,
}

impl<'s> Watch<'s> {
    fn new(stop: &'s Stop) -> Self {
        Self { stop, log: Mutex::default() }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_log(self) -> Log {
        self.log.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Watch<'_> {
    fn begin(&self, _: &Path, _: Task, _: u64) {}

    fn advance(&self, _: u64) {}

    fn is_cancelled(&self) -> bool {
        self.stop.is_set()
    }

    fn end(&self, report: &FileReport) {
        self.log().files.push(report.clone());
    }

    fn warn(&self, path: &Path, what: &str) {
        self.log().warnings.push(format!("{}: {what}", escape::path(path)));
    }

    fn fail(&self, e: &Error) {
        self.log().failures.push(e.clone());
    }
}
