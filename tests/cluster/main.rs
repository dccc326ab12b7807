//! Forebay against a real Kubernetes control plane and a real KEDA, on loopback.
//!
//!   tests/cluster/build                        the control plane, once
//!   cargo test --test cluster                  every suite
//!   cargo test --test cluster -- keda          the suites with `keda` in their names
//!   cargo test --test cluster -- --measure     the figures of docs/performance.md
//!   cargo test --test cluster -- --keep        only the control plane, until Ctrl-C
//!
//! Without a control plane everything is skipped, with a note; with `FOREBAY_REQUIRE_CLUSTER=1`
//! that is a failure.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, reason = "a test's own")]

mod binaries;
mod forebay;
mod kubelet;
mod link;
mod pki;
mod plane;
mod process;
mod suites;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use crate::binaries::Source;
use crate::kubelet::Kubelet;
use crate::plane::{Plane, Settings};

/// The cluster that every suite gets.
pub struct Cluster {
    pub plane: Plane,
    pub client: kube::Client,
    pub node: Kubelet,
    pub folder: PathBuf,
    /// Whether KEDA runs.
    pub keda: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let (measure, keep) = (has("--measure"), has("--keep"));
    if has("--list") {
        suites::all().iter().for_each(|suite| println!("{}: test", suite.name));
        return ExitCode::SUCCESS;
    }
    let source = match Source::find() {
        Ok(source) => source,
        Err(reason) => {
            println!("cluster tests skipped: {reason}");
            let required =
                std::env::var_os("FOREBAY_REQUIRE_CLUSTER").is_some_and(|value| value == "1");
            return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let filters: Vec<_> =
        arguments.into_iter().filter(|argument| !argument.starts_with('-')).collect();
    let suites: Vec<_> = suites::all()
        .into_iter()
        .filter(|suite| filters.is_empty() || filters.iter().any(|part| suite.name.contains(part)))
        .filter(|suite| suite.measures == measure && !keep)
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run(source, suites, measure, keep))
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn run(source: Source, suites: Vec<suites::Suite>, measure: bool, keep: bool) -> ExitCode {
    let folder = std::env::temp_dir().join(format!("forebay-cluster-{}", std::process::id()));
    // Measurements use Kubernetes' own 15 s.
    let hpa_sync = Duration::from_secs(if measure { 15 } else { 5 });
    // Kubernetes' own: longer than the API server is away in any test.
    let settings = Settings { hpa_sync, node_grace: Duration::from_secs(50) };
    let began = Instant::now();
    let plane = Plane::start(source, &folder, settings).await;
    let client = plane.client().await;
    let keda = plane.has_keda() && (keep || suites.iter().any(|suite| suite.uses_keda));
    if keda {
        plane.start_keda().await;
    }
    let node = Kubelet::start(
        client.clone(),
        forebay::BINARY.into(),
        folder.join("pods"),
        &format!("gpu-{}", std::process::id()),
        64,
    )
    .await;
    println!(
        "control plane up in {:.1} s; logs in {}",
        began.elapsed().as_secs_f64(),
        folder.display()
    );

    let cluster = Arc::new(Cluster { plane, client, node, folder: folder.clone(), keda });
    if keep {
        println!("export KUBECONFIG={}", cluster.plane.kubeconfig.display());
        println!("node: {}; Ctrl-C ends it", cluster.node.name());
        interrupted().await;
    }
    let mut failed = Vec::new();
    for suite in &suites {
        if suite.needs_keda && !keda {
            println!("{} ... skipped: no KEDA; run tests/cluster/build keda", suite.name);
            continue;
        }
        if suite.breaks_plane && !cluster.plane.is_own() {
            println!(
                "{} ... skipped: it breaks the API server, which these tests did not start",
                suite.name
            );
            continue;
        }
        let began = Instant::now();
        let outcome = AssertUnwindSafe((suite.run)(Arc::clone(&cluster))).catch_unwind();
        let outcome = tokio::select! {
            outcome = outcome => outcome,
            // Leaving the loop stops everything that was started.
            () = interrupted() => {
                println!("{} ... interrupted", suite.name);
                failed.push(suite.name);
                break;
            }
        };
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("{} ... ok ({seconds:.1} s)", suite.name),
            Err(_) => {
                println!("{} ... FAILED ({seconds:.1} s)", suite.name);
                failed.push(suite.name);
            }
        }
    }
    let cluster = Arc::into_inner(cluster).expect("suites are over");
    if !failed.is_empty() {
        println!("{}", cluster.plane.tails(15).await);
    }
    cluster.node.stop().await;
    cluster.plane.stop().await;
    if failed.is_empty() {
        let _ = std::fs::remove_dir_all(&folder);
        println!("cluster tests: {} passed", suites.len());
        return ExitCode::SUCCESS;
    }
    println!("cluster tests FAILED: {}; logs in {}", failed.join(", "), folder.display());
    ExitCode::FAILURE
}
