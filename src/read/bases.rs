//! The bases of an archive: found when the first chunk needs one, and remembered.
//!
//! A base is found again if reading it fails, at most once a second: it may be back, or another
//! file by now. What is taken for a base is never trusted: the checksum of the decoded chunk tells
//! whether it was the right one.

use crate::{
    codec::{ChunkDecoder, Delta},
    error::{Error, ErrorKind, Result},
    escape,
    format::Base,
};
use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a failure to find a base is remembered.
const RETRY: Duration = Duration::from_secs(1);

/// Finds the bases of an archive.
pub trait FindBase: Send + Sync {
    /// The bytes of `base`. Plain files count only if `with_plain` is set: their name and length
    /// are all that is known of them.
    ///
    /// # Errors
    /// Io, naming the base and where it was looked for.
    fn find(&self, base: &Base, with_plain: bool) -> Result<Arc<dyn BaseBytes>>;
}

/// The bytes of a base's original.
pub trait BaseBytes: Send + Sync {
    /// Fill `out` with the bytes at `offset`.
    ///
    /// # Errors
    /// Io, corruption; truncated, if there are fewer bytes.
    fn read(&self, offset: u64, out: &mut [u8], decoder: &dyn ChunkDecoder) -> Result<()>;

    /// Where the base was found.
    fn path(&self) -> &Path;

    /// Whether it is a plain file, which may be another one of the same name and length.
    fn is_plain(&self) -> bool {
        false
    }
}

/// What is known of the bases of an open archive.
pub(super) struct Bases {
    finder: Option<Arc<dyn FindBase>>,
    states: Vec<Mutex<State>>,
}

#[derive(Default)]
struct State {
    found: Option<(Arc<dyn BaseBytes>, Instant)>,
    failed: Option<(Error, Instant)>,
    /// When nothing better than a plain file was found, which seems to be another one.
    only_plain: Option<Instant>,
}

/// From where a chunk differs.
pub(super) struct Place<'a> {
    pub(super) base: &'a Base,
    number: usize,
    pub(super) range: Range<u64>,
}

impl<'a> Place<'a> {
    /// From where the bytes `original` differ, by the archive's table of bases.
    ///
    /// # Errors
    /// Corruption, if there is no such place.
    pub(super) fn of(delta: &Delta, original: &Range<u64>, table: &'a [Base]) -> Result<Self> {
        let number = usize::from(delta.base);
        let base = table.get(number);
        let base = base.ok_or_else(|| Error::corrupt("the chunk's base is not in the table"))?;
        let range = delta.range_in_base(original, base.len);
        let range = range.ok_or_else(|| Error::corrupt("the chunk reaches beyond its base"))?;
        Ok(Self { base, number, range })
    }
}

impl Bases {
    /// For an archive with `count` bases, which nobody looks for yet.
    pub(super) fn new(count: usize) -> Self {
        Self { finder: None, states: (0..count).map(|_| Mutex::default()).collect() }
    }

    /// Look for bases with `finder`.
    pub(super) fn find_with(&mut self, finder: Arc<dyn FindBase>) {
        self.finder = Some(finder);
    }

    /// Fill `out` with the bytes at `place`, and have `decode` make the chunk of them. If that
    /// shows that a plain file is not the base, it is looked for elsewhere.
    ///
    /// # Errors
    /// As [`FindBase::find`] and [`BaseBytes::read`]; those of `decode`.
    pub(super) fn decode(
        &self,
        place: &Place<'_>,
        decoder: &dyn ChunkDecoder,
        out: &mut [u8],
        decode: &dyn Fn(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let bytes = self.get(place)?;
        let failed = match self.try_decode(&bytes, place, decoder, out, decode) {
            Err(e) if bytes.is_plain() && e.kind() == ErrorKind::Corruption => e,
            done => return done,
        };
        if let Some(other) = self.elsewhere(place) {
            return self.try_decode(&other, place, decoder, out, decode);
        }
        let (e, plain, base) = (failed.detail(), escape::path(bytes.path()), shown(place.base));
        let why = "which is no archive, and may be another file";
        Err(Error::corrupt(format!("{e}; its base {base} was read from {plain}, {why}")))
    }

    fn try_decode(
        &self,
        bytes: &Arc<dyn BaseBytes>,
        place: &Place<'_>,
        decoder: &dyn ChunkDecoder,
        out: &mut [u8],
        decode: &dyn Fn(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let read = bytes.read(place.range.start, out, decoder).map_err(|e| {
            // The path is that of the base, and the caller names that of the archive.
            let e = e.about_path(bytes.path());
            Error::new(e.kind(), e.to_string())
                .about(format_args!("its base {}", shown(place.base)))
        });
        read.and_then(|()| decode(out)).inspect_err(|_| self.doubt(place))
    }

    /// The bytes of a base.
    ///
    /// # Errors
    /// As [`FindBase::find`].
    pub(super) fn get(&self, place: &Place<'_>) -> Result<Arc<dyn BaseBytes>> {
        self.find(place.number, place.base)
    }

    /// The bytes of base `number`.
    ///
    /// # Errors
    /// As [`FindBase::find`].
    pub(super) fn find(&self, number: usize, base: &Base) -> Result<Arc<dyn BaseBytes>> {
        // Locked while it is looked for, so that other threads don't look, too.
        let mut state = self.state(number);
        if let Some((found, _)) = &state.found {
            return Ok(Arc::clone(found));
        }
        let is_recent = |at: &Instant| at.elapsed() < RETRY;
        if let Some((e, _)) = state.failed.as_ref().filter(|(_, at)| is_recent(at)) {
            return Err(e.clone());
        }
        let unknown = || missing(base, "was not looked for: nobody said where the archive is");
        let finder = self.finder.as_ref().ok_or_else(unknown)?;
        match finder.find(base, true) {
            Ok(found) => {
                state.found = Some((Arc::clone(&found), Instant::now()));
                Ok(found)
            }
            Err(e) => {
                state.failed = Some((e.clone(), Instant::now()));
                Err(e)
            }
        }
    }

    /// Something was wrong with a chunk: perhaps the base is another file by now.
    fn doubt(&self, place: &Place<'_>) {
        let mut state = self.state(place.number);
        state.found.take_if(|(_, since)| since.elapsed() >= RETRY);
    }

    /// A plain file does not seem to be the base: what else is, if anything.
    fn elsewhere(&self, place: &Place<'_>) -> Option<Arc<dyn BaseBytes>> {
        let mut state = self.state(place.number);
        if let Some((other, _)) = state.found.as_ref().filter(|(found, _)| !found.is_plain()) {
            return Some(Arc::clone(other));
        }
        if state.only_plain.is_some_and(|at| at.elapsed() < RETRY) {
            return None;
        }
        let other = self.finder.as_ref().and_then(|finder| finder.find(place.base, false).ok());
        match &other {
            Some(other) => state.found = Some((Arc::clone(other), Instant::now())),
            None => state.only_plain = Some(Instant::now()),
        }
        other
    }

    fn state(&self, number: usize) -> MutexGuard<'_, State> {
        self.states[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A base in a message: its name, and the start of its SHA-256.
pub(crate) fn shown(base: &Base) -> String {
    format!("{} (SHA-256 {}…)", escape::text(&base.name), &base.hex()[..12])
}

/// The error of a base that cannot be found, and why. It is the same for all chunks, so that it is
/// logged once.
pub(crate) fn missing(base: &Base, why: impl Into<Arc<str>>) -> Error {
    Error::new(ErrorKind::Io, why).about(format_args!("its base {}", shown(base)))
}
