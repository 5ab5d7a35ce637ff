//! Mount options: `-o name=value` is another spelling of the long flags of `bsz mount`.
//!
//! The clap definitions are the only list of them: an argument under [`HEADING`] or [`URL_HEADING`]
//! can also be given to `-o`, with `_` in place of `-`.

#[cfg(feature = "remote")]
use super::remote::URL_HEADING;
use crate::error::{Context, Error, Result};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, ValueHint};
use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The help heading of the arguments that `-o` accepts, too.
pub(super) const HEADING: &str = "Mount options";

#[cfg(not(feature = "remote"))]
const URL_HEADING: &str = HEADING;

/// Options of mount(8) that hold for every bszfs mount anyway, or that only other programs read.
const GENERAL: [&str; 26] = [
    "defaults",
    "ro",
    "rw",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "async",
    "default_permissions",
    "lazytime",
];

/// What to do with an option that is not defined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    Refuse,
    Ignore,
}

/// The command line equivalent to `given` and the values `options` of `-o`: long flags and absolute
/// paths only, so that it means the same in every directory.
///
/// `given` must have been matched by a command with the arguments of `command`. An option of `-o`
/// comes after the flags, so it wins.
pub(super) fn normalise(
    command: &Command,
    given: &ArgMatches,
    options: &[String],
    unknown: Unknown,
) -> Result<Vec<OsString>> {
    let mut flags = Vec::new();
    let mut positional = vec![OsString::from("--")];
    let was_given =
        |arg: &&Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    for arg in command.get_arguments().filter(was_given) {
        let values = given.get_raw(arg.get_id().as_str()).into_iter().flatten();
        match arg.get_long() {
            Some(_) if !arg.get_action().takes_values() => flags.push(flag(arg, None)),
            Some(_) => {
                for value in values {
                    flags.push(flag(arg, Some(&absolute(arg, value)?)));
                }
            }
            None if arg.is_positional() => {
                for value in values {
                    positional.push(absolute(arg, value)?);
                }
            }
            // `-o` itself.
            None => {}
        }
    }
    for option in options {
        match parse(command, option) {
            Ok(Parsed::Flag(flag)) => flags.push(flag),
            Ok(Parsed::General) => {}
            Ok(Parsed::Unknown) if unknown == Unknown::Ignore => {}
            Ok(Parsed::Unknown) => {
                let why = "unknown mount option; `bsz mount --help` lists those of bszfs";
                return Err(Error::invalid(why).about(format_args!("-o {option}")));
            }
            // With -s, mount(8) asks to tolerate wrong values as well.
            Err(_) if unknown == Unknown::Ignore => {}
            Err(e) => return Err(e.about(format_args!("-o {option}"))),
        }
    }
    flags.append(&mut positional);
    Ok(flags)
}

/// What an option of `-o` is.
enum Parsed {
    /// This long flag, whose value is valid.
    Flag(OsString),
    /// One that any mount may have, and that changes nothing.
    General,
    Unknown,
}

fn parse(command: &Command, option: &str) -> Result<Parsed> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let is_general = name.is_empty() || GENERAL.contains(&name);
    if name.starts_with("x-") || name.starts_with("comment") || is_general && value.is_none() {
        return Ok(Parsed::General);
    }
    let named = |arg: &&Arg| {
        [Some(HEADING), Some(URL_HEADING)].contains(&arg.get_help_heading())
            && arg.get_long().is_some_and(|long| long.replace('-', "_") == name)
    };
    let Some(arg) = command.get_arguments().find(named) else { return Ok(Parsed::Unknown) };
    let value = match (arg.get_action().takes_values(), value) {
        (false, None) => return Ok(Parsed::Flag(flag(arg, None))),
        (false, Some(_)) => return Err(Error::invalid("takes no value")),
        (true, None | Some("")) => return Err(Error::invalid("needs a value")),
        (true, Some(value)) => value,
    };
    check(arg, value)?;
    Ok(Parsed::Flag(flag(arg, Some(&absolute(arg, value.as_ref())?))))
}

/// Have clap parse one value, so that an error can be attributed to the option it came from.
fn check(arg: &Arg, value: &str) -> Result<()> {
    let alone = Command::new("-o").no_binary_name(true).arg(arg.clone());
    let matched = alone.try_get_matches_from([flag(arg, Some(value.as_ref()))]);
    matched.map(drop).map_err(|e| {
        let why = e.source().map_or_else(|| e.kind().to_string(), ToString::to_string);
        Error::invalid(why)
    })
}

