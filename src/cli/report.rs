//! The output of commands: figures, lines, tables and JSON on standard output.

use crate::error::{Context, Result};
use crate::escape;
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// Standard output: lines for people, or one JSON document.
///
/// A failed write is kept for [`finish`](Self::finish) to return: work on files goes on even if
/// nobody reads the lines any more.
pub struct Output {
    json: bool,
    quiet: bool,
    failed: Mutex<Option<io::Error>>,
}

impl Output {
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, failed: Mutex::new(None) }
    }

    /// Print one line for people, escaped for a terminal.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            self.write(&escape::text(text.as_ref()));
        }
    }

    /// Print the JSON document if it was asked for.
    ///
    /// # Errors
    /// That of the first write that failed, here or before.
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

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Packed,
    Unpacked,
    Copied,
    Linked,
    #[serde(rename = "already done")]
    AlreadyDone,
    Skipped,
    Verified,
    Damaged,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Packed => "packed",
            Self::Unpacked => "unpacked",
            Self::Copied => "copied",
            Self::Linked => "linked",
            Self::AlreadyDone => "already done",
            Self::Skipped => "skipped",
            Self::Verified => "verified",
            Self::Damaged => "damaged",
        }
    }
}

/// One file: a line of the report, and an object of the JSON.
#[derive(Serialize)]
pub struct Row {
    #[serde(flatten, serialize_with = "escape::field::path")]
    pub path: PathBuf,
    #[serde(flatten, serialize_with = "escape::field::output")]
    pub output: Option<PathBuf>,
    #[serde(rename = "action")]
    pub outcome: Outcome,
    /// Why it was skipped, or how it is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The archives that it was packed against.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<String>,
    /// Bytes of the original, and of the archive.
    pub original: u64,
    pub stored: u64,
    pub seconds: f64,
}

impl Row {
    /// The line for people; `None` for copies and links, which are not worth one.
    pub fn line(&self) -> Option<String> {
        let path = escape::path(&self.path);
        let word = self.outcome.word();
        match (self.outcome, &self.why) {
            (Outcome::Copied | Outcome::Linked, _) => None,
            (_, Some(why)) => Some(format!("{path}: {word}: {why}")),
            (Outcome::AlreadyDone, _) => Some(format!("{path}: {word}")),
            (_, None) => {
                let figures = figures(self.original, self.stored, self.seconds);
                let bases = match &self.bases[..] {
                    [] => String::new(),
                    bases => format!(" against {}", bases.join(", ")),
                };
                Some(format!("{path}: {word}{bases}, {figures}"))
            }
        }
    }
}

/// All files of one command, with their totals.
#[derive(Serialize)]
pub struct Summary {
    pub files: Vec<Row>,
    pub warnings: Vec<String>,
    /// Which files of directories are left as they are, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
    /// The errors.
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
        Self {
            files,
            warnings,
            left: Vec::new(),
            failures,
            original,
            stored,
            seconds: took.as_secs_f64(),
        }
    }

    /// The last line: the number of files by outcome, and the total figures.
    pub fn line(&self) -> String {
        let mut counts: Vec<(Outcome, usize)> = Vec::new();
        for row in &self.files {
            match counts.iter_mut().find(|(outcome, _)| *outcome == row.outcome) {
                Some((_, n)) => *n += 1,
                None => counts.push((row.outcome, 1)),
            }
        }
        let counts: Vec<String> =
            counts.iter().map(|(outcome, n)| format!("{n} {}", outcome.word())).collect();
        let counts = if counts.is_empty() { "no files".into() } else { counts.join(", ") };
        format!("total: {counts}, {}", figures(self.original, self.stored, self.seconds))
    }
}

/// `67.1 MB in 44.2 MB (65.9 %), 0.42 s, 0.16 GB/s`; the rate is in bytes of the original.
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

/// `part` as a percentage of `whole`.
pub fn ratio(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}

/// `1.25 GB/s`.
pub fn rate(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 { "-".into() } else { format!("{:.2} GB/s", bytes as f64 / seconds / 1e9) }
}

/// Rows as lines in aligned columns, escaped for a terminal. The columns in `right` are
/// right-aligned.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    // Escaped first, since that changes their width.
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
