//! Laws of every world, whoever decides.

use proptest::prelude::*;

use super::*;
use crate::replay::contestants::Bounds;
use crate::replay::contestants::fixed::Schedule;
use crate::replay::contestants::keda::Keda;
use crate::replay::contestants::knative::Knative;
use crate::replay::contestants::kubeai::KubeAi;
use crate::replay::tests::{fixed, model, trace_of};

fn contestants(min: u32, count: u32) -> Vec<Box<dyn Contestant>> {
    let bounds = Bounds { min, max: 4, cooldown: 60 * SECOND, limit: 8, target: 6 };
    vec![
        Box::new(Schedule::fixed(count)),
        Box::new(Keda::new(bounds, 5.0)),
        Box::new(Knative::new(bounds, 8)),
        Box::new(KubeAi::new(bounds, 6)),
    ]
}

/// A schedule under which streams move off replicas that have drained for this time.
struct Moving(Schedule, Option<Us>);

impl Contestant for Moving {
    fn rules(&self) -> Rules {
        Rules { move_after: self.1, ..self.0.rules() }
    }

    fn next_look(&self) -> Us {
        self.0.next_look()
    }

    fn look(&mut self, world: &World<'_>) -> Option<u32> {
        self.0.look(world)
    }
}

#[test]
fn a_cold_start_is_waited_for_and_paid_from_request_to_stop() {
    let model = Model { cold_start: ColdStart { spread: 0.0, ..model().cold_start }, ..model() };
    let trace = trace_of([(10 * SECOND, 20_000, 1)]);
    let counts = vec![(5 * SECOND, 1), (66 * SECOND, 0)];
    let mut schedule = Schedule { initial_replicas: 0, counts, at: 0 };
    let run = play(&trace, &model, &mut schedule, 10, |_| ());
    // Requested at 5 s, healthy at 65 s; a prompt of one second; drained at 66 s, when it is done.
    assert_eq!(run.outcomes[0].released, Some(65 * SECOND));
    assert_eq!(run.outcomes[0].first_token, Some(66 * SECOND));
    assert_eq!((run.paid, run.starts, run.peak), (61 * SECOND, 1, 1));
}

#[test]
fn a_draining_replica_finishes_its_requests() {
    let trace = trace_of([(0, 2_000, 1_000)]);
    let counts = vec![(SECOND, 0)];
    let mut schedule = Schedule { initial_replicas: 1, counts, at: 0 };
    let run = play(&trace, &model(), &mut schedule, 10, |_| ());
    let last = run.outcomes[0].last_token.expect("answered");
    assert!(last > 5 * SECOND);
    assert_eq!(run.paid, last);
}

#[test]
fn streams_move_off_a_draining_replica_which_is_then_stopped() {
    // Two replicas with six answers of 20,000 tokens each; one drains at 100 s.
    let trace = trace_of((0..12).map(|_| (0, 1_000, 20_000)));
    let played = |move_after, limit| {
        let model = Model { limit, ..model() };
        let counts = vec![(100 * SECOND, 1)];
        let schedule = Schedule { initial_replicas: 2, counts, at: 0 };
        play(&trace, &model, &mut Moving(schedule, move_after), 10, |_| ())
    };
    let drained = played(None, fixed(32));
    let moved = played(Some(5 * SECOND), fixed(32));
    let no_room = played(Some(5 * SECOND), fixed(6));
    assert_eq!((drained.moves, moved.moves), (0, 6));
    assert!(no_room.moves < 6, "only to places that others have left: {}", no_room.moves);
    for run in [&drained, &moved, &no_room] {
        assert!(run.outcomes.iter().all(|outcome| outcome.last_token.is_some()), "all answered");
    }
    // A replica is paid for 106 s rather than until the end of its answers.
    let one_alone = moved.paid - moved.ended;
    assert!((105 * SECOND..115 * SECOND).contains(&one_alone), "{one_alone}");
    assert!(drained.paid > moved.paid + 30 * SECOND, "{} {}", drained.paid, moved.paid);
    // A pause for six prompts, and slower steps, cost the streams little.
    let last = |run: &Run| run.outcomes.iter().filter_map(|one| one.last_token).max();
    assert!(last(&moved).expect("answered") < last(&drained).expect("answered") + 30 * SECOND);
}

#[test]
fn no_gateway_holds_for_keda_and_clients_retry() {
    let model = Model { patience: 20 * SECOND, ..model() };
    let trace = trace_of([(0, 100, 5)]);
    let bounds = Bounds { min: 0, max: 4, cooldown: SECOND, limit: 8, target: 6 };
    let run = play(&trace, &model, &mut Keda::new(bounds, 5.0), 10, |_| ());
    assert!(run.outcomes[0].gave_up, "at zero there is no metric that could wake it");
    assert_eq!(run.starts, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    // Each request is answered once or given up, whoever decides and however patient clients are; a
    // first token comes after the release and before the last token; and the cost is at most the
    // peak over the whole run.
    #[test]
    fn each_request_is_answered_once_or_given_up(
        requests in prop::collection::vec((0..300u64, 1..3_000u32, 1..200u32), 1..60),
        patience in 1..120u64, most in 0..20usize, min in 0..2u32, seed in 0..100u64,
        drop_at in 1..100u64,
    ) {
        let mut requests: Vec<_> =
            requests.into_iter().map(|(at, prompt, output)| (at * SECOND / 3, prompt, output)).collect();
        requests.sort_unstable();
        let trace = trace_of(requests);
        let model =
            Model { patience: patience * SECOND, max_held: most, limit: fixed(8), seed, ..model() };
        let counts = vec![(drop_at * SECOND, 1), ((drop_at + 40) * SECOND, 3)];
        let changing = Schedule { initial_replicas: 3, counts, at: 0 };
        let changing = Moving(changing, Some(SECOND));
        let all = contestants(min, 1).into_iter().chain([Box::new(changing) as Box<dyn Contestant>]);
        for mut contestant in all {
            let run = play(&trace, &model, contestant.as_mut(), 50, |_| ());
            for (outcome, request) in run.outcomes.iter().zip(&trace.requests) {
                prop_assert!(outcome.gave_up != outcome.last_token.is_some(), "{:?}", outcome);
                if let (Some(released), Some(first), Some(last)) =
                    (outcome.released, outcome.first_token, outcome.last_token)
                {
                    prop_assert!(request.at <= released && released <= first && first <= last);
                }
            }
            prop_assert!(run.paid <= run.ended * u64::from(run.peak.max(1)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn the_same_seed_gives_the_same_run(seed in 0..50u64) {
        let trace = crate::replay::trace::generate::by_name("burst", seed).expect("known");
        let model = Model { seed, ..model() };
        let runs = contestants(0, 2).into_iter().zip(contestants(0, 2));
        for (mut one, mut other) in runs.take(4) {
            let one = play(&trace, &model, one.as_mut(), 50, |_| ());
            let other = play(&trace, &model, other.as_mut(), 50, |_| ());
            prop_assert_eq!(one.outcomes, other.outcomes);
            prop_assert_eq!(one.paid, other.paid);
        }
    }
}
