//! What is shown against the real thing. Each suite has a namespace of its own.

mod deploy;
mod direct;
mod keda;
mod measure;
mod node;
mod rbac;
mod roles;
pub mod workload;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::Cluster;

/// One suite.
pub struct Suite {
    pub name: &'static str,
    pub run: Run,
    pub needs_keda: bool,
    /// It kills parts of the control plane.
    pub breaks_plane: bool,
    /// It prints figures instead of showing behaviour.
    pub measures: bool,
}

type Run = Box<dyn Fn(Arc<Cluster>) -> Pin<Box<dyn Future<Output = ()>>>>;

impl Suite {
    fn new<F>(name: &'static str, run: impl Fn(Arc<Cluster>) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let run: Run = Box::new(move |cluster| Box::pin(run(cluster)));
        Self { name, run, needs_keda: false, breaks_plane: false, measures: false }
    }

    fn with_keda(self) -> Self {
        Self { needs_keda: true, ..self }
    }

    fn breaking(self) -> Self {
        Self { breaks_plane: true, ..self }
    }

    fn measuring(self) -> Self {
        Self { measures: true, ..self }
    }
}

/// Every suite, those that break things last.
pub fn all() -> Vec<Suite> {
    vec![
        Suite::new("a_pod_lives_and_ends_as_with_a_kubelet", node::a_pod_lives_and_ends),
        Suite::new("a_pods_troubles_are_reported_as_by_a_kubelet", node::troubles_are_reported),
        Suite::new(
            "a_dead_nodes_pods_are_not_waited_for",
            node::a_dead_nodes_pods_are_not_waited_for,
        ),
        Suite::new("keda_wakes_serves_and_sleeps", keda::wakes_serves_and_sleeps).with_keda(),
        Suite::new("keda_with_boost_wakes_all_at_once", keda::boost_wakes_all_at_once).with_keda(),
        Suite::new("keda_scales_by_raw_signals", keda::scales_by_raw_signals).with_keda(),
        Suite::new(
            "rbac_the_charts_roles_are_enough_for_direct_mode",
            rbac::the_charts_roles_are_enough_for_direct_mode,
        ),
        Suite::new(
            "rbac_the_charts_roles_are_enough_for_the_boost",
            rbac::the_charts_roles_are_enough_for_the_boost,
        )
        .with_keda(),
        Suite::new("rbac_a_missing_right_is_named", rbac::a_missing_right_is_named),
        Suite::new("keda_examples_are_accepted", rbac::keda_examples_are_accepted).with_keda(),
        Suite::new("measure_directly", measure::directly).measuring(),
        Suite::new("measure_through_keda", measure::through_keda).with_keda().measuring(),
        Suite::new(
            "deploy_the_chart_gives_rights_only_where_pools_are",
            roles::the_chart_gives_rights_only_where_pools_are,
        ),
        Suite::new("deploy_the_chart_is_accepted", deploy::the_chart_is_accepted),
        Suite::new("deploy_examples_are_accepted", deploy::examples_are_accepted),
        Suite::new("deploy_the_dcgm_example_is_accepted", deploy::the_dcgm_example_is_accepted)
            .with_keda(),
        Suite::new("direct_wakes_serves_and_sleeps", direct::wakes_serves_and_sleeps),
        Suite::new(
            "direct_a_stateful_set_shrinks_from_its_end",
            direct::a_stateful_set_shrinks_from_its_end,
        ),
        Suite::new(
            "direct_foreign_counts_are_corrected_or_respected",
            direct::foreign_counts_are_corrected_or_respected,
        ),
        Suite::new(
            "direct_a_rolling_update_under_load_fails_no_request",
            direct::a_rolling_update_under_load_fails_no_request,
        ),
        Suite::new(
            "direct_another_scaler_takes_over_in_a_cold_start",
            direct::another_scaler_takes_over_in_a_cold_start,
        ),
        Suite::new(
            "direct_traffic_flows_while_the_api_server_is_away",
            direct::traffic_flows_while_the_api_server_is_away,
        )
        .breaking(),
    ]
}
