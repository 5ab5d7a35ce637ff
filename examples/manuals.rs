//! Man pages and shell completions, generated from the definitions behind `bsz --help`.
//!
//!     cargo run --example manuals -- DIRECTORY
//!
//! writes `DIRECTORY/bsz.1`, a `bsz-VERB.1` for every subcommand, and the completions `bsz.bash`,
//! `_bsz` (zsh) and `bsz.fish`. `make manuals` calls it. It is an example so that the program
//! itself does not carry the two generators.

use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: manuals DIRECTORY");
        return ExitCode::from(2);
    };
    match write_all(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("manuals: {}: {e}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for (name, text) in pages()? {
        fs::write(directory.join(name), text)?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut bszfs::cli::command(), "bsz", directory)?;
    }
    Ok(())
}

/// The name and text of every man page.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut program = bszfs::cli::command().disable_help_subcommand(true);
    program.build();
    let verbs: Vec<Command> =
        program.get_subcommands().filter(|c| !c.is_hide_set()).cloned().collect();
    let every = |verb: &Command| format!("bsz-{}", verb.get_name());
    let names: Vec<String> = verbs.iter().map(every).collect();
    let mut pages = vec![("bsz.1".to_owned(), page(program, &names)?)];
    for verb in verbs {
        pages.push((format!("{}.1", every(&verb)), page(verb, &["bsz".to_owned()])?));
    }
    Ok(pages)
}

/// One page. What follows the options in `--help` becomes sections, in the order of man-pages(7).
fn page(command: Command, see_also: &[String]) -> io::Result<Vec<u8>> {
    let version = command.get_version().unwrap_or_default().to_owned();
    let after = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let has_verbs = command.has_subcommands();
    let man = Man::new(command).source(format!("bszfs {version}")).manual("User Commands");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_verbs {
        man.render_subcommands_section(&mut page)?;
    }
    for (heading, lines) in sections(&after.unwrap_or_default()) {
        let mut roff = Roff::new();
        roff.control("SH", [heading.to_uppercase().as_str()]).control("nf", []);
        for line in lines {
            roff.text([roman(line)]);
        }
        roff.control("fi", []).to_writer(&mut page)?;
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    for (i, name) in see_also.iter().enumerate() {
        roff.text([bold(name), roman(if i + 1 < see_also.len() { "(1)," } else { "(1)" })]);
    }
    page.write_all(roff.to_roff().as_bytes())?;
    Ok(page)
}

/// Split a text into sections. Unindented lines that end in a colon are headings.
fn sections(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut sections: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        match (line.strip_suffix(':').filter(|l| !l.starts_with(' ')), sections.last_mut()) {
            (Some(heading), _) => sections.push((heading, Vec::new())),
            (None, Some((_, lines))) if !line.is_empty() => {
                lines.push(line.strip_prefix("  ").unwrap_or(line))
            }
            (None, _) => {}
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_examples() {
        let pages = pages().expect("written to memory");
        let verbs = bszfs::cli::command().get_subcommands().filter(|c| !c.is_hide_set()).count();
        assert_eq!(pages.len(), 1 + verbs);
        for (name, text) in pages {
            let text = String::from_utf8(text).expect("UTF-8");
            for heading in
                ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "\"SEE ALSO\""]
            {
                assert!(
                    text.contains(&format!(".SH {heading}\n")),
                    "{name} lacks {heading}:\n{text}"
                );
            }
        }
    }

    #[test]
    fn headings_are_separated_from_their_lines() {
        let text = "Examples:\n  bsz a: b\n    deeper\n\nExit status:\n  0  fine";
        assert_eq!(
            sections(text),
            [("Examples", vec!["bsz a: b", "  deeper"]), ("Exit status", vec!["0  fine"])]
        );
    }
}
