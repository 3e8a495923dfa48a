use super::*;

fn digest(n: u8) -> Digest {
    Digest::sha256(&[n])
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_millis(seconds * 1000)
}

fn snapshot(lru: &Lru) -> Vec<Snapshot> {
    let mut ranks = lru.ranks(0..STRETCH).unwrap();
    assert!(lru.ranks(ranks.len() + 1000..usize::MAX).is_none());
    ranks.sort_unstable();
    ranks.into_iter().filter_map(|(_, slot)| lru.snapshot(slot)).collect()
}

fn pop_all(lru: &mut Lru) -> Vec<Digest> {
    std::iter::from_fn(|| lru.pop(0, |_| false).map(|(digest, _)| digest)).collect()
}

#[test]
fn what_was_used_least_recently_goes_first() {
    let mut lru = Lru::default();
    for n in 1..=3 {
        lru.insert(&digest(n), BLOCK, at(n.into()));
    }
    assert_eq!(lru.touch(&digest(1), at(4)), Some(at(1)));
    assert_eq!((lru.bytes(), lru.len()), (3 * BLOCK, 3));
    assert_eq!(pop_all(&mut lru), [digest(2), digest(3), digest(1)]);
    assert_eq!((lru.bytes(), lru.len(), lru.entries.slots.len()), (0, 0, 0));
}

#[test]
fn a_manifest_goes_before_the_blobs_that_only_it_needs_and_shared_ones_stay() {
    let (index, old, new, shared, layer) = (digest(1), digest(2), digest(3), digest(4), digest(5));
    let mut lru = Lru::default();
    for (n, blob) in [&shared, &layer, &old, &index, &new].into_iter().enumerate() {
        lru.insert(blob, BLOCK, at(n as u64));
    }
    lru.link(&index, std::slice::from_ref(&old));
    lru.link(&old, &[shared.clone(), layer.clone()]);
    lru.link(&new, std::slice::from_ref(&shared));
    lru.touch(&index, at(10));
    lru.touch(&new, at(11));
    assert_eq!(pop_all(&mut lru), [index, old, layer, new, shared]);
}

#[test]
fn one_large_scan_does_not_push_out_what_is_hot() {
    let mut lru = Lru::default();
    lru.insert(&digest(0), BLOCK, at(0));
    lru.touch(&digest(0), at(599));
    for n in 1..=9 {
        lru.insert(&digest(n), BLOCK, at(700));
    }
    lru.touch(&digest(0), at(700));
    for n in 10..=200 {
        lru.insert(&digest(n), BLOCK, at(800));
        lru.pop(0, |_| false);
    }
    assert!(lru.contains(&digest(0)));
    assert_eq!(*pop_all(&mut lru).last().unwrap(), digest(0));
}

#[test]
fn a_new_layer_of_a_hot_image_proves_itself_first() {
    let (manifest, layer) = (digest(1), digest(2));
    let mut lru = Lru::default();
    lru.insert(&digest(9), 100 * BLOCK, at(0));
    lru.insert(&manifest, BLOCK, at(0));
    lru.link(&manifest, std::slice::from_ref(&layer));
    lru.touch(&manifest, at(600));
    lru.insert(&layer, BLOCK, at(601));
    lru.touch(&manifest, at(1200));
    assert_eq!(lru.could_leave(u64::MAX), 101 * BLOCK, "all but the manifest");
    lru.touch(&manifest, at(1201));
    assert_eq!(pop_all(&mut lru), [digest(9), manifest, layer]);
}

#[test]
fn protection_is_bounded() {
    let mut lru = Lru::default();
    for n in 0..10 {
        lru.insert(&digest(n), BLOCK, at(0));
    }
    for n in 0..10 {
        lru.touch(&digest(n), at(600 + u64::from(n)));
    }
    assert_eq!((lru.entries.once.bytes, lru.entries.again.bytes), (2 * BLOCK, 8 * BLOCK));
    assert_eq!(pop_all(&mut lru)[..3], [digest(0), digest(1), digest(2)]);
}

#[test]
fn what_must_be_kept_is_passed_over() {
    let mut lru = Lru::default();
    for n in 1..=3 {
        lru.insert(&digest(n), BLOCK, at(n.into()));
    }
    assert_eq!(lru.pop(0, |d| *d == digest(1)), Some((digest(2), BLOCK)));
    assert_eq!(lru.pop(0, |_| true), None);
}

