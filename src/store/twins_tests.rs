//! Tests of what is known of archives.

use super::*;

fn tensor(content: u64, at: u64, place: Option<u64>) -> Tensor {
    Tensor { fingerprint: content, whole: content, at, stored: 1000, place }
}

fn archive(name: &str, tensors: &[Tensor]) -> Known {
    let sha256 = std::array::from_fn(|i| name.as_bytes().get(i).copied().unwrap_or(0));
    Known { path: name.into(), sha256, tensors: tensors.to_vec() }
}

fn key(ino: u64) -> Key {
    Key { dev: 1, ino }
}

fn found(twins: &Twins, fingerprint: u64) -> Option<(u64, u64)> {
    twins.find(fingerprint).map(|(key, _, at)| (key.ino, at))
}

#[test]
fn a_tensor_is_found_as_long_as_any_archive_holds_it() {
    let twins = Twins::new();
    assert_eq!(found(&twins, 7), None);
    twins.insert(key(1), archive("a", &[tensor(7, 4096, None), tensor(8, 16, None)]));
    assert_eq!(found(&twins, 7), Some((1, 4096)));
    assert_eq!(found(&twins, 8), None, "it does not start at a block");
    twins.insert(key(2), archive("b", &[tensor(7, 8192, None)]));
    assert_eq!(found(&twins, 7), Some((2, 8192)));
    twins.forget(key(2));
    assert_eq!(found(&twins, 7), Some((1, 4096)));
    // Another file has got its number.
    twins.insert(key(1), archive("c", &[tensor(9, 4096, None)]));
    assert_eq!((found(&twins, 7), found(&twins, 9)), (None, Some((1, 4096))));
}

#[test]
fn the_figures_say_what_is_shared_and_what_is_stored_again() {
    let twins = Twins::new();
    let expect = |archives, shared, repeated, equal_files| {
        assert_eq!(twins.figures(), Figures { archives, shared, repeated, equal_files });
    };
    expect(0, 0, 0, 0);
    twins.insert(key(1), archive("a", &[tensor(7, 4096, Some(5)), tensor(8, 8192, None)]));
    expect(1, 0, 0, 0);
    twins.insert(key(2), archive("b", &[tensor(7, 4096, Some(5)), tensor(8, 8192, None)]));
    expect(2, 1000, 1000, 0);
    twins.insert(key(3), archive("a", &[tensor(7, 4096, Some(6))]));
    expect(3, 1000, 2000, 1);
    twins.forget(key(1));
    expect(2, 0, 1000, 0);
}

#[test]
fn memory_is_bounded_and_what_is_used_stays() {
    let twins = Twins::new();
    let many: Vec<_> = (0..5000).map(|i| tensor(i << 20, 4096 * (i + 1), None)).collect();
    twins.insert(key(0), archive("used", &[tensor(7, 4096, None)]));
    for ino in 1..100 {
        twins.insert(key(ino), archive("large", &many));
        assert_eq!(found(&twins, 7), Some((0, 4096)));
    }
    let kept = twins.figures().archives;
    assert!((5..40).contains(&kept), "{kept}");
    assert_eq!(found(&twins, 4000 << 20).map(|(ino, _)| ino), Some(99));
    // One that is too large is known in part.
    let huge = vec![tensor(1, 4096, None); 1 << 20];
    twins.insert(key(200), archive("huge", &huge));
    assert!(twins.table().cost <= MAX_KNOWN);
    assert_eq!(found(&twins, 1), Some((200, 4096)));
    for i in 0..1_000_000 {
        twins.note(key(300), format!("{i}").into());
    }
    assert!((10_000..100_000).contains(&twins.waiting()), "{}", twins.waiting());
    assert_eq!(twins.next(), Some("0".into()));
}
