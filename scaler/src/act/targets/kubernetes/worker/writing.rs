//! Writes the count, and marks those that are to go with it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::super::events::{Events, Told as Noted};
use super::super::pods;
use super::super::workload::{Failed, Scaled, Workload};
use super::{About, Worker};
use crate::decide::Override;

/// Conflicts in a row that are tried again at once.
const CONFLICTS: u32 = 5;
const RETRY: Duration = Duration::from_millis(500);

impl Worker {
    /// Writes the count if it is not the one that is wanted.
    pub(super) async fn write(&mut self, workload: &Workload, events: &Events) {
        for _ in 0..CONFLICTS {
            let orders = self.orders.borrow().clone();
            let (Some(count), Some(scaled)) = (orders.count, self.scaled.clone()) else { return };
            if scaled.replicas == count {
                // As long as there are more pods than that, a mark may be needed yet.
                if pods::left(&self.pods) <= count && self.unmark(workload, &orders.stopping).await
                {
                    self.calm(About::Mark);
                }
                return;
            }
            // Who is in charge by an annotation also writes, unless a number stands there.
            let theirs = matches!(self.order, Override::Fixed(it) if it != count);
            if theirs {
                return;
            }
            // Without its marks the controller would take any, with what streams there.
            if count < scaled.replicas && !self.mark(workload, &orders.stopping).await {
                return self.retry_later();
            }
            // One of them may be wanted again by now, or another scaler may lead.
            if *self.orders.borrow() != orders {
                continue;
            }
            match workload.write(count, &scaled.version).await {
                Ok(now) => {
                    self.calm(About::Scale);
                    let up = count > scaled.replicas;
                    tracing::debug!(
                        "{}: replicas written: {} → {count}",
                        self.pool,
                        scaled.replicas
                    );
                    let from = scaled.replicas;
                    let note = match orders.why.as_str() {
                        "" => format!("scaling {from} → {count}"),
                        why => why.to_owned(),
                    };
                    events.tell(Noted {
                        regarding: workload.reference(now.uid.clone()),
                        reason: if up { "ScaledUp" } else { "ScaledDown" },
                        warning: false,
                        note,
                    });
                    self.written = Some(count);
                    // The answer to a write may lack the status.
                    let selector =
                        if now.selector.is_empty() { scaled.selector } else { now.selector };
                    self.scaled = Some(Scaled { selector, ..now });
                    self.tell();
                    return;
                }
                Err(Failed::Conflict) => match workload.read().await {
                    // Only its status changed in most cases. A count that somebody else set is
                    // noticed with the watch, which tells of the annotations too.
                    Ok(now) if now.replicas == scaled.replicas => self.scaled = Some(now),
                    Ok(now) => {
                        self.scaled = Some(now);
                        return self.retry_later();
                    }
                    Err(why) => {
                        self.complain(About::Scale, why);
                        return self.retry_later();
                    }
                },
                Err(Failed::For(why)) => {
                    self.complain(About::Scale, why);
                    return self.retry_later();
                }
            }
        }
        self.retry_later();
    }

    fn retry_later(&mut self) {
        self.retry = Some(Instant::now() + RETRY);
    }

    /// Just before a scale-down: those that are to go, and only those. Whether it is so now.
    async fn mark(&mut self, workload: &Workload, stopping: &BTreeSet<String>) -> bool {
        let by_number = self.pods.values().any(|pod| pod.ordinal.is_some());
        if by_number {
            return true;
        }
        if !self.unmark(workload, stopping).await {
            return false;
        }
        let mut new: Vec<_> = stopping.difference(&self.marked).cloned().collect();
        new.retain(|name| self.pods.contains_key(name));
        for name in new {
            if let Err(why) = workload.mark(&name, true).await {
                self.complain(About::Mark, why);
                return false;
            }
            self.marked.insert(name);
        }
        self.calm(About::Mark);
        true
    }

    /// Those that are kept after all, and those of a leader before this one. Whether none is left.
    async fn unmark(&mut self, workload: &Workload, stopping: &BTreeSet<String>) -> bool {
        let kept: Vec<_> = self.marked.difference(stopping).cloned().collect();
        for name in kept {
            if let Err(why) = workload.mark(&name, false).await {
                self.complain(About::Mark, why);
                return false;
            }
            self.marked.remove(&name);
        }
        true
    }
}
