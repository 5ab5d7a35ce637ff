//! The command line: arguments, the log, exit codes. The only room that prints.
//!
//! There is one file per group of subcommands. A command returns [`Result`]; an error becomes
//! `bsz: what: why` on standard error and exit code 1. Wrong usage exits 2.

// A build that cannot mount leaves out whole subcommands, not the lines that only they use.
#![cfg_attr(not(feature = "mount"), allow(dead_code))]

mod against;
mod archive;
#[cfg(feature = "mount")]
mod ask;
mod bases;
mod bench;
#[cfg(feature = "mount")]
mod cache;
mod common;
#[cfg(feature = "remote")]
mod cp;
#[cfg(feature = "mount")]
mod daemon;
#[cfg(feature = "mount")]
mod demo;
#[cfg(feature = "mount")]
mod doctor;
#[cfg(all(feature = "mount", feature = "remote"))]
mod doctor_url;
#[cfg(feature = "mount")]
mod finding;
mod generate;
#[cfg(feature = "mount")]
mod guard;
#[cfg(feature = "mount")]
mod hf;
mod hints;
mod interrupt;
mod logfile;
#[cfg(feature = "mount")]
mod mount;
#[cfg(feature = "mount")]
mod mount_options;
#[cfg(all(feature = "mount", feature = "remote"))]
mod mount_url;
#[cfg(feature = "mount")]
mod mounting;
mod pack;
mod progress;
#[cfg(feature = "remote")]
mod remote;
mod repack;
mod report;
mod size;
mod source;
#[cfg(feature = "mount")]
mod status;
#[cfg(feature = "mount")]
mod store;
#[cfg(feature = "mount")]
mod umount;
mod unpack;
#[cfg(feature = "remote")]
mod upload;
#[cfg(feature = "mount")]
mod warm;

use crate::error::{Error, Result};
use crate::escape;
use clap::{ArgAction, CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

/// Keep models compressed, and use them as the plain .safetensors files they were made from
#[derive(Parser)]
#[command(name = "bsz", version, propagate_version = true, max_term_width = 100)]
#[command(after_long_help = "Examples:
  bsz pack llama/ -o llama-packed/      compress the directory of a model
  bsz mount llama-packed/ llama-view/   show it as it was, and load the model from llama-view/
  bsz umount llama-view/                end the mount
  bsz unpack llama-packed/ -o llama/    restore the plain files
  bsz store enable models/              have a directory compress itself while it is used
  bsz help mount                        explain one command, with examples

Environment:
  BSZ_LOG      the log level, as in debug or bszfs::mount=trace; RUST_LOG works, too
  BSZ_DECODER  the decoder to use instead of the fastest: scalar, avx2, avx512 or neon
  TMPDIR       the directory for temporary files of demo, bench, and pack to a URL

Names:
  Bytes that are not UTF-8 are shown as \\xNN, and characters that would control a terminal as
  \\u{NN}. In JSON, a path that is not UTF-8 comes with its bytes in hexadecimal: path_bytes
  beside path

Exit status:
  0  success
  1  failure; standard error says why
  2  invalid arguments")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log more; -vv for debugging (BSZ_LOG sets levels per module)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Print only errors
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Pack(pack::PackArgs),
    Unpack(unpack::UnpackArgs),
    Detach(repack::DetachArgs),
    Rebase(repack::RebaseArgs),
    Verify(archive::VerifyArgs),
    Info(archive::InfoArgs),
    #[cfg(feature = "remote")]
    Cp(cp::CpArgs),
    #[cfg(feature = "mount")]
    #[command(flatten)]
    Mounting(mounting::Command),
    Bench(bench::BenchArgs),
}

/// The definitions of all arguments: the source of `--help`, and of the man pages and completions
/// that `examples/manuals.rs` generates.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Run the program on the process's arguments.
pub fn main() -> ExitCode {
    run(std::env::args_os().collect()).into()
}

