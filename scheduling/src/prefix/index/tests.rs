use std::collections::HashMap;

use std::hash::Hasher;

use proptest::prelude::*;

use super::*;
use crate::prefix::seeded::SeededHasher;
use crate::prompt::BLOCK_BYTES;

const PLENTY: u64 = 1 << 30;

/// A prompt of these pieces of content, each a block long.
fn prompt(content: &[u64]) -> Prompt {
    let mut hash = 7;
    let blocks = content.iter().map(|piece| {
        let mut hasher = SeededHasher(hash);
        hasher.write_u64(*piece);
        hash = hasher.finish();
        hash
    });
    let blocks: Box<[u64]> = blocks.collect();
    Prompt { bytes: (blocks.len() * BLOCK_BYTES) as u32, blocks, session: None }
}

/// The blocks that an endpoint should hold of a prompt.
fn held(index: &PrefixIndex, endpoint: u32, prompt: &Prompt) -> u32 {
    let found = index.find(prompt, |_| true);
    found.all().iter().find(|found| found.endpoint == endpoint).map_or(0, |found| found.blocks)
}

/// Has an endpoint work on so many new bytes of a prompt, with a cache of so many.
fn worked(index: &mut PrefixIndex, place: (u32, u64), prompt: &Prompt, bytes: (u64, u64)) {
    index.prefilled(place, prompt, Prefill { new: bytes.0, horizon: bytes.1, begun: false });
}

fn blocks(count: u64) -> u64 {
    count * BLOCK_BYTES as u64
}

#[test]
fn an_endpoint_holds_the_beginning_that_two_prompts_have_in_common() {
    let mut index = PrefixIndex::new(1);
    let first: Vec<u64> = (0..40).collect();
    worked(&mut index, (3, 1), &prompt(&first), (blocks(40), PLENTY));
    for common in 0..=40 {
        let mut second = first[..common].to_vec();
        second.extend(1000..1030);
        let want = u32::try_from(common).expect("small");
        assert_eq!(held(&index, 3, &prompt(&second)), want);
    }
    assert_eq!(held(&index, 3, &prompt(&[1, 0])), 0, "the same pieces in another order");
}

#[test]
fn those_that_hold_more_come_first_and_those_that_hold_less_are_found_too() {
    let mut index = PrefixIndex::new(1);
    let long: Vec<u64> = (0..32).collect();
    for (endpoint, length) in [(1, 4), (2, 32), (3, 16)] {
        worked(&mut index, (endpoint, 1), &prompt(&long[..length]), (blocks(1), PLENTY));
    }
    let found = index.find(&prompt(&long), |_| true);
    let found: Vec<_> = found.all().iter().map(|found| (found.endpoint, found.blocks)).collect();
    assert_eq!(found, [(2, 32), (3, 16), (1, 4)]);
}

#[test]
fn what_was_not_used_for_as_long_as_the_cache_takes_is_gone() {
    let mut index = PrefixIndex::new(1);
    let (old, kept) = (prompt(&[1, 2]), prompt(&[3, 4]));
    worked(&mut index, (0, 1), &old, (blocks(2), blocks(10)));
    worked(&mut index, (0, 1), &kept, (blocks(2), blocks(10)));
    index.written((0, 1), blocks(8));
    assert_eq!((held(&index, 0, &old), held(&index, 0, &kept)), (2, 2));
    worked(&mut index, (0, 1), &kept, (0, blocks(10)));
    index.written((0, 1), blocks(1));
    assert_eq!((held(&index, 0, &old), held(&index, 0, &kept)), (0, 2));
    let age = index.find(&kept, |_| true).all()[0].age;
    assert_eq!(age, 1);
}

#[test]
fn parts_of_blocks_add_up() {
    let mut index = PrefixIndex::new(1);
    let one = prompt(&[1]);
    worked(&mut index, (0, 1), &one, (0, PLENTY));
    for _ in 0..100 {
        index.written((0, 1), BLOCK_BYTES as u64 / 4);
    }
    assert_eq!(index.find(&one, |_| true).all()[0].age, 25);
}

