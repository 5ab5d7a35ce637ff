//! `bsz verify` and `bsz info`.

use super::bases::BaseArgs;
use super::common::{Common, verify_with};
use super::outcome;
use super::progress::Watch;
use super::report::{self, Outcome, Output, Row};
use super::source::{self, Item, Items, RemoteArgs};
use crate::codec;
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::read::{self, Coded, DescribedBase};
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

/// Check archives by decoding them; write nothing
///
/// Checks every checksum, and the SHA-256 of the original.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz verify model.bsz
  bsz verify --quick llama-packed/    fast enough to run often; finds any damage of the disk
  bsz verify llama-packed/ more.bsz   every archive in a directory, and one more
  bsz verify --json llama-packed/     the outcome as JSON
  bsz verify s3://models/llama/       the archives of a bucket, of which nothing is kept")]
pub struct VerifyArgs {
    /// Archives, or directories with archives; or URLs of them
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<PathBuf>,
    /// Check the checksum of every chunk (XXH3-64), but not the SHA-256, which takes longer than
    /// decoding
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    bases: BaseArgs,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Describe archives: each tensor with its dtype, shape, size and coding
#[derive(Args)]
#[command(after_help = "Examples:
  bsz info model.bsz           one line per tensor
  bsz info llama-packed/       one line per archive
  bsz info --json model.bsz    everything, as JSON
  bsz info hf://org/repo       the archives of a repository of the Hugging Face hub")]
pub struct InfoArgs {
    /// An archive, or a directory with archives; or the URL of one
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bases: BaseArgs,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// `bsz verify`: check every archive, even if some are damaged.
pub fn verify(args: VerifyArgs, quiet: bool) -> Result<()> {
    args.common.start_threads()?;
    args.bases.apply();
    let watch = Watch::new(Output::new(args.common.json, quiet), quiet);
    for source in &args.sources {
        match source::archives(source, &args.remote, &mut |e| watch.fail(&e)) {
            Ok(Items::One(item)) => verify_one(&item, args.quick, &watch),
            Ok(Items::Directory(found)) if found.is_empty() => {
                watch.fail(&Error::invalid("contains no archives").about_path(source))
            }
            Ok(Items::Directory(found)) => {
                found.iter().for_each(|item| verify_one(item, args.quick, &watch));
            }
            Err(e) => watch.fail(&e),
        }
    }
    watch.finish("verify")
}

fn verify_one(item: &Item, quick: bool, watch: &Watch) {
    let (begun, path) = (Instant::now(), item.path.as_path());
    let verified = item.open().and_then(|archive| {
        watch.bar.start("verifying", path, archive.footer().original_len, 1);
        let outcome =
            verify_with(quick)(&archive, &*codec::fastest(), &|bytes| watch.bar.advance(bytes));
        outcome.map(|()| archive.footer().original_len).about_path(path)
    });
    let row = |outcome, original, why| Row {
        path: path.into(),
        output: None,
        outcome,
        why,
        bases: Vec::new(),
        original,
        stored: item.stored(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    match verified {
        Ok(bytes) => watch.add(row(Outcome::Verified, bytes, None)),
        Err(e) => {
            // The row is for the JSON; people see the error.
            watch.add_silently(row(Outcome::Damaged, 0, Some(e.to_string())));
            watch.fail(&e);
        }
    }
}

/// An archive's path and description.
#[derive(serde::Serialize)]
struct Described {
    #[serde(flatten, serialize_with = "escape::field::path")]
    path: PathBuf,
    #[serde(skip)]
    relative: PathBuf,
    #[serde(flatten)]
    description: read::Description,
}

/// `bsz info`: describe the tensors of an archive, or the archives of a directory.
pub fn info(args: InfoArgs) -> Result<()> {
    args.bases.apply();
    let output = Output::new(args.json, false);
    let describe = |item: Item| -> Result<Described> {
        let archive = item.open()?;
        let description = read::describe(&archive, &*codec::fastest()).about_path(&item.path)?;
        Ok(Described { path: item.path, relative: item.relative, description })
    };
    let mut failures = Vec::new();
    let found = match source::archives(&args.source, &args.remote, &mut |e| failures.push(e))? {
        Items::One(item) => {
            let one = describe(item)?;
            info_lines(&one).iter().for_each(|line| output.line(line));
            return output.finish(&one);
        }
        Items::Directory(found) => found,
    };
    let files = found.len() + failures.len();
    let mut all = Vec::new();
    for item in found {
        describe(item).map_or_else(|e| failures.push(e), |described| all.push(described));
    }
    let mut rows =
        vec![["archive", "original", "stored", "ratio", "tensors"].map(String::from).to_vec()];
    rows.extend(all.iter().map(|Described { relative: path, description: d, .. }| {
        let sizes = [
            report::bytes(d.original),
            report::bytes(d.archive),
            report::ratio(d.archive, d.original),
        ];
        [vec![escape::path(path).into_owned()], sizes.to_vec(), vec![d.tensors.len().to_string()]]
            .concat()
    }));
    report::table(&rows, &[1, 2, 3, 4]).iter().for_each(|line| output.line(line));
    let why = |e: &Error| e.to_string();
    let failed: Vec<String> = failures.iter().map(why).collect();
    output.finish(&serde_json::json!({ "archives": all, "failures": failed }))?;
    outcome("info", &failures, files)
}

fn info_lines(Described { path, description: d, .. }: &Described) -> Vec<String> {
    let mut rows =
        vec![["tensor", "dtype", "shape", "size", "ratio", "coding"].map(String::from).to_vec()];
    let coded = |name: &str, dtype: &str, shape: &[usize], coded: &Coded| {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let codings: Vec<&str> = coded.codings.keys().copied().collect();
        vec![
            escape::text(name).into_owned(),
            escape::text(dtype).into_owned(),
            shape.join("x"),
            report::bytes(coded.bytes),
            report::ratio(coded.stored, coded.bytes),
            codings.join(" + "),
        ]
    };
    rows.extend(d.tensors.iter().map(|t| coded(&t.name, &t.dtype, &t.shape, &t.coded)));
    rows.push(coded("(no tensor)", "", &[], &d.rest));
    let head = format!(
        "{}: {} -> {} ({}), {} tensors in {} chunks",
        escape::path(path),
        report::bytes(d.original),
        report::bytes(d.archive),
        report::ratio(d.archive, d.original),
        d.tensors.len(),
        d.chunks,
    );
    let mut lines = vec![head, format!("SHA-256 of the original: {}", d.sha256)];
    lines.extend(d.bases.iter().map(base_line));
    lines.extend(report::table(&rows, &[3, 4]));
    lines
}

fn base_line(base: &DescribedBase) -> String {
    let place = match (&base.path, &base.missing) {
        (Some(path), _) => format!("found at {}", escape::path(path)),
        (None, Some(why)) => format!("MISSING: {why}"),
        (None, None) => "not looked for".to_owned(),
    };
    format!(
        "base {} ({}, SHA-256 {}…): {} in {} chunks differ from it, stored in {}; {place}",
        escape::text(&base.name),
        report::bytes(base.len),
        &base.sha256[..12],
        report::bytes(base.coded.bytes),
        base.chunks,
        report::bytes(base.coded.stored),
    )
}
