//! `bsz store enable`.

use super::check;
use super::is_store_of;
use super::service::{Service, quoted};
use super::survey::survey;
use crate::cli::daemon;
use crate::cli::progress::Bar;
use crate::cli::report::Output;
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::mount::{self, Place};
use clap::Args;
use rustix::process::geteuid;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

/// The options of `enable`.
#[derive(Args)]
pub struct EnableOptions {
    /// Use a service of the system, as root always does, instead of one of the user
    #[arg(long, conflicts_with = "no_unit")]
    system: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Start `bsz mount` in the background instead of a service of systemd
    #[arg(long)]
    no_unit: bool,
    /// Set options of the mount, as those of `bsz mount`; not for services
    #[arg(short = 'o', value_name = "OPTION,...", value_delimiter = ',')]
    options: Vec<String>,
}

/// `bsz store enable`
pub fn enable(dir: &Path, o: &EnableOptions, quiet: bool) -> Result<()> {
    let output = Output::new(false, quiet);
    let place = mount::place(dir)?;
    let shown = escape::path(&place.path).into_owned();
    let is_system = o.system || geteuid().is_root();
    let service = Service::of(&place.path, is_system).filter(|_| !o.no_unit);
    if let Some(service) = service.as_ref().filter(|_| !o.options.is_empty()) {
        let why = format!(
            "are not for services: set them with `{} edit {}`, or add --no-unit",
            service.systemctl_name(),
            service.unit
        );
        return Err(Error::invalid(why).about("-o"));
    }
    if is_enabled(&place)? {
        output.line(format!("{shown}: is enabled already; see `bsz store status`"));
        return output.finish(&());
    }
    check::check(&place)?;
    let bar = Bar::new(quiet);
    let survey = survey(&place.path, &|dir| bar.say(&format!("examining {}", escape::path(dir))))?;
    drop(bar);
    survey.lines().iter().for_each(|line| output.line(format!("{shown}: {line}")));
    if !o.yes && !quiet && !agrees()? {
        return Err(Error::invalid("was not enabled").about_path(&place.path));
    }
    match &service {
        Some(service) => {
            service.enable()?;
            output.line(format!("{shown}: enabled, as {}", service.unit));
            if service.ends_at_logout() {
                let how = "runs while you are logged in; `loginctl enable-linger` changes that";
                output.line(format!("{shown}: {how}"));
            }
        }
        None => {
            start(&place.path, &o.options)?;
            let how = if o.no_unit { "" } else { " (systemd does not run)" };
            output.line(format!(
                "{shown}: enabled in the background{how}, until the machine is restarted: then run \
                 `bsz store enable {}` again",
                quoted(place.path.as_os_str())
            ));
        }
    }
    output.finish(&())
}

/// Whether a directory is a store already.
fn is_enabled(place: &Place) -> Result<bool> {
    if !place.is_bszfs() {
        return Ok(false);
    }
    match mount::status(std::slice::from_ref(&place.path)).pop().transpose() {
        Ok(Some(status)) if is_store_of(&status, &place.path) => Ok(true),
        Ok(_) => {
            let why = "is a bszfs mount that is not the store of this directory: unmount it first";
            Err(Error::invalid(why).about_path(&place.path))
        }
        // It is cleared away, and the store is started again.
        Err(e) if e.errno() == Some(libc::ENOTCONN) => {
            mount::detach(&place.path)?;
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Ask whether to go on, if there is a terminal to ask on.
fn agrees() -> Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    write!(io::stderr(), "Enable it? [Y/n] ").about("standard error")?;
    let mut answer = String::new();
    let len = io::stdin().read_line(&mut answer).about("standard input")?;
    let answer = answer.trim().to_ascii_lowercase();
    Ok(len > 0 && matches!(&*answer, "" | "y" | "yes"))
}

/// Start the mount in the background.
fn start(dir: &Path, options: &[String]) -> Result<()> {
    let mut line: Vec<OsString> = vec!["--pack=idle".into()];
    if geteuid().is_root() {
        line.push("--allow-other".into());
    }
    line.extend(options.iter().flat_map(|option| ["-o".into(), OsString::from(option)]));
    line.extend(["--".into(), dir.into()]);
    daemon::launch(&line, daemon::READY_WITHIN)
}
