//! Which endpoints should hold which beginnings of prompts in their prefix caches.
//!
//! An entry is made when an endpoint has worked on a prompt, not when it is chosen for it. For each
//! of the prompt's landmarks it says: this endpoint held all up to here when it had written so much.
//! An engine drops what was not used for the longest time. So an endpoint holds a block until it has
//! written as much as its cache takes since the block was last used there: its *horizon*. The
//! distance is counted in blocks of new content, which takes no list in order of use.
//!
//! A session has an entry too: the one endpoint that served it last.
//!
//! Memory: an entry takes about 100 bytes and there are at most 2^19 of them, together 51 MB in a
//! pool, for a quarter of a gigabyte of distinct prompts or more. Beyond that, entries that were not
//! used since the last round are dropped, whatever their endpoints hold.

use std::collections::HashMap;
use std::hash::BuildHasher;

use super::cache::{Cache, Tag, in_blocks};
use super::conversations::{Clock, GoingOn};
use super::landmarks;
use super::seeded::Seeded;
use crate::prompt::Prompt;

/// The endpoints that one entry can name. Of more, those that used it last are kept.
pub const HOLDERS: usize = 6;
/// The most entries.
const MOST: usize = 1 << 19;
/// Entries are kept in pieces of this many, so that none are moved when there are more.
const PIECE: usize = 1 << 10;
/// Maps by a part of the key, so that only a small one is moved when it grows.
const SHARDS: usize = 64;
/// The entries that are looked at for each new one, to drop those that no endpoint holds any more.
const SWEPT: usize = 2;
/// The entries that are looked at for one to drop when there are too many.
const CHANCES: usize = 16;
/// The least number of prompts that go on behind a shared beginning in another way than the first did.
const SHARED: u8 = 4;
/// The most endpoints found for a prompt.
pub const FOUND: usize = 16;

/// An index over the endpoints of a pool.
#[derive(Debug)]
pub struct PrefixIndex {
    seed: Seeded,
    shards: Vec<HashMap<u64, u32, Seeded>>,
    entries: Vec<Vec<Remembered>>,
    /// Places of `entries` that are not used.
    free: Vec<u32>,
    /// The place of the next entry that is looked at.
    hand: usize,
    /// By the endpoints' numbers.
    caches: Vec<Cache>,
    clock: Clock,
    going_on: GoingOn,
    most: usize,
}

/// One block, or one session: as large as a cache line, and in one.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Remembered {
    key: u64,
    holders: [Holder; HOLDERS],
    /// When it was last used anywhere.
    at: u32,
    /// Whether a prompt has gone on behind it.
    has_more: bool,
    /// How many have since gone on in another way.
    branches: u8,
    /// Whether it was used since it was last looked at.
    used: bool,
    /// Whether it is in a map.
    live: bool,
}

/// An entry as it was before it was used.
#[derive(Clone, Copy, Debug)]
struct Before {
    place: u32,
    /// Whether the endpoint that uses it held the block.
    held: bool,
    /// When it was last used anywhere.
    at: u32,
    /// Whether a prompt had gone on behind it.
    has_more: bool,
}

const _: () = assert!(size_of::<Remembered>() == 64);

/// An endpoint that should hold a block.
#[derive(Clone, Copy, Debug, Default)]
struct Holder {
    /// The cache that it is in.
    tag: Tag,
    /// How many blocks had been written into the cache when this one was last used.
    at: u32,
}

/// The work of an endpoint on a prompt.
#[derive(Clone, Copy, Debug)]
pub struct Prefill {
    /// The bytes that were not in its cache, as far as is known.
    pub new: u64,
    /// The bytes that its cache takes.
    pub horizon: u64,
    /// Whether a conversation that begins with it was counted already, by [`PrefixIndex::begun`].
    pub begun: bool,
}

/// An endpoint that should hold a beginning of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The endpoint's number.
    pub endpoint: u32,
    /// The number of its process.
    pub process: u64,
    /// The blocks that it should hold.
    pub blocks: u32,
    /// The blocks that were written there since they were last used.
    pub age: u32,
}