#[test]
fn another_process_at_an_endpoint_holds_nothing_of_the_one_before() {
    let mut index = PrefixIndex::new(1);
    let (one, two) = (prompt(&[1]), prompt(&[2]));
    worked(&mut index, (0, 5), &one, (blocks(1), PLENTY));
    worked(&mut index, (0, 9), &two, (blocks(1), PLENTY));
    assert_eq!((held(&index, 0, &one), held(&index, 0, &two)), (0, 1));
    worked(&mut index, (0, 5), &one, (blocks(1), PLENTY));
    assert_eq!(held(&index, 0, &one), 0, "a late report of the one before");
    index.forget(0);
    assert_eq!(held(&index, 0, &two), 0, "it slept");
    worked(&mut index, (0, 9), &one, (blocks(1), PLENTY));
    assert_eq!((held(&index, 0, &one), held(&index, 0, &two)), (1, 0));
}

#[test]
fn a_session_is_where_it_was_last() {
    let mut index = PrefixIndex::new(1);
    let turn = |piece| Prompt { session: Some(7), ..prompt(&[piece]) };
    assert_eq!(index.session(7), None);
    worked(&mut index, (1, 1), &turn(1), (blocks(1), blocks(10)));
    worked(&mut index, (2, 1), &turn(2), (blocks(1), blocks(10)));
    assert_eq!(index.session(7).map(|found| found.endpoint), Some(2));
    index.written((2, 1), blocks(11));
    assert_eq!(index.session(7), None, "nothing of it is left there");
}

#[test]
fn of_many_holders_the_last_ones_are_kept() {
    let mut index = PrefixIndex::new(1);
    let shared = prompt(&[1]);
    for endpoint in 0..20 {
        worked(&mut index, (endpoint, 1), &shared, (blocks(1), PLENTY));
        for other in 0..endpoint {
            index.written((other, 1), blocks(1));
        }
    }
    let mut holders: Vec<_> =
        index.find(&shared, |_| true).all().iter().map(|one| one.endpoint).collect();
    holders.sort_unstable();
    assert_eq!(holders, [14, 15, 16, 17, 18, 19]);
}

#[test]
fn memory_is_bounded_and_what_is_used_stays() {
    let mut index = PrefixIndex { most: 1000, ..PrefixIndex::new(1) };
    let used = prompt(&[1, 2, 3]);
    for piece in 0..20_000 {
        worked(&mut index, (0, 1), &prompt(&[1_000_000 + piece]), (blocks(1), PLENTY));
        if piece % 50 == 0 {
            worked(&mut index, (0, 1), &used, (0, PLENTY));
        }
        assert!(index.len() <= 1000);
    }
    assert_eq!(held(&index, 0, &used), 3);
    assert!(index.places() <= 1000);
    let kept: usize = index.shards.iter().map(HashMap::len).sum();
    assert_eq!(kept, index.len());
}

#[test]
fn entries_that_no_endpoint_holds_make_room() {
    let mut index = PrefixIndex::new(1);
    for piece in 0..50_000 {
        worked(&mut index, (0, 1), &prompt(&[piece]), (blocks(1), blocks(100)));
    }
    assert!(index.len() < 300, "{}", index.len());
}

#[test]
fn the_longest_prompt_takes_few_entries() {
    let mut index = PrefixIndex::new(1);
    let longest = prompt(&(0..4096).collect::<Vec<_>>());
    worked(&mut index, (0, 1), &longest, (0, PLENTY));
    assert_eq!(index.len(), 256);
    assert_eq!(held(&index, 0, &longest), 4096);
}

/// A cache as the reference keeps it: for each block, when it was last used.
#[derive(Default)]
struct Reference {
    process: u64,
    written: u64,
    used: HashMap<u64, u64>,
}

