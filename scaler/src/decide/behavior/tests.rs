use super::*;
use proptest::prelude::*;

fn rules(yaml: serde_json::Value) -> Rules {
    Rules::of(&serde_json::from_value(yaml).expect("a behavior"))
}

/// Plays (seconds, desired) from `current`; returns the count after each step.
fn play(rules: &Rules, mut current: u32, steps: &[(u64, u32)]) -> Vec<u32> {
    let mut history = History::default();
    let step = |(at, desired): &(u64, u32)| {
        let now = Millis::from_secs(1_000 + at);
        let next = rules.apply(&mut history, current, *desired, now);
        history.changed(rules, current, next, now);
        current = next;
        next
    };
    steps.iter().map(step).collect()
}

/// The cases are the examples of the HPA's documentation ("Scaling policies", "Stabilization window",
/// "Default Behavior").
#[test]
fn counts_change_as_the_hpa_documents() {
    let policies = |direction: &str, rules: serde_json::Value| {
        let mut behavior = serde_json::json!({"scaleDown": {"stabilizationWindowSeconds": 0}});
        for (key, value) in rules.as_object().expect("an object") {
            behavior[direction][key] = value.clone();
        }
        behavior
    };
    let pods_4_percent_10 = serde_json::json!([
        {"type": "Pods", "value": 4, "periodSeconds": 60},
        {"type": "Percent", "value": 10, "periodSeconds": 60}
    ]);
    let cases = [
        (
            "default up: 100 % or 4 pods in 15 s, whichever is more",
            serde_json::json!({}),
            1,
            vec![(0, 50), (1, 50), (15, 50), (30, 50), (45, 50), (60, 50)],
            vec![5, 5, 10, 20, 40, 50],
        ),
        (
            "default down: nothing for 300 s, then all at once",
            serde_json::json!({}),
            10,
            vec![(0, 2), (299, 2), (300, 2)],
            vec![10, 10, 2],
        ),
        (
            "down by 10 % or 4 a minute, whichever is more: 80 to 10",
            policies("scaleDown", serde_json::json!({"policies": pods_4_percent_10})),
            80,
            vec![(0, 10), (59, 10), (60, 10), (120, 10), (180, 10), (240, 10)],
            vec![72, 72, 64, 57, 51, 45],
        ),
        (
            "at 40 and less 4 a minute are more than 10 %",
            policies("scaleDown", serde_json::json!({"policies": pods_4_percent_10})),
            40,
            vec![(0, 10), (60, 10)],
            vec![36, 32],
        ),
        (
            "selectPolicy Min takes the smaller change",
            policies(
                "scaleDown",
                serde_json::json!({"policies": pods_4_percent_10, "selectPolicy": "Min"}),
            ),
            80,
            vec![(0, 10), (60, 10)],
            vec![76, 72],
        ),
        (
            "selectPolicy Disabled changes nothing in its direction",
            policies("scaleDown", serde_json::json!({"selectPolicy": "Disabled"})),
            10,
            vec![(0, 1), (600, 1), (601, 12)],
            vec![10, 10, 12],
        ),
        (
            "a window upwards takes the lowest proposal in it, and the count at its beginning",
            serde_json::json!({"scaleUp": {"stabilizationWindowSeconds": 60}}),
            4,
            vec![(0, 8), (30, 6), (60, 8), (91, 8)],
            vec![4, 4, 6, 8],
        ),
        (
            "limits count what was added within the period",
            serde_json::json!({"scaleUp": {"policies": [
                {"type": "Pods", "value": 2, "periodSeconds": 60}]}}),
            1,
            vec![(0, 2), (10, 9), (20, 9), (60, 9), (70, 9)],
            vec![2, 3, 3, 4, 5],
        ),
    ];
    for (case, behavior, current, steps, want) in cases {
        assert_eq!(play(&rules(behavior), current, &steps), want, "{case}");
    }
}

#[test]
fn a_part_that_is_left_out_has_the_hpas_default() {
    let given = rules(serde_json::json!({"scaleUp": {"stabilizationWindowSeconds": 30}}));
    assert_eq!((given.up.window, given.up.policies.len()), (Millis::from_secs(30), 2));
    assert_eq!((given.down.window, given.down.select), (Millis::from_secs(300), SelectPolicy::Max));
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let direction =
        (0..120u32, 0..3u8, prop::collection::vec((any::<bool>(), 1..200u32, 1..90u32), 1..3));
    let direction = direction.prop_map(|(window, select, policies)| ScalingRules {
        stabilization_window_seconds: Some(window),
        select_policy: Some(
            [SelectPolicy::Max, SelectPolicy::Min, SelectPolicy::Disabled][select as usize],
        ),
        policies: Some(
            policies
                .into_iter()
                .map(|(pods, value, period_seconds)| ScalingPolicy {
                    r#type: if pods { PolicyType::Pods } else { PolicyType::Percent },
                    value,
                    period_seconds,
                })
                .collect(),
        ),
        tolerance: None,
    });
    (direction.clone(), direction)
        .prop_map(|(up, down)| Rules::of(&Behavior { scale_up: Some(up), scale_down: Some(down) }))
}

proptest! {
    #[test]
    fn goes_only_towards_the_proposal(
        rules in any_rules(), begin in 0..50u32,
        steps in prop::collection::vec((1..60u64, 0..100u32), 1..40),
    ) {
        let (mut at, mut current) = (0, begin);
        let timed: Vec<_> = steps.iter().map(|(pause, desired)| { at += pause; (at, *desired) }).collect();
        for ((_, desired), next) in timed.iter().zip(play(&rules, begin, &timed)) {
            prop_assert!(next == current || (next > current) == (*desired > current), "{next} from {current} for {desired}");
            prop_assert!(next.abs_diff(current) <= desired.abs_diff(current));
            current = next;
        }
    }
}
