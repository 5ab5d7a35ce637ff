//! `bsz ask`: a process that may hang in place of the one that started it.

use crate::error::Result;
use crate::mount::{self, Question};
use clap::Args;
use std::path::PathBuf;

/// Answer a question that may block forever; other commands run this
#[derive(Args)]
pub struct AskArgs {
    #[arg(value_parser = question)]
    question: Question,
    path: PathBuf,
}

fn question(name: &str) -> Result<Question, &'static str> {
    Question::named(name).ok_or("is not a question")
}

/// `bsz ask`
pub fn answer(args: &AskArgs) -> Result<()> {
    mount::answer(args.question, &args.path)
}