#[test]
fn a_match_that_is_the_whole_of_a_prompt_is_told_from_a_beginning_that_prompts_share() {
    let mut index = PrefixIndex::new(1);
    let turn = |own: u64, blocks: u64| {
        prompt(&(0..10).chain(own * 100..own * 100 + blocks).collect::<Vec<_>>())
    };
    let shared = |index: &PrefixIndex, prompt: &Prompt| index.find(prompt, |_| true).shared();
    assert!(!shared(&index, &turn(1, 1)), "nothing is known");
    for own in 1..8 {
        for blocks in 1..8 {
            let next = turn(own, blocks);
            assert_eq!(shared(&index, &next), own > 5 && blocks == 1, "{own}, {blocks}");
            worked(&mut index, (0, 1), &next, (0, PLENTY));
        }
    }
    assert!((index.going_on() - 42.0 / 57.0).abs() < 1e-3, "{}", index.going_on());
    // A conversation that goes on otherwise from an earlier turn is none of many.
    let other: Vec<u64> = (0..10).chain(100..104).chain(9000..9004).collect();
    assert!(!shared(&index, &prompt(&other)));
}

#[test]
fn conversations_are_counted_where_they_go_on() {
    let mut index = PrefixIndex::new(1);
    let turn = |own: u64, blocks: u64| {
        prompt(&(0..10).chain(own * 100..own * 100 + blocks).collect::<Vec<_>>())
    };
    for length in 1..20 {
        for own in 1..4 {
            worked(&mut index, (0, 1), &turn(own, length), (blocks(1), blocks(10_000)));
        }
    }
    worked(&mut index, (1, 1), &turn(4, 1), (blocks(1), blocks(10_000)));
    assert!((index.conversations(0) - 3.0).abs() < 0.1, "{}", index.conversations(0));
    assert!((index.conversations(1) - 1.0).abs() < 0.1, "{}", index.conversations(1));
    for length in 20..40 {
        worked(&mut index, (1, 1), &turn(1, length), (blocks(100), blocks(10_000)));
    }
    assert!(
        (index.conversations(1) - 2.0).abs() < 0.4,
        "one has moved: {}",
        index.conversations(1)
    );
    assert!(index.conversations(0) < 2.5, "{}", index.conversations(0));
    index.forget(0);
    assert_eq!(index.conversations(0), 0.0, "its cache was emptied");
}

proptest! {
    #[test]
    fn the_index_finds_what_a_list_of_all_uses_does(
        steps in prop::collection::vec(
            (0..4u32, 0..20u64, prop::collection::vec(0..3u64, 1..80), 0..30u64),
            1..60,
        ),
    ) {
        const HORIZON: u64 = 40;
        let mut index = PrefixIndex::new(1);
        let mut caches: Vec<Reference> = (0..4).map(|_| Reference::default()).collect();
        for (endpoint, restart, content, new) in steps {
            let prompt = prompt(&content);
            let cache = &mut caches[endpoint as usize];
            if restart == 0 {
                *cache = Reference { process: cache.process + 1, ..Reference::default() };
            }
            cache.written += new;
            worked(&mut index, (endpoint, cache.process), &prompt, (blocks(new), blocks(HORIZON)));
            let taken: u64 = index.caches.iter().map(|cache| u64::from(cache.horizon)).sum();
            prop_assert_eq!(index.clock.capacity, taken);
            if new == 1 {
                index.forget(endpoint);
                *cache = Reference { process: cache.process, ..Reference::default() };
                continue;
            }
            for number in 1..=landmarks::count(content.len()) {
                let block = prompt.blocks[landmarks::blocks(number) - 1];
                cache.used.insert(block, cache.written);
            }
            let longest = |cache: &Reference| {
                let kept = |block: &&u64| {
                    cache.used.get(block).is_some_and(|at| cache.written - at <= HORIZON)
                };
                let marks = (1..=landmarks::count(content.len())).map(landmarks::blocks);
                let held = marks.take_while(|mark| kept(&&prompt.blocks[mark - 1]));
                held.last().unwrap_or(0) as u32
            };
            let best = caches.iter().map(longest).max().unwrap_or(0);
            let found = index.find(&prompt, |_| true);
            prop_assert_eq!(found.all().first().map_or(0, |found| found.blocks), best);
            for found in found.all() {
                let cache = &caches[found.endpoint as usize];
                prop_assert!(found.blocks <= longest(cache), "{:?}", found);
                prop_assert_eq!(found.process, cache.process);
            }
        }
    }
}
