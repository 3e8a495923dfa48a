use super::*;

fn repository(n: usize) -> Repository {
    Repository { upstream: "docker.io".into(), name: format!("library/r{n}").parse().unwrap() }
}

fn proof(kind: Kind, proven: u64) -> Proof {
    let media_type = (kind == Kind::Manifest).then(|| "application/json".into());
    Proof { size: 1, media_type, proven: Timestamp::from_unix_millis(proven) }
}

/// Also those of repositories of which nothing was known any more were kept for ever.
#[test]
fn names_of_repositories_are_forgotten_with_the_last_that_is_known_of_them() {
    let mut known = Known::new(false, Metrics::new());
    let (digest, tag): (_, Tag) = (Digest::sha256(b""), "latest".parse().unwrap());
    for round in 0..3 {
        for n in 0..10 {
            let record = TagRecord { digest: digest.clone(), checked: Timestamp::default() };
            known.set_tag(&repository(n), &tag, record);
            known.set_proof(&repository(n), &digest, proof(Kind::Blob, 1000));
            known.set_proof(&repository(n), &digest, proof(Kind::Manifest, 1000));
        }
        assert_eq!(known.len(), 30);
        for n in 0..10 {
            if round == 0 {
                assert!(known.remove_tag(&repository(n), &tag) && !known.remove_tag(&repository(n), &tag));
                assert!(known.remove_proof(&repository(n), &digest, Kind::Blob));
                assert_eq!(known.proof(&repository(n), &digest, Kind::Manifest), Some(proof(Kind::Manifest, 1000)));
                assert!(known.remove_proof(&repository(n), &digest, Kind::Manifest));
            }
        }
        let mut next = Some(Place::Tags(0));
        while let Some(place) = next {
            next = known.stretch(place, |_, _| false, &mut Vec::new());
        }
        let Repositories { all, ids, free, .. } = &known.repositories;
        assert_eq!((known.len(), all.len(), ids.len(), free.len()), (0, 10, 0, 10), "round {round}");
        assert_eq!(known.proofs.len(), 0);
    }
}

/// What was said to be pinned was gone, without a word.
#[test]
fn tags_that_are_pinned_or_could_not_be_asked_for_again_are_not_too_many() {
    let tag = |n: usize| -> Tag { format!("v{n}").parse().unwrap() };
    let record = |n: usize| TagRecord { digest: Digest::sha256(b""), checked: Timestamp::from_unix_millis(n as u64) };
    for sealed in [false, true] {
        let mut known = Known::new(sealed, Metrics::new());
        for n in 0..2 * MOST_TAGS {
            known.set_tag(&repository(0), &tag(n), record(n));
            if !(10..MOST_TAGS + 10).contains(&n) {
                known.set_pin(repository(0), Reference::Tag(tag(n)), record(n).digest);
            }
        }
        let held = |n: usize| known.tag(&repository(0), &tag(n)).is_some();
        assert!((0..10).chain(MOST_TAGS + 10..2 * MOST_TAGS).all(held));
        assert_eq!(held(10), sealed, "the oldest of the others");
        assert_eq!(known.most(1) == usize::MAX, sealed);
    }
}

#[test]
fn every_record_is_in_one_stretch() {
    let mut known = Known::new(false, Metrics::new());
    for n in 0..3 * STRETCH {
        known.set_proof(&repository(n % 7), &Digest::sha256(&n.to_le_bytes()), proof(Kind::Blob, 1000));
        let record = TagRecord { digest: Digest::sha256(b""), checked: Timestamp::default() };
        known.set_tag(&repository(n), &"latest".parse().unwrap(), record);
    }
    let (mut next, mut lines, mut stretches) = (Some(Place::Tags(0)), Vec::new(), 0);
    while let Some(place) = next {
        next = known.stretch(place, |_, _| true, &mut lines);
        stretches += 1;
    }
    let mut lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!((lines.len(), known.len()), (6 * STRETCH, 6 * STRETCH));
    assert!(stretches >= 6, "{stretches}");
}
