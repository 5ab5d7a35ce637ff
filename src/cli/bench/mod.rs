//! `bsz bench`: what compression gains and costs for the user's file on the user's machine.

#[cfg(feature = "cuda")]
mod cuda;
mod measure;

use super::common::check;
use super::interrupt::clean_up_when_interrupted;
use super::progress::Bar;
use super::report::{self, Output};
use crate::codec::{self, ChunkDecoder};
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::pack::{self, FileReport, Options, Task};
use crate::read::{self, Archive};
use clap::Args;
use measure::{RandomReads, Sample, best, pool, random_reads};
use rayon::ThreadPool;
use serde::Serialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Measure size and speed on this machine
///
/// Packs FILE to a temporary archive, unless FILE is an archive. Then measures verification,
/// decoding from memory to memory, copying the same number of bytes, and random reads of 4 KiB.
/// Each rate is in decoded bytes, and is the best of the passes that fit into the time. FILE is
/// only read.
#[derive(Args)]
#[command(after_help = "Examples:
  bsz bench model.safetensors            packs it to a temporary archive first
  bsz bench model.bsz                    uses an existing archive
  bsz bench --threads 1,8 model.bsz      with one thread and with eight
  bsz bench --seconds 5 model.bsz        five seconds per row, for steadier figures
  bsz bench --cuda model.bsz             decodes on a GPU
  bsz bench --json model.bsz             the figures as JSON

The temporary archive is written to $TMPDIR if that is set, else beside FILE, and removed.")]
pub struct BenchArgs {
    /// A model or any other file, or a .bsz archive
    file: PathBuf,
    /// Decode with these numbers of threads, and with 1; pack and verify with the largest [default:
    /// 1, 2, 4 and so on, up to the number of cores]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..=4096)
    )]
    threads: Vec<u16>,
    /// Measure each row for N seconds, or for one pass if that takes longer
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_seconds)]
    seconds: f64,
    /// Measure decoding on a GPU instead, and copies to and from it
    #[cfg(feature = "cuda")]
    #[arg(long)]
    cuda: bool,
    /// Use this GPU, as the CUDA driver counts them
    #[cfg(feature = "cuda")]
    #[arg(long, value_name = "N", default_value_t = 0, requires = "cuda")]
    gpu: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse().ok().filter(|s| (0.001..=86_400.0).contains(s));
    seconds.ok_or_else(|| "must be a number of seconds between 0.001 and 86400".into())
}

impl BenchArgs {
    /// The numbers of threads, ascending from 1.
    fn threads(&self) -> Vec<usize> {
        let mut list: Vec<usize> = self.threads.iter().copied().map(usize::from).collect();
        if list.is_empty() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            list.extend(std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < cores));
            list.push(cores);
        }
        list.push(1);
        list.sort_unstable();
        list.dedup();
        list
    }
}

/// The measurements, as in the JSON. Rates are in GB/s of decoded bytes.
#[derive(Serialize)]
struct Figures {
    #[serde(flatten, serialize_with = "escape::field::file")]
    file: PathBuf,
    /// Bytes of the original; `stored` is bytes of the archive.
    bytes: u64,
    stored: u64,
    ratio: f64,
    /// Includes verification; `null` if FILE is an archive.
    pack_gbs: Option<f64>,
    decoders: Vec<DecoderRate>,
    memcpy: Vec<CopyRate>,
    verify_gbs: f64,
    random: RandomReads,
    /// The threads of rows without a number of their own.
    #[serde(skip)]
    most_threads: usize,
    /// Decoded bytes of the measured chunks, if these are not all.
    #[serde(skip)]
    sampled: Option<u64>,
}

#[derive(Serialize)]
struct DecoderRate {
    name: &'static str,
    threads: usize,
    gbs: f64,
}

#[derive(Serialize)]
struct CopyRate {
    threads: usize,
    gbs: f64,
}

