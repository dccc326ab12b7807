//! Writes the count, and marks the replicas that are to stop with it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::super::events::{Events, Note};
use super::super::pods;
use super::super::workload::{Failed, Scaled, Workload};
use super::{Subject, Worker};
use crate::decide::Override;

/// Conflicts in a row that are tried again at once.
const CONFLICTS: u32 = 5;
const RETRY: Duration = Duration::from_millis(500);

impl Worker {
    /// Writes the count if it is not the wanted one.
    pub(super) async fn write(&mut self, workload: &Workload, events: &Events) {
        for _ in 0..CONFLICTS {
            let orders = self.orders.borrow().clone();
            let (Some(count), Some(scaled)) = (orders.count, self.scaled.clone()) else { return };
            if scaled.replicas == count {
                // While there are more pods than that, a mark may still be needed.
                if pods::left(&self.pods.all) <= count
                    && self.unmark(workload, &orders.stopping).await
                {
                    self.calm(Subject::Mark);
                }
                return;
            }
            // Whoever put the annotation there also writes the count, unless it contains a number.
            let theirs = matches!(self.operator_override, Override::Fixed(fixed) if fixed != count);
            if theirs {
                return;
            }
            // Without marks the controller would take any pod, with the streams it serves.
            if count < scaled.replicas && !self.mark(workload, &orders.stopping).await {
                return self.retry_later();
            }
            // Meanwhile a replica may be wanted again, or another scaler may lead.
            if *self.orders.borrow() != orders {
                continue;
            }
            match workload.write(count, &scaled.version).await {
                Ok(now) => {
                    self.calm(Subject::Scale);
                    let up = count > scaled.replicas;
                    tracing::debug!(
                        "{}: replicas written: {} → {count}",
                        self.scope.pool,
                        scaled.replicas
                    );
                    let from = scaled.replicas;
                    let note = match orders.why.as_str() {
                        "" => format!("scaling {from} → {count}"),
                        why => why.to_owned(),
                    };
                    events.write(Note {
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
                    self.publish();
                    return;
                }
                Err(Failed::Conflict) => match workload.read().await {
                    // Usually only its status changed. A count that another client set is noticed
                    // by the watch, which shows the annotations too.
                    Ok(now) if now.replicas == scaled.replicas => self.scaled = Some(now),
                    Ok(now) => {
                        self.scaled = Some(now);
                        return self.retry_later();
                    }
                    Err(why) => {
                        self.complain(Subject::Scale, why);
                        return self.retry_later();
                    }
                },
                Err(Failed::For(why)) => {
                    self.complain(Subject::Scale, why);
                    return self.retry_later();
                }
            }
        }
        self.retry_later();
    }

    fn retry_later(&mut self) {
        self.retry = Some(Instant::now() + RETRY);
    }

    /// Marks the replicas that are to stop, and only those. Returns whether that succeeded.
    async fn mark(&mut self, workload: &Workload, stopping: &BTreeSet<String>) -> bool {
        let by_number = self.pods.all.values().any(|pod| pod.ordinal.is_some());
        if by_number {
            return true;
        }
        if !self.unmark(workload, stopping).await {
            return false;
        }
        let mut new: Vec<_> = stopping.difference(&self.pods.marked).cloned().collect();
        new.retain(|name| self.pods.all.contains_key(name));
        for name in new {
            if let Err(why) = workload.mark(&name, true).await {
                self.complain(Subject::Mark, why);
                return false;
            }
            self.pods.marked.insert(name);
        }
        self.calm(Subject::Mark);
        true
    }

    /// Removes the marks of replicas that stay, and of an earlier leader. Returns whether that
    /// succeeded.
    async fn unmark(&mut self, workload: &Workload, stopping: &BTreeSet<String>) -> bool {
        let kept: Vec<_> = self.pods.marked.difference(stopping).cloned().collect();
        for name in kept {
            if let Err(why) = workload.mark(&name, false).await {
                self.complain(Subject::Mark, why);
                return false;
            }
            self.pods.marked.remove(&name);
        }
        true
    }
}
