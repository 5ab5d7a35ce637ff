//! What a check of `bsz doctor` has found.

use serde::Serialize;

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Good,
    /// Works, but could be better.
    Fair,
    /// Nothing can be mounted because of it.
    Bad,
}

/// The result of one check.
#[derive(Serialize)]
pub(super) struct Finding {
    pub(super) what: &'static str,
    pub(super) state: Verdict,
    /// What was found.
    pub(super) found: String,
    /// The command, or the advice, that fixes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mend: Option<String>,
}

impl Finding {
    pub(super) fn new(what: &'static str, state: Verdict, found: impl Into<String>) -> Self {
        Self { what, state, found: found.into(), mend: None }
    }

    pub(super) fn mend(self, command: impl Into<String>) -> Self {
        Self { mend: Some(command.into()), ..self }
    }
}
