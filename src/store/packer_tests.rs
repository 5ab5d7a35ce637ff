//! Tests of the queue.

use super::*;

fn packer(pack: Pack, settle: u64) -> Packer {
    let packer =
        Packer::new(PackPolicy { pack, settle: Duration::from_secs(settle), min_size: 10 });
    packer.recovered();
    packer
}

fn next(packer: &Packer) -> Option<u64> {
    match packer.next(|| None, || false) {
        Task::Pack(id) => Some(id),
        Task::Walk | Task::Examine | Task::Stop => None,
    }
}

#[test]
fn files_are_packed_once_they_have_settled_and_the_first_to_settle_first() {
    let packer = packer(Pack::Now, 60);
    assert!(packer.enqueue(1, Duration::from_secs(61)));
    assert!(packer.enqueue(2, Duration::from_secs(3600)));
    assert!(packer.enqueue(3, Duration::ZERO));
    assert_eq!(next(&packer), Some(1));
    packer.done();
    assert_eq!(next(&packer), Some(2));
    packer.done();
    // The third has not settled.
    assert_eq!(packer.status().queued, 1);
    assert!(!packer.enqueue(3, Duration::from_secs(61)), "it is queued");
    assert_eq!(next(&packer), Some(3));
}

#[test]
fn told_to_pack_now_it_does_not_wait_for_files_to_settle() {
    let packer = packer(Pack::Off, 3600);
    assert!(!packer.wants(10));
    packer.command(Command::PackNow);
    assert!(matches!(packer.next(|| None, || true), Task::Walk));
    packer.enqueue(7, Duration::ZERO);
    packer.done();
    // First what is there, so that the file shares what it has in common with it.
    assert!(matches!(packer.next(|| None, || true), Task::Examine));
    packer.done();
    assert_eq!(next(&packer), Some(7));
    packer.stop();
    assert!(matches!(packer.next(|| None, || false), Task::Stop));
}

#[test]
fn a_writer_without_space_gets_that_of_the_archive_being_written() {
    let packer = packer(Pack::Now, 0);
    assert!(!packer.give_room(), "nothing is being packed");
    packer.queue().full_until = None;
    packer.enqueue(1, Duration::ZERO);
    assert_eq!(next(&packer), Some(1));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !packer.pause() {
                std::thread::yield_now();
            }
            packer.done();
        });
        assert!(packer.give_room());
    });
}

#[test]
fn nothing_is_packed_before_what_a_crash_has_left_is_finished() {
    let packer = Packer::new(PackPolicy { pack: Pack::Now, settle: Duration::ZERO, min_size: 10 });
    packer.enqueue(1, Duration::ZERO);
    std::thread::scope(|s| {
        let packed = s.spawn(|| next(&packer));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(packer.status().queued, 1);
        packer.recovered();
        assert_eq!(packed.join().expect("does not panic"), Some(1));
    });
}

#[test]
fn attempts_that_made_an_archive_in_vain_become_rarer() {
    let packer = packer(Pack::Now, 0);
    let due_in = |packer: &Packer| packer.queue().due[&1].duration_since(Instant::now());
    packer.retry(1, true);
    assert!(due_in(&packer) <= FIRST_RETRY);
    for doubled in [2, 4, 8] {
        packer.retry(1, true);
        let wait = due_in(&packer);
        assert!(wait > RETRY * doubled / 2 && wait <= RETRY * doubled, "{wait:?}");
    }
    packer.retry(1, false);
    assert!(due_in(&packer) > RETRY * 8);
    packer.settled(1);
    packer.retry(1, false);
    assert!(due_in(&packer) <= FIRST_RETRY);
}

#[test]
fn the_status_stays_short_whatever_files_are_called() {
    let packer = packer(Pack::Now, 0);
    for n in 0..2 * MAX_REASONS {
        let path = format!("{n}/{}", "\u{1}\"".repeat(2000));
        packer.begin(&path);
        packer.record(&path, &Outcome::Left(path.clone()));
    }
    let status = serde_json::to_vec(&packer.status()).expect("JSON");
    assert!(status.len() < 1 << 15, "{} bytes", status.len());
}
