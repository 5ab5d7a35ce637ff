//! `bsz doctor URL`: whether a URL can be read, by which credentials, and how fast.

use super::finding::{Finding, Verdict};
use super::report::bytes;
use crate::error::Error;
use crate::remote::{Deadlines, Probe, RemoteOptions, Sample};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// For each check.
const DEADLINE: Duration = Duration::from_secs(20);

/// Small requests whose times are compared.
const REQUESTS: usize = 5;

/// How much is read to measure a rate, and for how long.
const MOST: u64 = 32 << 20;
const LONGEST: Duration = Duration::from_secs(5);

/// Where systems keep their certificates.
const CERTIFICATES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Check a URL.
pub(super) fn findings(url: &str) -> Vec<Finding> {
    let deadlines = Deadlines::within(DEADLINE);
    let certificates = certificates();
    let probe = match Probe::new(url, &RemoteOptions { deadlines, ..RemoteOptions::default() }) {
        Ok(probe) => probe,
        Err(e) => return vec![certificates, failed("URL", &e)],
    };
    let origin = probe.origin();
    let credentials = Finding::new("credentials", Verdict::Good, origin.from);
    let mut all = vec![Finding::new("URL", Verdict::Good, probe.name()), certificates, credentials];
    let seen = match probe.look() {
        Ok(seen) => seen,
        Err(e) => {
            let finding = failed("access", &e);
            all.push(match (e.errno(), origin.advice) {
                (Some(libc::EACCES), Some(advice)) => finding.mend(advice),
                _ => finding,
            });
            return all;
        }
    };
    let found = match (seen.entries, &seen.object) {
        (None, Some(object)) => format!("an object of {}", bytes(object.facts.size)),
        (entries, _) => format!("a directory with {}", count(entries.unwrap_or(0))),
    };
    all.push(Finding::new("access", Verdict::Good, found));
    all.push(listing(&probe));
    match &seen.object {
        Some(sample) => all.extend(of_object(&probe, sample)),
        None => all.push(Finding::new("object", Verdict::Fair, "none found to try ranges on")),
    }
    all
}

fn count(entries: usize) -> String {
    if entries == 1 { "1 entry".into() } else { format!("{entries} entries") }
}

/// Whether the system has certificates. Only `https` needs them.
fn certificates() -> Finding {
    let what = "certificates";
    if let Some(file) = std::env::var_os("SSL_CERT_FILE") {
        let found = format!("SSL_CERT_FILE, the file {}", Path::new(&file).display());
        return match fs::read(&file).is_ok_and(|text| !text.is_empty()) {
            true => Finding::new(what, Verdict::Good, found),
            false => Finding::new(what, Verdict::Fair, format!("{found}: empty or not readable"))
                .mend("unset SSL_CERT_FILE, or have it name a file with certificates"),
        };
    }
    if std::env::var_os("SSL_CERT_DIR").is_some() {
        return Finding::new(what, Verdict::Good, "those of SSL_CERT_DIR");
    }
    match CERTIFICATES.into_iter().find(|path| Path::new(path).exists()) {
        Some(path) => Finding::new(what, Verdict::Good, path),
        None => Finding::new(what, Verdict::Fair, "the system has none, so https fails")
            .mend("apt-get install ca-certificates or dnf install ca-certificates"),
    }
}

/// A check that failed, and what helps.
fn failed(what: &'static str, e: &Error) -> Finding {
    let why = e.detail();
    let finding = Finding::new(what, Verdict::Bad, why.as_str());
    let why = why.to_lowercase();
    if why.contains("certificate") || why.contains("unknownissuer") {
        let trust = "the server's certificate is not trusted: add its authority to the system's, \
                     or name a file with it in SSL_CERT_FILE";
        return finding.mend(certificates().mend.unwrap_or_else(|| trust.into()));
    }
    match e.errno() {
        Some(libc::EACCES) => finding.mend("see credentials, and what they are allowed to do"),
        Some(libc::ENOENT) => finding.mend("see the name of the bucket, and the region"),
        Some(libc::EIO) if why.contains("allow_http") => finding.mend("AWS_ALLOW_HTTP=true"),
        Some(libc::EIO) => finding.mend("see the endpoint, the network, HTTPS_PROXY and NO_PROXY"),
        _ => finding.mend("see bsz help unpack and docs/guides/remote.md"),
    }
}

fn listing(probe: &Probe) -> Finding {
    match probe.lists() {
        Ok(n) => Finding::new("listing", Verdict::Good, count(n)),
        Err(e) => Finding::new("listing", Verdict::Fair, e.detail())
            .mend("single objects can be read; directories need listings"),
    }
}

/// What is checked of an object.
fn of_object(probe: &Probe, sample: &Sample) -> Vec<Finding> {
    let etag = match (sample.facts.is_strong(), sample.facts.etag.is_some()) {
        (true, _) => Finding::new("ETags", Verdict::Good, "strong"),
        (false, weak) => {
            let found = if weak { "weak" } else { "none" };
            Finding::new("ETags", Verdict::Fair, format!("{found}: nothing is kept on disk"))
        }
    };
    let mut all = vec![etag];
    match probe.first_byte(sample, REQUESTS) {
        Err(e) => {
            let advice = "the server, or a proxy before it, has to support ranges";
            let finding = Finding::new("ranges", Verdict::Bad, e.detail());
            all.push(finding.mend(advice));
            return all;
        }
        Ok((least, usual)) => {
            all.push(Finding::new("ranges", Verdict::Good, "supported"));
            let found = format!(
                "{:.1} ms, the median of {REQUESTS}; the least {:.1} ms",
                usual.as_secs_f64() * 1e3,
                least.as_secs_f64() * 1e3
            );
            all.push(Finding::new("first byte", Verdict::Good, found));
        }
    }
    all.push(match probe.rate(sample, MOST, LONGEST) {
        Ok((read, took)) => {
            let rate = read as f64 / took.as_secs_f64().max(1e-9) / 1e6;
            let read = bytes(read);
            Finding::new("rate", Verdict::Good, format!("{rate:.1} MB/s, one request of {read}"))
        }
        Err(e) => failed("rate", &e),
    });
    all
}
