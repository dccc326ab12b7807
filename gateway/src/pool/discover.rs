//! Makes endpoints of the pods that discovery finds for a pool, as soon as they have an address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use forebay_discovery::{Change, Changes, Member};
use forebay_signals::Waiting;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::pool::Pool;
use crate::pool::directory::{Directory, Source};
use crate::pool::pods::full_reason;

/// Follows one pool's discovery until `stop`, and then removes all endpoints that it found.
pub(crate) async fn discover(
    pool: Arc<Pool>,
    mut changes: Changes,
    directory: Arc<Directory>,
    stop: CancellationToken,
) {
    let mut follower =
        Follower { pool, directory, addresses: BTreeMap::new(), holders: BTreeMap::new() };
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        follower.take(change);
    }
    // If only the changes end, the endpoints stay.
    stop.cancelled().await;
    follower.take(Change::All(Vec::new()));
}

struct Follower {
    pool: Arc<Pool>,
    directory: Arc<Directory>,
    /// Every member by name, with its address where it has one.
    addresses: BTreeMap<String, Option<SocketAddr>>,
    /// The member that holds each address. A new pod may get an address before the end of its last
    /// holder is reported.
    holders: BTreeMap<SocketAddr, String>,
}

impl Follower {
    fn take(&mut self, change: Change) {
        match change {
            Change::All(all) => {
                let now: BTreeMap<_, _> = all.into_iter().collect();
                let gone: Vec<_> = self
                    .addresses
                    .keys()
                    .filter(|name| !now.contains_key(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.gone(&name);
                }
                for (name, member) in now {
                    self.put(name, member);
                }
            }
            Change::Put(name, member) => self.put(name, member),
            Change::Gone(name) => self.gone(&name),
            Change::Trouble(why) => {
                tracing::warn!("{}: discovery: {why}; known endpoints stay", self.pool.name);
            }
        }
    }

    fn put(&mut self, name: String, member: Member) {
        let before = self.addresses.insert(name.clone(), member.address).flatten();
        if before != member.address
            && let Some(old) = before
        {
            self.release(&name, old);
        }
        let Some(address) = member.address else {
            let Some(phase) = member.phase else { return };
            let waiting = Waiting { phase, reason: full_reason(&member) };
            return self.pool.set_pending_pod(name, Some((waiting, member.reason)));
        };
        self.pool.set_pending_pod(name.clone(), None);
        self.holders.insert(address, name);
        self.directory.add(&self.pool, Source::Discovery, address);
        self.pool.found(address, &member);
    }

    fn gone(&mut self, name: &str) {
        self.pool.set_pending_pod(name.to_owned(), None);
        if let Some(Some(address)) = self.addresses.remove(name) {
            self.release(name, address);
        }
    }

    fn release(&mut self, name: &str, address: SocketAddr) {
        if self.holders.get(&address).is_some_and(|holder| holder == name) {
            self.holders.remove(&address);
            self.directory.remove(&self.pool, Source::Discovery, address);
        }
    }
}

#[cfg(test)]
mod tests;
