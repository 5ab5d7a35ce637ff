//! Questions that may never be answered, asked within a deadline.
//!
//! Who touches a mount waits for its daemon. Once the daemon has taken the request, no signal ends that, and a thread
//! that waits keeps its process from ending; the same holds for a network disk whose server is gone. So what touches a
//! mount or a path of the user's is done by a process that can be left behind: this program as `bsz ask`, which says on
//! its standard output what came of it (`answers.rs`).

use crate::error::{Error, Result};
use crate::program::this_program;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long an answer may take, unless the question takes longer to work on.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long it may take to list all files of a mount.
const LIST_WITHIN: Duration = Duration::from_secs(30);

/// How long a process that was killed may take to end before it is left behind.
const END_WITHIN: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(5);

/// Most bytes of an answer. Anybody can mount a FUSE file system, and answer as its daemon.
const LONGEST: u64 = 1 << 20;

/// Most processes at a time, each of which has a descriptor here.
const AT_ONCE: usize = 4;

/// What can be asked, of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// What is there, and its canonical path.
    Look,
    /// The same of a mountpoint to be; one of ours is not touched.
    Place,
    /// Whether a mount is served.
    Alive,
    /// What its daemon says of itself.
    Status,
    /// What its archives save.
    Space,
    /// To have its daemon drop what its cache holds.
    DropCache,
    /// To end a mount.
    Unmount,
    /// To take a mount out of sight.
    Detach,
}

/// Their names on the command line.
const NAMES: [(&str, Question); 8] = [
    ("look", Question::Look),
    ("place", Question::Place),
    ("alive", Question::Alive),
    ("status", Question::Status),
    ("space", Question::Space),
    ("drop-cache", Question::DropCache),
    ("unmount", Question::Unmount),
    ("detach", Question::Detach),
];

impl Question {
    /// The question of this name.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, question)| *question)
    }

    fn name(self) -> &'static str {
        NAMES.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }

    fn within(self) -> Duration {
        if self == Self::Space { LIST_WITHIN } else { ANSWER_WITHIN }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// Nothing came within the deadline.
    Silent,
    /// The operating system's answer, or ours.
    Failed(Error),
}

impl Unanswered {
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Self::Silent => None,
            Self::Failed(e) => e.errno().map(rustix::io::Errno::from_raw_os_error),
        }
    }

    /// As an error, with `why` where nothing came.
    pub fn or_silent(self, why: &str) -> Error {
        match self {
            Self::Silent => Error::invalid(why),
            Self::Failed(e) => e,
        }
    }
}

pub(super) type Answer = std::result::Result<Vec<u8>, Unanswered>;

/// Ask one question.
pub(super) fn ask(question: Question, path: &Path) -> Answer {
    let mut answers = ask_all(&[(question, path)]);
    answers.pop().unwrap_or(Err(Unanswered::Silent))
}

/// Ask several at once; the answers in their order.
pub(super) fn ask_all(questions: &[(Question, &Path)]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for several in questions.chunks(AT_ONCE) {
        let mut running: Vec<_> =
            several.iter().map(|(question, path)| start(*question, path)).collect();
        let deadline =
            Instant::now() + several.iter().map(|(q, _)| q.within()).max().unwrap_or_default();
        let mut awaited: Vec<&mut Helper> =
            running.iter_mut().filter_map(|r| r.as_mut().ok()).collect();
        listen(&mut awaited, deadline);
        let asked = running.into_iter().zip(several);
        answers.extend(asked.map(|(running, (question, path))| running?.answer(*question, path)));
    }
    answers
}

/// Processes that did not end when they were killed, with what they wait for: it is not asked again while they do.
static LEFT_BEHIND: Mutex<Vec<(Question, PathBuf, Child)>> = Mutex::new(Vec::new());

fn is_asked_still(question: Question, path: &Path) -> bool {
    let mut left = LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain_mut(|(_, _, child)| matches!(child.try_wait(), Ok(None)));
    left.iter().any(|(asked, of, _)| (*asked, &**of) == (question, path))
}

fn start(question: Question, path: &Path) -> std::result::Result<Helper, Unanswered> {
    if is_asked_still(question, path) {
        return Err(Unanswered::Silent);
    }
    let mut command = this_program();
    command.args(["ask", question.name(), "--"]).arg(path);
    Helper::start(&mut command, false).map_err(Unanswered::Failed)
}

/// A process that may never end, and what it has said so far.
struct Helper {
    child: Child,
    pipe: File,
    said: Vec<u8>,
    ended: bool,
}

impl Helper {
    /// Start a command, and hear its standard output, or its standard error instead.
    fn start(command: &mut Command, hear_errors: bool) -> Result<Self> {
        // Pipes that nobody holds the other end of: there may be no /dev/null, and what is left behind must not hold
        // anything of a shell's.
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A terminal's ^C is for us.
        let mut child = command.process_group(0).spawn()?;
        drop(child.stdin.take());
        let (stdout, stderr) =
            (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
        let pipe = if hear_errors { stderr } else { stdout };
        let pipe = pipe.ok_or_else(|| Error::invalid("it has no pipe"))?.into();
        Ok(Self { child, pipe, said: Vec::new(), ended: false })
    }

    /// Take what is there to be read.
    fn hear(&mut self) {
        let mut block = [0; 1 << 14];
        match self.pipe.read(&mut block) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => self.ended = true,
            // Whoever says more is not heard any more.
            Ok(n) if self.said.len() as u64 + n as u64 <= LONGEST => {
                self.said.extend_from_slice(&block[..n])
            }
            Ok(_) => self.ended = true,
        }
    }