/// `bsz bench`
pub fn bench(args: BenchArgs, quiet: bool) -> Result<()> {
    clean_up_when_interrupted()?;
    let output = Output::new(args.json, quiet);
    #[cfg(feature = "cuda")]
    if args.cuda {
        // First, so that a missing GPU is reported at once.
        let gpu = crate::gpu::Gpu::open(args.gpu)?;
        let bar = Bar::new(quiet);
        let (archive, _) = open(&args.file, &pool(*args.threads().last().unwrap_or(&1))?, &bar)?;
        let figures = cuda::figures(&gpu, &archive, args.seconds, &bar);
        let figures = figures.about_path(&args.file)?;
        figures.lines().iter().for_each(|line| output.line(line));
        return output.finish(&figures);
    }
    let figures = figures(&args, &Bar::new(quiet))?;
    figures.lines().iter().for_each(|line| output.line(line));
    output.finish(&figures)
}

fn figures(args: &BenchArgs, bar: &Bar) -> Result<Figures> {
    let (file, seconds, threads) = (&args.file, args.seconds, args.threads());
    let most_threads = *threads.last().unwrap_or(&1);
    let pool = pool(most_threads)?;
    let (archive, pack_gbs) = open(file, &pool, bar)?;
    let bytes = archive.footer().original_len;
    let decoder = codec::fastest();

    // Fills the page cache, and makes sure that no damaged archive is measured.
    bar.start("reading", file, bytes, 1);
    pool.install(|| read::verify(&archive, &*decoder, &|n| bar.advance(n))).about_path(file)?;
    bar.say("verify");
    let verify = || pool.install(|| read::verify(&archive, &*decoder, &|_| ()));
    let verify_gbs =
        best(bytes, seconds, |times| (0..times).try_for_each(|_| verify())).about_path(file)?;
    bar.say("random reads");
    let random = random_reads(&archive, &*decoder, seconds).about_path(file)?;

    bar.say("loading chunks");
    let sample = pool.install(|| Sample::load(&archive, &*decoder)).about_path(file)?;
    let (decoders, memcpy) = chunks(&sample, &*decoder, &threads, seconds, bar).about_path(file)?;
    let stored = archive.stored_len();
    Ok(Figures {
        file: file.clone(),
        bytes,
        stored,
        ratio: stored as f64 / bytes as f64,
        pack_gbs,
        decoders,
        memcpy,
        verify_gbs,
        random,
        most_threads,
        sampled: Some(sample.bytes()).filter(|&sampled| sampled < bytes),
    })
}

/// Open the archive `file`, or make a temporary one from it; returns the rate of that, too.
fn open(file: &Path, pool: &ThreadPool, bar: &Bar) -> Result<(Archive, Option<f64>)> {
    let (archive, pack_gbs) = if file.extension().is_some_and(|e| e == "bsz") {
        (Archive::open(file)?, None)
    } else {
        let (archive, gbs) = pool.install(|| pack(file, bar))?;
        (archive, Some(gbs))
    };
    if archive.index().is_empty() {
        return Err(Error::invalid("is empty: there is nothing to measure").about_path(file));
    }
    Ok((archive, pack_gbs))
}

/// Measure memory to memory: the decoder and memcpy with each number of threads, then the other
/// decoders with one.
fn chunks(
    sample: &Sample,
    decoder: &dyn ChunkDecoder,
    threads: &[usize],
    seconds: f64,
    bar: &Bar,
) -> Result<(Vec<DecoderRate>, Vec<CopyRate>)> {
    let decode = |decoder: &dyn ChunkDecoder, threads| {
        let name = decoder.name();
        bar.say(&format!("decode, {name}, threads: {threads}"));
        sample.decode(decoder, threads, seconds).map(|gbs| DecoderRate { name, threads, gbs })
    };
    let (mut decoders, mut memcpy) = (Vec::new(), Vec::new());
    for &threads in threads {
        // In turns, since clock rates drift.
        bar.say(&format!("memcpy, threads: {threads}"));
        memcpy.push(CopyRate { threads, gbs: sample.copy(threads, seconds)? });
        decoders.push(decode(decoder, threads)?);
    }
    for other in codec::decoders().iter().filter(|d| d.name() != decoder.name()) {
        decoders.push(decode(&**other, 1)?);
    }
    Ok((decoders, memcpy))
}

