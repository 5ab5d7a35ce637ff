//! `bsz unpack`.

use super::bases::BaseArgs;
use super::common::{Common, Opened};
use super::interrupt::clean_up_when_interrupted;
use super::progress::Watch;
use super::report::Output;
use super::source::RemoteArgs;
use crate::error::{Context, Error, Result};
use crate::pack::{self, OpenArchive, UnpackOptions};
use crate::read::Archive;
use clap::Args;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Restore originals, byte for byte
#[derive(Args)]
#[command(after_help = "Examples:
  bsz unpack model.bsz                       writes model.safetensors beside it
  bsz unpack model.bsz -o copy.safetensors   writes that file
  bsz unpack llama-packed/ -o llama/         unpacks a directory and copies its other files
  bsz unpack --preserve backup/ -o /srv/     as root: restores every recorded permission bit
  bsz unpack s3://models/llama/ -o llama/    from a bucket, and so from gs://, az://, https://
  bsz unpack hf://org/repo@v1 -o model/      a repository of the Hugging Face hub")]
pub struct UnpackArgs {
    /// An archive, or a directory with archives; or the URL of one
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The file or directory to write
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Overwrite existing files
    #[arg(long)]
    force: bool,
    /// As root, restore setuid, setgid and write permission for others even from archives that
    /// belong to other users
    #[arg(long)]
    preserve: bool,
    #[command(flatten)]
    bases: BaseArgs,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    #[cfg_attr(not(feature = "remote"), allow(dead_code))]
    remote: RemoteArgs,
}

/// `bsz unpack`
pub fn unpack(args: UnpackArgs, quiet: bool) -> Result<()> {
    clean_up_when_interrupted()?;
    args.common.start_threads()?;
    args.bases.apply();
    let watch = Watch::new(Output::new(args.common.json, quiet), quiet);
    let (source, output) = (&args.source, args.output.as_deref());
    let trust = args.preserve && rustix::process::geteuid().is_root();
    let options = UnpackOptions { force: args.force, trust };
    #[cfg(feature = "remote")]
    if let Some(place) = args.remote.place(source)? {
        super::remote::unpack(&place.into(), output, options, &watch)?;
        return watch.finish("unpack");
    }
    if fs::metadata(source).about_path(source)?.is_dir() {
        let why = "is a directory, which needs -o OUT";
        let output = output.ok_or_else(|| Error::invalid(why).about_path(source))?;
        pack::unpack_tree(source, output, options, &open, &watch)?;
    } else if let Err(e) = pack::unpack_file(source, output, options, &open, &watch) {
        watch.fail(&e);
    }
    watch.finish("unpack")
}

/// An archive for unpacking; its bases are looked for beside it.
pub(super) fn open(file: File, path: &Path) -> Result<Box<dyn OpenArchive>> {
    Ok(Box::new(Opened(Archive::from_file(file)?.beside(path))))
}