/// The endpoints that should hold a beginning of a prompt, those that hold most of it first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Matches {
    found: [Found; FOUND],
    count: usize,
    /// Whether the longest match is a beginning that prompts share.
    shared: bool,
}

impl Matches {
    /// Them, the deepest match first.
    #[must_use]
    pub fn all(&self) -> &[Found] {
        &self.found[..self.count]
    }

    /// Whether the longest match is a beginning that prompts share, and not what a conversation has so far.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.shared
    }

    fn add(&mut self, found: Found) {
        if self.count < FOUND && self.all().iter().all(|known| known.endpoint != found.endpoint) {
            self.found[self.count] = found;
            self.count += 1;
        }
    }
}

impl PrefixIndex {
    /// An empty index. The seed protects it from keys that are made to collide.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed: Seeded(seed),
            shards: (0..SHARDS).map(|_| HashMap::with_hasher(Seeded(seed))).collect(),
            entries: Vec::new(),
            free: Vec::new(),
            hand: 0,
            caches: Vec::new(),
            clock: Clock::default(),
            going_on: GoingOn::default(),
            most: MOST,
        }
    }

    /// The endpoints that should hold a beginning of this prompt, of those that `live`. It looks for
    /// the longest one by bisection, and for shorter ones of half the length, a quarter and so on.
    #[must_use]
    pub fn find(&self, prompt: &Prompt, live: impl Fn(&Found) -> bool) -> Matches {
        let mut matches = Matches::default();
        let (mut held, mut not) = (0, landmarks::count(prompt.blocks.len()) + 1);
        // Most prompts have nothing in common with earlier ones, or all but their last blocks.
        let mut next = 1;
        while held + 1 < not {
            match self.holders(self.landmark(prompt, next)).any(|holder| live(&holder)) {
                true => held = next,
                false => not = next,
            }
            next = held.midpoint(not);
        }
        if held > 0 {
            let longest = self.place(self.landmark(prompt, held));
            matches.shared = longest.is_some_and(|place| self.entry(place).branches >= SHARED);
        }
        while held > 0 {
            let blocks = landmarks::blocks(held) as u32;
            for holder in self.holders(self.landmark(prompt, held)).filter(&live) {
                matches.add(Found { blocks, ..holder });
            }
            held /= 2;
        }
        matches
    }

    fn landmark(&self, prompt: &Prompt, number: usize) -> u64 {
        prompt.blocks[landmarks::blocks(number) - 1]
    }

    /// The endpoint that served this session last, if it should still hold what was said.
    #[must_use]
    pub fn session(&self, session: u64) -> Option<Found> {
        self.holders(session_key(session)).next()
    }

    /// The endpoints that should hold a key.
    fn holders(&self, key: u64) -> impl Iterator<Item = Found> + '_ {
        let entry = self.place(key).map(|place| self.entry(place));
        entry.into_iter().flat_map(|entry| &entry.holders).filter_map(|holder| {
            let cache = self.cache_of(holder)?;
            let age = cache.written.wrapping_sub(holder.at);
            let (endpoint, process) = (holder.tag.endpoint(), cache.process);
            (age <= cache.horizon).then_some(Found { endpoint, process, blocks: 0, age })
        })
    }

    fn cache_of(&self, holder: &Holder) -> Option<&Cache> {
        if holder.tag == Tag::NONE {
            return None;
        }
        let cache = self.caches.get(holder.tag.endpoint() as usize)?;
        (cache.tag == holder.tag && cache.live).then_some(cache)
    }

    /// How many conversations go on at an endpoint.
    #[must_use]
    pub fn conversations(&self, endpoint: u32) -> f32 {
        let cache = self.caches.get(endpoint as usize).filter(|cache| cache.live);
        cache.map_or(0.0, |cache| cache.conversations.count(&self.clock))
    }

    /// Counts a conversation that begins at a process of an endpoint, before its prompt is worked on.
    pub fn begun(&mut self, (endpoint, process): (u32, u64)) {
        let clock = self.clock;
        if let Some(cache) = self.cache(endpoint, process) {
            cache.conversations.turn(None, &clock);
        }
    }

    /// Takes back that a conversation has begun there: its prompt was not worked on.
    pub fn not_begun(&mut self, (endpoint, process): (u32, u64)) {
        let clock = self.clock;
        if let Some(cache) = self.cache(endpoint, process) {
            cache.conversations.take_back(&clock);
        }
    }

    /// The share of prompts that went on with a conversation, of those lately: they begin with the whole of
    /// an earlier prompt behind which none had gone on.
    #[must_use]
    pub fn going_on(&self) -> f32 {
        self.going_on.share()
    }

    /// Notes that a process at an endpoint worked on a prompt.
    pub fn prefilled(
        &mut self,
        (endpoint, process): (u32, u64),
        prompt: &Prompt,
        Prefill { new, horizon, begun }: Prefill,
    ) {
        let Some(cache) = self.cache(endpoint, process) else { return };
        let took = std::mem::replace(&mut cache.horizon, in_blocks(horizon));
        let more = cache.write(new);
        let (holder, takes) = (Holder { tag: cache.tag, at: cache.written }, cache.horizon);
        self.clock.capacity = self.clock.capacity + u64::from(takes) - u64::from(took);
        self.clock.now = self.clock.now.wrapping_add(more);
        // The last landmark that is known.
        let mut known: Option<(usize, Before)> = None;
        let count = landmarks::count(prompt.blocks.len());
        for number in 1..=count {
            let before = self.touch(self.landmark(prompt, number), holder, HOLDERS, number < count);
            known = before.map(|before| (number, before)).or(known);
        }
        let goes_on = known.filter(|(_, before)| !before.has_more).map(|(_, before)| before);
        // A prompt that ends there tells nothing of what follows.
        if known.map_or(0, |(number, _)| number) < count {
            self.going_on.add(goes_on.is_some());
            if let Some((_, Before { has_more: true, place, .. })) = known {
                let branches = &mut self.entry_mut(place).branches;
                *branches = branches.saturating_add(1);
            }
        }
        if count > 0 && !begun {
            let last = goes_on.filter(|before| before.held).map(|before| before.at);
            self.caches[endpoint as usize].conversations.turn(last, &self.clock);
        }
        if let Some(session) = prompt.session {
            self.touch(session_key(session), holder, 1, false);
        }
    }

    /// Notes that a process at an endpoint wrote content that no entry names, for example answers.
    pub fn written(&mut self, (endpoint, process): (u32, u64), bytes: u64) {
        if let Some(cache) = self.cache(endpoint, process) {
            let more = cache.write(bytes);
            self.clock.now = self.clock.now.wrapping_add(more);
        }
    }

    /// Forgets all that an endpoint holds: its cache was emptied.
    pub fn forget(&mut self, endpoint: u32) {
        if let Some(cache) = self.caches.get_mut(endpoint as usize) {
            cache.live = false;
            self.clock.capacity -= u64::from(std::mem::take(&mut cache.horizon));
        }
    }

    /// The cache of a process at an endpoint. `None` if another process has begun there since.
    fn cache(&mut self, endpoint: u32, process: u64) -> Option<&mut Cache> {
        let at = endpoint as usize;
        if endpoint > Tag::LAST_ENDPOINT {
            return None;
        }
        if self.caches.len() <= at {
            self.caches.resize(at + 1, Cache::default());
        }
        let cache = &mut self.caches[at];
        if process < cache.process {
            return None;
        }
        if !cache.live || process > cache.process {
            self.clock.capacity -= u64::from(cache.horizon);
            let tag = cache.tag.next(endpoint);
            *cache = Cache::new(tag, process);
        }
        Some(cache)
    }

    /// Names an endpoint in an entry that has at most `most` of them. `has_more`: a prompt goes on behind
    /// it. Returns what the entry was before, if there was one.
    fn touch(&mut self, key: u64, holder: Holder, most: usize, has_more: bool) -> Option<Before> {
        let known = self.place(key);
        let place = known.unwrap_or_else(|| self.add(key));
        // Its own, or else the next that is free: they are taken from the last one on.
        let own = |known: &Holder| known.tag == holder.tag || known.tag == Tag::NONE;
        let entry = self.entry(place);
        let of_it = entry.holders[..most].iter().rposition(own);
        let at = of_it.unwrap_or_else(|| {
            let age = |known: &Holder| {
                // Holders whose cache is gone are replaced first.
                let cache = self.cache_of(known);
                cache.map_or(u64::MAX, |cache| {
                    let age = cache.written.wrapping_sub(known.at);
                    (u64::from(age) << 32) / u64::from(cache.horizon.max(1))
                })
            };
            let oldest = (0..most).max_by_key(|at| age(&entry.holders[*at]));
            oldest.expect("there is at least one")
        });
        let (now, caches) = (self.clock.now, &self.caches);
        let entry = &mut self.entries[place as usize / PIECE][place as usize % PIECE];
        let before = known.map(|_| {
            let Holder { tag, at } = entry.holders[at];
            let age = holder.at.wrapping_sub(at);
            let held = tag == holder.tag && age <= caches[tag.endpoint() as usize].horizon;
            Before { place, held, at: entry.at, has_more: entry.has_more }
        });
        entry.holders[at] = holder;
        entry.at = now;
        entry.has_more |= has_more;
        entry.used = true;
        before
    }

    /// The map of a key. Nobody without the seed can choose keys that are all in one.
    fn shard(&self, key: u64) -> usize {
        (self.seed.hash_one(key) >> 32) as usize % SHARDS
    }

    fn place(&self, key: u64) -> Option<u32> {
        self.shards[self.shard(key)].get(&key).copied()
    }

    fn entry(&self, place: u32) -> &Remembered {
        &self.entries[place as usize / PIECE][place as usize % PIECE]
    }

    fn entry_mut(&mut self, place: u32) -> &mut Remembered {
        &mut self.entries[place as usize / PIECE][place as usize % PIECE]
    }

    /// How many places for entries there are, used or not.
    fn places(&self) -> usize {
        self.entries.last().map_or(0, |last| (self.entries.len() - 1) * PIECE + last.len())
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places() - self.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn add(&mut self, key: u64) -> u32 {
        for _ in 0..SWEPT {
            self.sweep(|index, entry| !index.is_held(entry));
        }
        if self.free.is_empty() && self.places() >= self.most {
            for chance in 1..=CHANCES {
                let last = chance == CHANCES;
                if self.sweep(|index, entry| last || !entry.used || !index.is_held(entry)) {
                    break;
                }
            }
        }
        let entry = Remembered {
            key,
            holders: [Holder::default(); HOLDERS],
            at: self.clock.now,
            has_more: false,
            branches: 0,
            used: true,
            live: true,
        };
        let place = match self.free.pop() {
            Some(place) => {
                *self.entry_mut(place) = entry;
                place
            }
            None => {
                let place = self.places() as u32;
                match self.entries.last_mut().filter(|piece| piece.len() < PIECE) {
                    Some(piece) => piece.push(entry),
                    None => {
                        let mut piece = Vec::with_capacity(PIECE);
                        piece.push(entry);
                        self.entries.push(piece);
                    }
                }
                place
            }
        };
        let shard = self.shard(key);
        self.shards[shard].insert(key, place);
        place
    }

    /// Looks at the next entry, and drops it if `drops` says so; true if it did.
    fn sweep(&mut self, drops: impl FnOnce(&Self, &Remembered) -> bool) -> bool {
        let places = self.places();
        if places == 0 {
            return false;
        }
        self.hand = (self.hand + 1) % places;
        let place = self.hand as u32;
        let entry = self.entry(place);
        let (key, drop) = (entry.key, entry.live && drops(self, entry));
        let entry = self.entry_mut(place);
        entry.used = false;
        if drop {
            entry.live = false;
            let shard = self.shard(key);
            self.shards[shard].remove(&key);
            self.free.push(place);
        }
        drop
    }

    /// Whether any endpoint should hold it.
    fn is_held(&self, entry: &Remembered) -> bool {
        // The last one is taken first.
        entry.holders.iter().rev().any(|holder| {
            let cache = self.cache_of(holder);
            cache.is_some_and(|cache| cache.written.wrapping_sub(holder.at) <= cache.horizon)
        })
    }
}

/// A session's key among those of blocks.
fn session_key(session: u64) -> u64 {
    session ^ 0x5e55_1011_5e55_1011
}

#[cfg(test)]
mod tests;
