//! The engine on a paused clock.

use super::*;
use crate::sim::args::SimArgs;
use crate::sim::metrics::{Page, PageSettings};

fn engine(flags: &[&str]) -> Arc<Engine> {
    let args = SimArgs::from_flags(flags.iter().copied()).expect("valid flags");
    let page = Page::new(&PageSettings {
        model: "m",
        max_model_len: 100,
        blocks: 1,
        block_size: 1,
        tool_parser: false,
    });
    let setup = EngineSettings {
        limits: args.limits(),
        timing: args.timing(),
        max_queued: args.capacity.max_num_queued_reqs,
        seed: args.speed.seed,
        fail_rate: args.faults.fail_rate,
        reject_rate: args.faults.reject_rate,
    };
    Engine::new(setup, Stats::new(page.histograms()))
}

fn job(output_tokens: u32) -> Job {
    Job {
        prompt_tokens: 100,
        prefix: Vec::new(),
        output_tokens,
        max_tokens: output_tokens,
        reason: "length",
    }
}

fn running(engine: &Arc<Engine>) -> JoinOnDrop {
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(Arc::clone(engine).run());
    JoinOnDrop(tasks)
}

struct JoinOnDrop(#[expect(dead_code, reason = "held to keep the task")] tokio::task::JoinSet<()>);

#[tokio::test(start_paused = true)]
async fn tokens_come_at_the_pace_of_the_timing_model() {
    let flags =
        ["--prefill-tokens-per-second=1000", "--decode-step-ms=10", "--decode-step-ms-per-seq=0.5"];
    let engine = engine(&flags);
    let _task = running(&engine);
    let begun = Instant::now();
    let (_ticket, mut out) = engine.submit(vec![job(41), job(41)], 2, None).expect("room for two");
    let first = out.recv().await.expect("a token");
    assert_eq!(first.event, SeqEvent::Token { last: false });
    assert_eq!(begun.elapsed().as_millis(), 200, "two prompts of 100 tokens");
    while out.recv().await.is_some() {}
    let took = begun.elapsed().as_millis();
    assert!((640..=642).contains(&took), "200 ms and 40 steps of 11 ms: {took}");
    assert_eq!(engine.gauges(), Gauges::default());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_ticket_frees_its_seat_for_the_next() {
    let engine = engine(&["--max-num-seqs=1", "--max-num-queued-reqs=1"]);
    let _task = running(&engine);
    let (first, mut out) = engine.submit(vec![job(1000)], 1, None).expect("a seat");
    let _ = out.recv().await;
    let (_second, mut next) = engine.submit(vec![job(5)], 1, None).expect("a place in the queue");
    let third = engine.submit(vec![job(5)], 1, None).map(|_| ());
    assert_eq!(third, Err(Refused::QueueFull));
    assert_eq!((engine.gauges().running, engine.gauges().waiting), (1, 1));
    drop(first);
    assert_eq!(engine.gauges().running, 0, "at once");
    assert!(next.recv().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_hung_engine_keeps_its_gauges_and_goes_on_where_it_was() {
    let engine = engine(&[]);
    let _task = running(&engine);
    let (_ticket, mut out) = engine.submit(vec![job(3)], 1, None).expect("a seat");
    let _ = out.recv().await;
    engine.set(State::Hung);
    let silent = tokio::time::timeout(Duration::from_secs(3600), out.recv()).await;
    assert!(silent.is_err(), "{silent:?}");
    assert_eq!(engine.gauges().running, 1);
    engine.set(State::Running);
    let mut last = None;
    while let Some(output) = out.recv().await {
        last = Some(output.event);
    }
    assert_eq!(last, Some(SeqEvent::Token { last: true }));
}

#[tokio::test(start_paused = true)]
async fn faults_follow_from_the_seed() {
    let fates = |flags: &'static [&'static str]| async move {
        let engine = engine(flags);
        let _task = running(&engine);
        let mut fates = Vec::new();
        for _ in 0..40 {
            match engine.submit(vec![job(4)], 1, None) {
                Err(_) => fates.push("refused"),
                Ok((_ticket, mut out)) => loop {
                    match out.recv().await.expect("an end").event {
                        SeqEvent::Failed => break fates.push("failed"),
                        SeqEvent::Token { last: true } => break fates.push("whole"),
                        _ => {}
                    }
                },
            }
        }
        fates
    };
    let one = fates(&["--fail-rate=0.3", "--reject-rate=0.3", "--seed=1"]).await;
    for fate in ["refused", "failed", "whole"] {
        assert!(one.contains(&fate), "{fate}: {one:?}");
    }
    assert_eq!(one, fates(&["--fail-rate=0.3", "--reject-rate=0.3", "--seed=1"]).await);
    assert_ne!(one, fates(&["--fail-rate=0.3", "--reject-rate=0.3", "--seed=2"]).await);
    assert_eq!(fates(&[]).await, ["whole"; 40]);
}
