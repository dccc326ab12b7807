//! Commands of operators: overrides that stand, and orders for the next decision.

use super::Loop;
use crate::act::overrides::{Command, CommandRefused, CommandRequest};
use crate::act::targets::ScaleTarget as _;
use crate::decide::{Order, Override};
use crate::run::managed_pool::ManagedPool;

impl Loop {
    /// Carries out an operator's command.
    pub(super) fn command(&mut self, CommandRequest { pool, command, done }: CommandRequest) {
        let leads = self.leads();
        let reports = self.feeds.reports(&pool);
        let managed = self.pools.iter_mut().find(|managed| managed.pool.name == pool);
        let result = match managed {
            None => Err(CommandRefused::UnknownPool(
                self.config.pools.iter().map(|pool| pool.name.clone()).collect(),
            )),
            Some(_) if !leads => Err(CommandRefused::NotLeading),
            Some(managed) if !managed.target.scales() => Err(CommandRefused::Unscaled),
            Some(managed) => match command {
                Command::Override(new) => set_override(managed, new),
                Command::Order(order) => {
                    let signals = || reports.iter().filter_map(|report| report.signals);
                    let requests =
                        signals().map(|signals| signals.queue_depth + signals.in_flight).sum();
                    let is_known = reports.iter().all(|report| report.silent_for.is_none());
                    give(managed, order, requests, is_known && !reports.is_empty())
                }
            },
        };
        if let Ok(sentence) = &result {
            tracing::info!("{pool}: {sentence}");
        }
        self.memory.pace.hurry();
        let _ = done.send(result);
    }
}

fn set_override(managed: &mut ManagedPool, new: Override) -> Result<String, CommandRefused> {
    match new {
        Override::Fixed(count) if count > managed.pool.most() => {
            Err(CommandRefused::TooMany(managed.pool.most()))
        }
        new => {
            managed.pool.set_override(new);
            Ok(new.sentence())
        }
    }
}

/// Gives an order, if it has an effect. `requests` are held and in flight at the gateways, which
/// `is_known` if each of them reports.
fn give(
    managed: &mut ManagedPool,
    order: Order,
    requests: u32,
    is_known: bool,
) -> Result<String, CommandRefused> {
    let stands = managed.pool.standing_override(&managed.target);
    let idle = managed.pool.idle_count();
    match order {
        _ if stands != Override::None => return Err(CommandRefused::Overridden(stands)),
        Order::Rest if !is_known => {
            return Err(CommandRefused::Busy(
                "a gateway is silent and may hold requests".to_owned(),
            ));
        }
        Order::Rest if requests > 0 => {
            let requests =
                if requests == 1 { "1 request".to_owned() } else { format!("{requests} requests") };
            return Err(CommandRefused::Busy(format!("{requests} held or in flight")));
        }
        Order::Wake | Order::Rest => managed.pool.order(order),
    }
    Ok(match (order, idle) {
        (Order::Wake, _) => "woken, as if a request had come".to_owned(),
        (Order::Rest, 0) => "goes to zero, and wakes with the next request".to_owned(),
        (Order::Rest, idle) => format!("goes to its idle count of {idle}"),
    })
}