    /// Kill it, if it has not ended, and give it the time that takes. Its exit status; or itself, left behind.
    fn end(mut self) -> std::result::Result<(ExitStatus, Vec<u8>), Child> {
        if !self.ended {
            let _ = self.child.kill();
        }
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok((status, self.said)),
                Ok(None) if started.elapsed() < END_WITHIN => thread::sleep(PAUSE),
                _ => return Err(self.child),
            }
        }
    }

    fn answer(self, question: Question, path: &Path) -> Answer {
        let in_time = self.ended;
        match self.end() {
            Ok((_, said)) if in_time => parse(said),
            Ok(_) => Err(Unanswered::Silent),
            Err(child) => {
                let mut left = LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner);
                left.push((question, path.to_owned(), child));
                Err(Unanswered::Silent)
            }
        }
    }
}

/// Hear all of them until they have ended, or the deadline is reached.
fn listen(helpers: &mut [&mut Helper], deadline: Instant) {
    loop {
        let mut waiting: Vec<_> = helpers.iter_mut().filter(|helper| !helper.ended).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        if waiting.is_empty() || left.is_zero() {
            return;
        }
        let left =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut pipes: Vec<_> =
            waiting.iter().map(|h| PollFd::new(&h.pipe, PollFlags::IN)).collect();
        let outcome = poll(&mut pipes, Some(&left));
        let ready: Vec<bool> = pipes.iter().map(|pipe| !pipe.revents().is_empty()).collect();
        match outcome {
            Ok(_) => waiting
                .iter_mut()
                .zip(ready)
                .filter(|(_, ready)| *ready)
                .for_each(|(h, _)| h.hear()),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Run a command to its end, or to the deadline: its exit status, and what it said on its standard error.
pub(super) fn run(command: &mut Command) -> std::result::Result<(ExitStatus, Vec<u8>), Unanswered> {
    let mut helper = Helper::start(command, true).map_err(Unanswered::Failed)?;
    listen(&mut [&mut helper], Instant::now() + ANSWER_WITHIN);
    let in_time = helper.ended;
    helper.end().ok().filter(|_| in_time).ok_or(Unanswered::Silent)
}

/// What [`parse`] reads: `+` and the answer, or `-`, the number of an error or 0, a space and what there is to say.
pub(super) fn encode(answer: Result<Vec<u8>>) -> Vec<u8> {
    match answer {
        Ok(answer) => [b"+", &answer[..]].concat(),
        Err(e) => format!("-{} {e}", e.errno().unwrap_or(0)).into_bytes(),
    }
}

fn parse(said: Vec<u8>) -> Answer {
    if let Some(answer) = said.strip_prefix(b"+") {
        return Ok(answer.to_vec());
    }
    let failed =
        std::str::from_utf8(&said).ok().and_then(|said| said.strip_prefix('-')?.split_once(' '));
    Err(Unanswered::Failed(match failed.map(|(number, why)| (number.parse(), why)) {
        Some((Ok(0), why)) => Error::invalid(why),
        Some((Ok(number), _)) => io::Error::from_raw_os_error(number).into(),
        _ => Error::invalid("the process that was to find out has ended"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_was_encoded() {
        assert_eq!(parse(encode(Ok(b"yes".to_vec()))).ok(), Some(b"yes".to_vec()));
        let gone = encode(Err(io::Error::from_raw_os_error(libc::ENOTCONN).into()));
        assert_eq!(parse(gone).err().and_then(|e| e.errno()), Some(rustix::io::Errno::NOTCONN));
        let why =
            parse(encode(Err(Error::invalid("why")))).err().map(|e| e.or_silent("").to_string());
        assert_eq!(why.as_deref(), Some("why"));
        for rubbish in [&b""[..], b"-", b"-x y", b"\xff"] {
            assert!(matches!(parse(rubbish.to_vec()), Err(Unanswered::Failed(_))));
        }
    }

    #[test]
    fn a_process_that_does_not_end_is_waited_for_no_longer_than_the_deadline() {
        let mut sleep = Command::new("sleep");
        let mut helper = Helper::start(sleep.arg("60"), false).expect("sleep");
        let started = Instant::now();
        listen(&mut [&mut helper], started + Duration::from_millis(50));
        assert!(
            !helper.ended && helper.end().is_ok() && started.elapsed() < Duration::from_secs(30)
        );
    }

    #[test]
    fn nobody_is_heard_without_end() {
        let mut endless = Command::new("cat");
        let mut helper = Helper::start(endless.arg("/dev/zero"), false).expect("cat");
        listen(&mut [&mut helper], Instant::now() + Duration::from_secs(30));
        assert!(helper.ended && helper.said.len() as u64 <= LONGEST);
        let _ = helper.child.kill();
        let _ = helper.child.wait();
    }
}