fn flag(arg: &Arg, value: Option<&OsStr>) -> OsString {
    let mut flag = OsString::from("--");
    flag.push(arg.get_long().unwrap_or_default());
    if let Some(value) = value {
        flag.push("=");
        flag.push(value);
    }
    flag
}

/// Whether a source is on other machines.
#[cfg(feature = "remote")]
pub(super) fn is_url(source: &OsStr) -> bool {
    source.to_str().is_some_and(crate::remote::is_remote)
}

#[cfg(not(feature = "remote"))]
pub(super) fn is_url(_: &OsStr) -> bool {
    false
}

/// `value` with its path made absolute, if it holds one: clap's hint says so.
fn absolute(arg: &Arg, value: &OsStr) -> Result<OsString> {
    let absolute = |path: &OsStr| match is_url(path) {
        true => Ok(path.to_owned()),
        false => std::path::absolute(path).about_path(Path::new(path)).map(OsString::from),
    };
    match arg.get_value_hint() {
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath => absolute(value),
        ValueHint::Url => match value.as_bytes().strip_prefix(b"unix:") {
            Some(path) if !path.is_empty() => {
                let mut address = OsString::from("unix:");
                address.push(absolute(OsStr::from_bytes(path))?);
                Ok(address)
            }
            _ => Ok(value.to_owned()),
        },
        _ => Ok(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let option = |name: &'static str| Arg::new(name).long(name).help_heading(HEADING);
        Command::new("test").no_binary_name(true).args([
            Arg::new("source").value_hint(ValueHint::AnyPath),
            option("cache-size").value_parser(clap::value_parser!(u64)),
            option("allow-other").action(clap::ArgAction::SetTrue),
            option("log").value_hint(ValueHint::FilePath),
            option("metrics").value_hint(ValueHint::Url),
            Arg::new("daemon").long("daemon").action(clap::ArgAction::SetTrue),
        ])
    }

    fn normalised(line: &[&str], options: &[&str], unknown: Unknown) -> Result<Vec<OsString>> {
        let given = command().try_get_matches_from(line).expect("a valid line");
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        normalise(&command(), &given, &options, unknown)
    }

    #[test]
    fn options_become_long_flags_and_general_ones_disappear() {
        let options = ["ro", "nofail", "x-systemd.automount", "", "allow_other", "log=/l"];
        let line =
            normalised(&["--cache-size", "1", "/a"], &options, Unknown::Refuse).expect("valid");
        assert_eq!(line, ["--cache-size=1", "--allow-other", "--log=/l", "--", "/a"]);
    }

    #[test]
    fn paths_become_absolute() {
        let here = std::env::current_dir().expect("a directory").join("x");
        let here = here.to_str().expect("UTF-8");
        for line in [["--log=x", "--metrics=unix:x", "x"], ["--metrics=unix:x", "--log=x", "x"]] {
            let found = normalised(&line, &[], Unknown::Refuse).expect("valid");
            let metrics = format!("--metrics=unix:{here}");
            assert_eq!(found, [&format!("--log={here}"), &metrics, "--", here]);
        }
    }

    #[cfg(feature = "remote")]
    #[test]
    fn urls_of_fstab_stay_as_they_are() {
        // What mount(8) passes on of a line with _netdev.
        let options = ["rw", "allow_other", "_netdev", "nofail", "x-systemd.automount"];
        for url in ["s3://models/llama", "https://host/models/", "hf://org/repo@v1.0"] {
            let line = normalised(&[url], &options, Unknown::Refuse).expect(url);
            assert_eq!(line, ["--allow-other", "--", url]);
        }
    }

    #[test]
    fn wrong_options_are_named() {
        for (option, why) in [
            ("cache_sise=1", "-o cache_sise=1: unknown mount option"),
            ("cache-size=1", "-o cache-size=1: unknown mount option"),
            ("daemon", "-o daemon: unknown mount option"),
            ("ro=1", "-o ro=1: unknown mount option"),
            ("cache_size=x", "-o cache_size=x: invalid digit"),
            ("cache_size", "-o cache_size: needs a value"),
            ("allow_other=1", "-o allow_other=1: takes no value"),
        ] {
            let e = normalised(&[], &[option], Unknown::Refuse).expect_err(option).to_string();
            assert!(e.starts_with(why), "{e}");
            assert_eq!(normalised(&[], &[option], Unknown::Ignore).expect(option), ["--"]);
        }
    }
}