/// Run the program on these arguments, of which the first is its name. Returns the exit code.
pub fn run(arguments: Vec<OsString>) -> u8 {
    // For `ps` and `pgrep`: daemons are started as /proc/self/exe.
    let _ = rustix::thread::set_name(c"bsz");
    interrupt::have_writes_fail_at_limits();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(e) => return explain_usage(&e, &arguments),
    };
    start_log(cli.verbose, cli.quiet);
    let outcome = match cli.command {
        Command::Pack(args) => pack::pack(args, cli.quiet),
        Command::Unpack(args) => unpack::unpack(args, cli.quiet),
        Command::Detach(args) => repack::detach(&args, cli.quiet),
        Command::Rebase(args) => repack::rebase(&args, cli.quiet),
        Command::Verify(args) => archive::verify(args, cli.quiet),
        Command::Info(args) => archive::info(args),
        #[cfg(feature = "remote")]
        Command::Cp(args) => cp::cp(&args, cli.quiet),
        #[cfg(feature = "mount")]
        Command::Mounting(command) => mounting::run(command, cli.quiet),
        Command::Bench(args) => bench::bench(args, cli.quiet),
    };
    match outcome {
        Ok(()) => 0,
        // The reader of our output is gone, as with `| head`: nothing is wrong.
        Err(e) if e.errno() == Some(libc::EPIPE) => 0,
        Err(e) => {
            complain(&e);
            1
        }
    }
}

/// Print a usage error, or the help that was asked for. It quotes arguments, such as file names
/// from a `*`, so the arguments are parsed again in their escaped form.
fn explain_usage(e: &clap::Error, arguments: &[OsString]) -> u8 {
    let shown = arguments.iter().map(|argument| escape::path(argument).into_owned());
    let _ = Cli::try_parse_from(shown).as_ref().err().unwrap_or(e).print();
    u8::try_from(e.exit_code()).unwrap_or(2)
}

/// How every error line starts. `bsz mount` recognises its daemon's errors by it.
const ERROR_PREFIX: &str = "bsz: ";

/// Print one error, escaped for a terminal.
fn complain(e: &Error) {
    say_aside(&format!("{ERROR_PREFIX}{e}"));
}

/// Print a line on standard error. Failures are ignored: there is nowhere left to report them.
fn say_aside(line: &str) {
    // In one write, since several processes may share standard error.
    let _ = io::stderr().write_all(format!("{}\n", escape::text(line)).as_bytes());
}

/// The result of a command that worked on `of` items, of which these failed. All are printed.
fn outcome(verb: &str, failures: &[Error], of: usize) -> Result<()> {
    match failures {
        [] => Ok(()),
        [only] if of == 1 => Err(only.clone()),
        _ => {
            failures.iter().for_each(complain);
            Err(Error::invalid(format!("{} of {of} failed", failures.len())).about(verb))
        }
    }
}

/// Work on each of `items`, even if some fail; all failures are printed.
fn for_each<T>(verb: &str, items: &[T], mut work: impl FnMut(&T) -> Result<()>) -> Result<()> {
    if let [only] = items {
        return work(only);
    }
    let failures: Vec<Error> = items.iter().filter_map(|item| work(item).err()).collect();
    outcome(verb, &failures, items.len())
}

fn start_log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => log::LevelFilter::Error,
        (_, 0) => log::LevelFilter::Warn,
        (_, 1) => log::LevelFilter::Info,
        (_, 2) => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    };
    let mut log = env_logger::Builder::new();
    log.filter_level(level).target(env_logger::Target::Pipe(Box::new(logfile::Lines)));
    for variable in ["RUST_LOG", "BSZ_LOG"] {
        if let Ok(filters) = std::env::var(variable) {
            log.parse_filters(&filters);
        }
    }
    logfile::start(log.build());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_definitions_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_failure_does_not_stop_the_other_items() {
        let mut seen = Vec::new();
        let outcome = for_each("count", &[1, 2, 3], |&n| {
            seen.push(n);
            if n == 2 { Err(Error::invalid("two")) } else { Ok(()) }
        });
        assert_eq!(seen, [1, 2, 3]);
        assert_eq!(outcome.expect_err("one failed").to_string(), "count: 1 of 3 failed");
    }
}