#[test]
fn what_is_not_in_the_cache_names_nothing() {
    let mut lru = Lru::default();
    lru.insert(&digest(1), BLOCK, at(0));
    lru.pop(0, |_| false);
    assert_eq!(lru.link(&digest(1), &[digest(2)]), 0);
    assert!(lru.entries.slots.len() == 0, "nothing would ever remove it");
}

#[test]
fn links_are_bounded_for_one_and_for_all() {
    let mut lru = Lru::default();
    let names: Vec<Digest> = (0..=MOST_NAMES).map(|n| Digest::sha256(&n.to_le_bytes())).collect();
    for n in 1..=2 {
        lru.insert(&digest(n), BLOCK, at(0));
    }
    assert_eq!(lru.link(&digest(1), &names), 1);
    // As if others had the rest.
    let others = MOST_LINKS - MOST_NAMES - 3;
    lru.links += others;
    assert_eq!(lru.link(&digest(2), &names[..5]), 2);
    assert_eq!(lru.links, MOST_LINKS);
    lru.remove(&digest(2));
    lru.insert(&digest(2), BLOCK, at(0));
    lru.links -= 2;
    assert_eq!(lru.link(&digest(2), &names[..5]), 0, "there is room again");
    (1..=2).for_each(|n| _ = lru.remove(&digest(n)));
    assert_eq!((lru.links, lru.entries.slots.len()), (others - 2, 0));
}

#[test]
fn what_an_absent_manifest_names_that_is_pinned_stays_pinned_over_a_restart() {
    let (manifest, layer) = (digest(1), digest(2));
    let mut lru = Lru::default();
    [&manifest, &layer].iter().for_each(|digest| lru.insert(digest, BLOCK, at(1)));
    lru.link(&manifest, std::slice::from_ref(&layer));
    lru.pin(&manifest);
    lru.remove(&manifest);
    let entries = snapshot(&lru);
    assert_eq!(entries.iter().map(|entry| entry.absent).collect::<Vec<_>>(), [true, false]);
    let mut restored = Lru::default();
    restored.pin(&manifest);
    entries.iter().for_each(|entry| restored.restore(entry));
    assert_eq!((snapshot(&restored), pop_all(&mut restored).len()), (entries.clone(), 0));
    let mut unpinned = Lru::default();
    entries.iter().for_each(|entry| unpinned.restore(entry));
    assert_eq!((pop_all(&mut unpinned), unpinned.entries.slots.len()), (vec![layer], 0));
}

/// What too much was remembered for when it came is pinned all the same when it is pinned.
#[test]
fn what_was_linked_in_part_is_linked_whole_when_it_is_pinned() {
    let mut lru = Lru::default();
    (1..=3).for_each(|n| lru.insert(&digest(n), BLOCK, at(1)));
    lru.links = MOST_LINKS - 1;
    assert_eq!(lru.link(&digest(1), &[digest(2), digest(3)]), 1);
    lru.pin(&digest(1));
    assert_eq!(lru.link(&digest(1), &[digest(2), digest(3)]), 0);
    assert!(pop_all(&mut lru).is_empty());
    lru.links -= MOST_LINKS - 1;
    lru.unpin(&digest(1));
    assert_eq!((pop_all(&mut lru).len(), lru.links, lru.entries.slots.len()), (3, 0, 0));
}

#[test]
fn a_snapshot_restores_the_order_exactly() {
    let mut lru = Lru::default();
    for n in 0..20 {
        lru.insert(&digest(n), u64::from(n), at(n.into()));
    }
    lru.link(&digest(0), &[digest(3), digest(77)]);
    lru.touch(&digest(0), at(900));
    let entries = snapshot(&lru);
    let mut restored = Lru::default();
    entries.iter().for_each(|entry| restored.restore(entry));
    assert_eq!(snapshot(&restored), entries);
    let order: Vec<_> = entries.into_iter().map(|entry| entry.digest).collect();
    assert_eq!(pop_all(&mut restored), order);
    assert_eq!(pop_all(&mut lru), order);
}