/// Pack `file` to an unnamed archive; returns the rate, too.
fn pack(file: &Path, bar: &Bar) -> Result<(Archive, f64)> {
    let beside = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let dir = named.as_deref().unwrap_or(beside);
    let bytes = fs::metadata(file).about_path(file)?.len();
    let room = rustix::fs::statvfs(dir).about_path(dir)?;
    let room = room.f_bavail.saturating_mul(room.f_frsize);
    if room < bytes {
        let [room, bytes] = [room, bytes].map(report::bytes);
        let why = format!(
            "has {room} free, but the archive may take {bytes}; set TMPDIR to another directory"
        );
        return Err(Error::invalid(why).about_path(dir));
    }
    let begun = Instant::now();
    let options = Options::default();
    let check = |archive: &File, p: &dyn pack::Progress| check(archive, true, p);
    let (archive, packed) = pack::unnamed(file, dir, &options, &check, &Packing(bar))?;
    let gbs = packed.original as f64 / begun.elapsed().as_secs_f64() / 1e9;
    Ok((Archive::from_file(archive).about_path(file)?, gbs))
}

/// Shows the progress of packing.
struct Packing<'a>(&'a Bar);

impl pack::Progress for Packing<'_> {
    fn begin(&self, path: &Path, task: Task, bytes: u64) {
        self.0.start("packing", path, bytes, task.passes());
    }

    fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }

    fn end(&self, _: &FileReport) {}
}

impl Figures {
    fn lines(&self) -> Vec<String> {
        let rate = |gbs: f64| format!("{gbs:.2} GB/s");
        let threads = |n: usize| n.to_string();
        let mut rows = vec![["", "threads", "rate", "of memcpy"].map(String::from).to_vec()];
        if let Some(gbs) = self.pack_gbs {
            rows.push(vec!["pack and verify".into(), threads(self.most_threads), rate(gbs)]);
        }
        rows.push(vec!["verify".into(), threads(self.most_threads), rate(self.verify_gbs)]);
        for d in &self.decoders {
            let memcpy = self.memcpy.iter().find(|m| m.threads == d.threads);
            let part = memcpy.map_or(String::new(), |m| format!("{:.1} %", 100.0 * d.gbs / m.gbs));
            rows.push(vec![format!("decode, {}", d.name), threads(d.threads), rate(d.gbs), part]);
        }
        rows.extend(
            self.memcpy.iter().map(|m| vec!["memcpy".into(), threads(m.threads), rate(m.gbs)]),
        );
        let head = format!(
            "{}: {} -> {} ({})",
            escape::path(&self.file),
            report::bytes(self.bytes),
            report::bytes(self.stored),
            report::ratio(self.stored, self.bytes),
        );
        let sampled = self.sampled.map(|bytes| {
            format!("decoded: a sample of {}, evenly spread over the file", report::bytes(bytes))
        });
        let random = format!(
            "random reads of 4 KiB, uncached: {:.0} per second, median {:.0} µs, \
             99 % within {:.0} µs",
            self.random.reads_per_s, self.random.median_us, self.random.p99_us
        );
        let table = report::table(&rows, &[1, 2, 3]);
        std::iter::once(head).chain(sampled).chain(table).chain([random]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn threads_ascend_from_one() {
        let threads =
            |line: &[&str]| Line::parse_from([&["bench", "x"], line].concat()).bench.threads();
        assert_eq!(threads(&["--threads", "8,3,8"]), [1, 3, 8]);
        let default = threads(&[]);
        assert_eq!(default[0], 1);
        assert!(default.is_sorted_by(|a, b| a < b), "{default:?}");
        assert_eq!(
            default.last().copied(),
            std::thread::available_parallelism().ok().map(usize::from)
        );
    }
}
