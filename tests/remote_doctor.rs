//! `bsz doctor URL`, from outside: what works, what does not, what helps, and no secret.

mod common;

use common::bucket::Bucket;
use common::program::{Ran, run};
use common::web::{Act, Server};
use tempfile::TempDir;

/// The state of each check, by its name.
fn states(ran: &Ran) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let json = ran.json();
    let findings = json.as_array().expect("findings").iter();
    findings.map(|finding| (text(&finding["what"]), text(&finding["state"]))).collect()
}

#[track_caller]
fn state(ran: &Ran, what: &str) -> String {
    let found = states(ran).into_iter().find(|(name, _)| name == what);
    found.unwrap_or_else(|| panic!("no {what}: {ran:?}")).1
}

#[test]
fn a_bucket_that_works_is_good_throughout() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    bucket.store.put("/bucket/d/sub/m.bsz", vec![7; 100_000], "tag".into());
    bucket.store.put("/bucket/d/sub/small", vec![7; 10], "small".into());
    for (url, found) in [
        ("s3://bucket/d/sub/m.bsz", "an object of 100.00 kB"),
        ("s3://bucket/d/", "a directory with 1 entry"),
        ("s3://bucket", "a directory with 1 entry"),
    ] {
        let ran = bucket.run(dir.path(), &["doctor", "--json", url]).ok();
        let works = ["URL", "credentials", "access", "listing", "ETags", "ranges", "rate"];
        for what in works.into_iter().chain(["first byte"]) {
            assert_eq!(state(&ran, what), "good", "{ran:?}");
        }
        let shown = bucket.run(dir.path(), &["doctor", url]).ok().stdout;
        assert!(shown.contains("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"), "{shown}");
        assert!(shown.contains(found), "{shown}");
    }
}

#[test]
fn what_does_not_work_is_said_with_what_helps() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    bucket.script(|_| Act::Status(403, None));
    let ran = bucket.run(dir.path(), &["doctor", "--json", "s3://bucket/d/"]);
    assert_eq!((ran.code, &*state(&ran, "access")), (Some(1), "bad"));
    assert!(ran.stderr.contains("bsz: doctor: the URL cannot be read"), "{ran:?}");
    assert!(ran.stdout.contains("403 Forbidden") && ran.stdout.contains("mend"), "{ran:?}");
    let mut command = bucket.bsz(dir.path(), &["doctor", "s3://bucket/d/"]);
    let ran = Ran::from(command.env_remove("AWS_ALLOW_HTTP").output().expect("bsz starts"));
    assert!(ran.stdout.contains("AWS_ALLOW_HTTP=true"), "{ran:?}");
    let ran = run(dir.path(), &["doctor", "https://me:HIDDEN@host/x"]);
    assert!(ran.code == Some(1) && ran.stdout.contains("must not hold credentials"), "{ran:?}");
    assert!(!ran.stdout.contains("HIDDEN") && !ran.stderr.contains("HIDDEN"), "{ran:?}");
}

#[test]
fn certificates_that_are_missing_are_noticed() {
    let (dir, bucket) = (TempDir::new().expect("a directory"), Bucket::start());
    std::fs::write(dir.path().join("some"), "certificates").expect("written");
    let mut command = bucket.bsz(dir.path(), &["doctor", "--json", "s3://bucket/"]);
    for (file, expected) in [("none", "fair"), ("some", "good")] {
        let output = command.env("SSL_CERT_FILE", dir.path().join(file)).output();
        assert_eq!(state(&output.expect("bsz starts").into(), "certificates"), expected);
    }
}

#[test]
fn web_servers_are_checked_for_ranges_tags_and_listings() {
    let (dir, server) = (TempDir::new().expect("a directory"), Server::start());
    server.put("/m.bsz", &[7; 1000], Some("tag"));
    server.put("/weak", &[7; 1000], Some("W/\"tag\""));
    let doctor = |path: &str| {
        let ran = run(dir.path(), &["doctor", "--json", &server.url(path)]);
        assert!(!ran.stdout.contains("HIDDEN") && !ran.stderr.contains("HIDDEN"), "{ran:?}");
        ran
    };
    let ran = doctor("/m.bsz?HIDDEN");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!([state(&ran, "ranges"), state(&ran, "listing")], ["good", "fair"]);
    assert!(ran.stdout.contains("the query of the URL"), "{ran:?}");
    assert_eq!(state(&doctor("/weak"), "ETags"), "fair");
    let ran = doctor("/none");
    assert_eq!((ran.code, &*state(&ran, "access")), (Some(1), "bad"));
    server.script(|request| match request.method.as_str() {
        "GET" => Act::Whole,
        _ => Act::Serve,
    });
    let ran = doctor("/m.bsz");
    assert_eq!((ran.code, &*state(&ran, "ranges")), (Some(1), "bad"));
}
