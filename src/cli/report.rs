//! What the commands say: figures in words, lines, tables and JSON on standard output.

use crate::error::{Context, Result};
use crate::escape;
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// Standard output, as lines for people or as one JSON document.
///
/// A failed write is remembered, not returned: work on files goes on when whoever read the lines has
/// gone, and [`finish`](Self::finish) says so at the end.
pub struct Output {
    json: bool,
    quiet: bool,
    failed: Mutex<Option<io::Error>>,
}

impl Output {
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, failed: Mutex::new(None) }
    }

    /// One line for people, made fit to be shown.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            self.write(&escape::text(text.as_ref()));
        }
    }

    /// The JSON document, where it was asked for; then the outcome of all that was written.
    pub fn finish(self, document: &impl Serialize) -> Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(document).map_err(io::Error::from);
            self.write(&escape::json(&text.about("the report")?));
        }
        match self.failed.into_inner() {
            Ok(Some(e)) => Err(e).about("standard output"),
            _ => Ok(()),
        }
    }

    fn write(&self, text: &str) {
        let Ok(mut failed) = self.failed.lock() else { return };
        if failed.is_none() {
            let mut stdout = io::stdout().lock();
            *failed = writeln!(stdout, "{text}").and_then(|()| stdout.flush()).err();
        }
    }
}

/// One file's outcome: a line of the report, and an object of the JSON.
#[derive(Serialize)]
pub struct Row {
    #[serde(flatten, serialize_with = "escape::field::path")]
    pub path: PathBuf,
    #[serde(flatten, serialize_with = "escape::field::output")]
    pub output: Option<PathBuf>,
    /// `packed`, `copied`, `verified`, `damaged`, ...
    pub action: &'static str,
    /// Why it was skipped, or what is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Bytes of the original, and of the archive.
    pub original: u64,
    pub stored: u64,
    pub seconds: f64,
}

impl Row {
    /// The line for people; `None` for what is not worth one (copied files, links).
    pub fn line(&self) -> Option<String> {
        let path = escape::path(&self.path);
        match (self.action, &self.why) {
            ("copied" | "linked", _) => None,
            (action, Some(why)) => Some(format!("{path}: {action}: {why}")),
            ("already done", _) => Some(format!("{path}: already done")),
            (action, None) => Some(format!(
                "{path}: {action}, {}",
                figures(self.original, self.stored, self.seconds)
            )),
        }
    }
}

/// All files of one command, with their sum.
#[derive(Serialize)]
pub struct Summary {
    pub files: Vec<Row>,
    pub warnings: Vec<String>,
    /// What failed, and why.
    pub failures: Vec<String>,
    original: u64,
    stored: u64,
    seconds: f64,
}

impl Summary {
    pub fn new(
        files: Vec<Row>,
        warnings: Vec<String>,
        failures: Vec<String>,
        took: Duration,
    ) -> Self {
        let original = files.iter().map(|row| row.original).sum();
        let stored = files.iter().map(|row| row.stored).sum();
        Self { files, warnings, failures, original, stored, seconds: took.as_secs_f64() }
    }

    /// The last line: how many files of which outcome, and the figures over all of them.
    pub fn line(&self) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for row in &self.files {
            match counts.iter_mut().find(|(action, _)| *action == row.action) {
                Some((_, n)) => *n += 1,
                None => counts.push((row.action, 1)),
            }
        }
        let counts: Vec<String> =
            counts.iter().map(|(action, n)| format!("{n} {action}")).collect();
        let counts = if counts.is_empty() { "no files".into() } else { counts.join(", ") };
        format!("total: {counts}, {}", figures(self.original, self.stored, self.seconds))
    }
}

/// `67.1 MB in 44.2 MB (65.9 %), 0.42 s, 0.16 GB/s`; the rate is that of the original's bytes.
fn figures(original: u64, stored: u64, seconds: f64) -> String {
    format!(
        "{} in {} ({}), {seconds:.2} s, {}",
        bytes(original),
        bytes(stored),
        ratio(stored, original),
        rate(original, seconds)
    )
}

/// A size in decimal units: `67.1 MB`.
pub fn bytes(n: u64) -> String {
    indicatif::DecimalBytes(n).to_string()
}

/// `part` in percent of `whole`.
pub fn ratio(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}

/// `1.25 GB/s`.
pub fn rate(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 { "-".into() } else { format!("{:.2} GB/s", bytes as f64 / seconds / 1e9) }
}

/// Rows as lines in aligned columns, made fit to be shown; the columns named in `right` are aligned to the right.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    // Before they are measured.
    let shown =
        |row: &Vec<String>| row.iter().map(|cell| escape::text(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(shown).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &[String], i: usize| row.get(i).map_or(0, |text| text.chars().count());
    let widths: Vec<usize> =
        (0..columns).map(|i| rows.iter().map(|row| cell(row, i)).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (text, &width))| {
            match right.contains(&i) {
                true => format!("{text:>width$}"),
                false => format!("{text:<width$}"),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "1000".into(), "end".into()]];
        assert_eq!(table(&rows, &[1]), ["a        1", "long  1000  end"]);
        let rows = [vec!["\x07".into(), "1".into()], vec!["long".into(), "2".into()]];
        assert_eq!(table(&rows, &[]), ["\\u{7}  1", "long   2"]);
    }

    #[test]
    fn nothing_divides_by_zero() {
        assert_eq!(ratio(0, 0), "-");
        assert_eq!(rate(1, 0.0), "-");
    }
}
