//! The suites. Each has a namespace of its own.

mod away;
mod chart;
mod deploy;
mod direct;
mod discovery;
mod dns;
mod existing;
mod expiry;
mod failing;
mod keda;
mod keda_failover;
mod keda_tls;
mod keda_verdicts;
mod leader_worker_set;
mod load;
mod measure;
mod moves;
mod node;
mod rbac;
mod roles;
mod shrink;
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
    /// It covers more if KEDA runs.
    pub uses_keda: bool,
    /// It kills parts of the control plane.
    pub breaks_plane: bool,
    /// It prints measurements instead of checking behaviour.
    pub measures: bool,
}

type Run = Box<dyn Fn(Arc<Cluster>) -> Pin<Box<dyn Future<Output = ()>>>>;

impl Suite {
    fn new<F>(name: &'static str, run: impl Fn(Arc<Cluster>) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let run: Run = Box::new(move |cluster| Box::pin(run(cluster)));
        Self {
            name,
            run,
            needs_keda: false,
            uses_keda: false,
            breaks_plane: false,
            measures: false,
        }
    }

    fn with_keda(self) -> Self {
        Self { needs_keda: true, uses_keda: true, ..self }
    }

    fn beside_keda(self) -> Self {
        Self { uses_keda: true, ..self }
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
        Suite::new("keda_wakes_by_mutual_tls", keda_tls::wakes_by_mutual_tls).with_keda(),
        Suite::new("keda_another_scaler_answers", keda_failover::another_scaler_answers_keda)
            .with_keda(),
        Suite::new(
            "rbac_the_charts_roles_are_what_direct_mode_needs",
            rbac::the_charts_roles_are_what_direct_mode_needs,
        ),
        Suite::new(
            "rbac_the_charts_roles_are_what_the_boost_needs",
            rbac::the_charts_roles_are_what_the_boost_needs,
        )
        .with_keda(),
        Suite::new(
            "rbac_the_charts_roles_are_what_replacing_needs",
            rbac::the_charts_roles_are_what_replacing_needs,
        ),
        Suite::new("rbac_a_missing_right_is_named", rbac::a_missing_right_is_named),
        Suite::new("keda_verdicts_are_those_recorded", keda_verdicts::are_those_recorded)
            .with_keda(),
        Suite::new("keda_examples_are_accepted", rbac::keda_examples_are_accepted).with_keda(),
        Suite::new("measure_moves", moves::answers_of_five_minutes).measuring(),
        Suite::new("measure_directly", measure::directly).measuring(),
        Suite::new("measure_through_keda", measure::through_keda).with_keda().measuring(),
        Suite::new(
            "deploy_the_chart_gives_rights_only_where_pools_are",
            roles::the_chart_gives_rights_only_where_pools_are,
        ),
        Suite::new("deploy_the_chart_is_accepted", deploy::the_chart_is_accepted),
        Suite::new("deploy_every_value_of_the_chart_is_applied", chart::every_value_is_applied),
        Suite::new(
            "deploy_running_parts_reload_what_replaces_no_pod",
            chart::running_parts_reload_what_replaces_no_pod,
        ),
        Suite::new("deploy_examples_are_accepted", deploy::examples_are_accepted),
        Suite::new("deploy_the_dcgm_example_is_accepted", deploy::the_dcgm_example_is_accepted)
            .with_keda(),
        Suite::new("direct_wakes_serves_and_sleeps", direct::wakes_serves_and_sleeps),
        Suite::new("shrink_the_busy_replica_stays", shrink::the_busy_replica_stays),
        Suite::new(
            "shrink_a_stateful_set_from_its_end",
            shrink::a_stateful_set_shrinks_from_its_end,
        ),
        Suite::new(
            "shrink_a_leader_worker_set_from_its_end",
            shrink::a_leader_worker_set_shrinks_from_its_end,
        ),
        Suite::new("shrink_streams_move_off_pods_that_go", moves::answers_of_a_minute),
        Suite::new(
            "discovery_by_service_and_by_endpoint_slices",
            discovery::by_service_and_by_endpoint_slices,
        ),
        Suite::new("discovery_by_dns", dns::by_dns),
        Suite::new("discovery_a_scaler_finds_the_gateways", discovery::a_scaler_finds_the_gateways),
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
            "direct_pods_that_cannot_start_are_named_to_clients",
            failing::pods_that_cannot_start_are_named_to_clients,
        ),
        Suite::new(
            "direct_pods_without_a_node_are_named_unless_one_is_being_added",
            failing::pods_without_a_node_are_named_unless_one_is_being_added,
        ),
        Suite::new("direct_clocks_are_not_compared", direct::clocks_are_not_compared),
        // It breaks nothing, but it makes sense only with a cluster of our own.
        Suite::new(
            "an_existing_cluster_is_used_by_its_kubeconfig",
            existing::runs_against_an_existing_cluster,
        )
        .breaking(),
        Suite::new("expired_watches_list_anew", expiry::expired_watches_list_anew).breaking(),
        Suite::new(
            "traffic_flows_while_the_api_server_is_away",
            away::traffic_flows_while_the_api_server_is_away,
        )
        .beside_keda()
        .breaking(),
    ]
}
