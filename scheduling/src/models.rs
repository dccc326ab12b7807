//! Which endpoints know which model, by what the endpoints themselves list.
//!
//! Most endpoints of a pool list the same models. So each distinct list is kept once, and an
//! endpoint has the number of its list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A list of models that endpoints have in common. The number is used again once none has the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListId(usize);

/// Names with whether a replica was started with them; an adapter is loaded later.
type Names = BTreeMap<Arc<str>, bool>;

/// The lists of a pool's endpoints, and the names on them.
#[derive(Debug)]
pub struct ModelIndex {
    /// By number. The first one is for endpoints that have listed nothing yet.
    lists: Vec<List>,
    /// Numbers of lists that no endpoint has now.
    free: Vec<ListId>,
    ids: HashMap<Arc<Names>, ListId>,
    names: HashMap<Arc<str>, Holders>,
    /// How many lists endpoints have.
    distinct: usize,
}

#[derive(Debug, Default)]
struct List {
    names: Arc<Names>,
    /// How many endpoints have it.
    endpoints: usize,
}

/// The lists that have one name.
#[derive(Debug, Default)]
struct Holders {
    lists: BTreeSet<ListId>,
    /// How many of them have it as a base model. New replicas will know it too.
    base: usize,
}

/// The endpoints that know a name.
#[derive(Clone, Copy, Debug)]
pub enum Knowing<'a> {
    /// Every endpoint.
    All,
    /// Those with one of these lists.
    Lists {
        /// Lists that have the name.
        listing: &'a BTreeSet<ListId>,
        /// Whether endpoints that have listed nothing yet know it too.
        unlisted: bool,
    },
}

impl ListId {
    /// The list of endpoints that have listed nothing yet.
    pub const UNLISTED: Self = Self(0);

    /// Its number. Numbers are small: they are used again.
    #[must_use]
    pub fn number(self) -> usize {
        self.0
    }
}

impl Default for ModelIndex {
    fn default() -> Self {
        Self {
            lists: vec![List::default()],
            free: Vec::new(),
            ids: HashMap::new(),
            names: HashMap::new(),
            distinct: 0,
        }
    }
}

impl ModelIndex {
    /// Counts an endpoint that has listed nothing yet.
    pub fn join(&mut self) -> ListId {
        self.count(ListId::UNLISTED);
        ListId::UNLISTED
    }

    /// Replaces an endpoint's list, and returns its new one. Each name comes with whether the
    /// endpoint was started with it; `false` for an adapter that was loaded since.
    pub fn replace<'a>(
        &mut self,
        before: ListId,
        names: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> ListId {
        let mut list = Names::new();
        for (name, base) in names {
            *list.entry(name.into()).or_default() |= base;
        }
        let after = self.ids.get(&list).copied().unwrap_or_else(|| self.add(list));
        self.count(after);
        self.leave(before);
        after
    }

    /// Takes an endpoint off its list.
    pub fn leave(&mut self, list: ListId) {
        let entry = &mut self.lists[list.0];
        entry.endpoints -= 1;
        if entry.endpoints > 0 {
            return;
        }
        self.distinct -= 1;
        if list == ListId::UNLISTED {
            return;
        }
        let names = std::mem::take(&mut entry.names);
        self.ids.remove(&names);
        self.free.push(list);
        for (name, base) in names.iter() {
            if let Some(holders) = self.names.get_mut(name) {
                holders.lists.remove(&list);
                holders.base -= usize::from(*base);
                if holders.lists.is_empty() {
                    self.names.remove(name);
                }
            }
        }
    }

    fn add(&mut self, names: Names) -> ListId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.lists.push(List::default());
            ListId(self.lists.len() - 1)
        });
        for (name, base) in &names {
            let holders = self.names.entry(Arc::clone(name)).or_default();
            holders.lists.insert(id);
            holders.base += usize::from(*base);
        }
        let names = Arc::new(names);
        self.ids.insert(Arc::clone(&names), id);
        self.lists[id.0].names = names;
        id
    }

    fn count(&mut self, list: ListId) {
        let endpoints = &mut self.lists[list.0].endpoints;
        self.distinct += usize::from(*endpoints == 0);
        *endpoints += 1;
    }

    /// Whether endpoints have different lists.
    #[must_use]
    pub fn differ(&self) -> bool {
        self.distinct > 1
    }

    /// The endpoints to which a request for this name may go: those that list it, or all if none
    /// does. An endpoint that has listed nothing yet is taken to know base models, and no adapters.
    #[must_use]
    pub fn knowing(&self, name: Option<&str>) -> Knowing<'_> {
        if !self.differ() {
            return Knowing::All;
        }
        let Some(holders) = name.and_then(|name| self.names.get(name)) else {
            return Knowing::All;
        };
        let unlisted = holders.base > 0 && self.lists[ListId::UNLISTED.0].endpoints > 0;
        if holders.lists.len() + usize::from(unlisted) == self.distinct {
            Knowing::All
        } else {
            Knowing::Lists { listing: &holders.lists, unlisted }
        }
    }
}

impl Knowing<'_> {
    /// Whether an endpoint with this list is among them.
    #[must_use]
    pub fn includes(&self, list: ListId) -> bool {
        match self {
            Self::All => true,
            Self::Lists { listing, unlisted } => {
                listing.contains(&list) || (*unlisted && list == ListId::UNLISTED)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_to_endpoints_that_list_it_and_an_unknown_name_to_any() {
        let mut index = ModelIndex::default();
        let mut lists = [(); 3].map(|()| index.join());
        lists[0] = index.replace(lists[0], [("base", true)]);
        lists[1] = index.replace(lists[1], [("base", true), ("adapter", false)]);
        let knows = |index: &ModelIndex, name| lists.map(|list| index.knowing(name).includes(list));
        assert_eq!(knows(&index, Some("adapter")), [false, true, false]);
        assert_eq!(knows(&index, Some("base")), [true; 3], "the third has listed nothing yet");
        assert_eq!(knows(&index, Some("other")), [true; 3]);
        assert_eq!(knows(&index, None), [true; 3]);
    }

    #[test]
    fn a_list_is_kept_once_and_its_names_go_with_its_last_endpoint() {
        let mut index = ModelIndex::default();
        let [a, b, c] = [(); 3].map(|()| index.join());
        let a = index.replace(a, [("base", true), ("adapter", false)]);
        let b = index.replace(b, [("adapter", false), ("base", true)]);
        assert_eq!(a, b, "in whatever order it comes");
        let c = index.replace(c, [("base", true)]);
        index.leave(a);
        assert!(!index.knowing(Some("adapter")).includes(c));
        index.leave(b);
        assert!(index.knowing(Some("adapter")).includes(c), "none lists it");
        assert!(!index.differ());
        let next = index.join();
        assert_eq!(index.replace(next, [("other", true)]), a, "the number is used again");
        assert!(index.knowing(Some("other")).includes(a));
        assert!(!index.knowing(Some("base")).includes(a));
    }
}
