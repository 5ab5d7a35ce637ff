//! The answers to the questions of `ask.rs`, found out in a process of its own, which may wait for ever.

use super::ask::{self, Question};
use super::{place, status, unmount};
use crate::error::{Context, Result};
use crate::program;
use std::io::Write;
use std::path::Path;

/// Find out the answer to `question` about the absolute `path`, and write it to the standard output. To be called before
/// anything is opened.
///
/// # Errors
/// Io, where nobody listens any more.
pub fn answer(question: Question, path: &Path) -> Result<()> {
    // Whoever asked may be gone while we wait, and its shell's pipes and locks are none of ours.
    program::end_with_parent()?;
    program::close_inherited(None)?;
    let answer = match question {
        Question::Look => place::answer_look(path),
        Question::Place => place::answer_place(path),
        Question::Alive => rustix::fs::statfs(path).map(|_| Vec::new()).map_err(Into::into),
        Question::Status => status::answer_status(path),
        Question::Space => status::answer_space(path),
        Question::DropCache => status::answer_drop_cache(path),
        Question::Unmount => unmount::answer_end(path, false),
        Question::Detach => unmount::answer_end(path, true),
    };
    let mut stdout = std::io::stdout();
    stdout.write_all(&ask::encode(answer)).and_then(|()| stdout.flush()).about("standard output")
}
