//! Cron schedules against Go's `robfig/cron`, as KEDA uses it: what is taken, and the next times.
//!
//! The judge is the program in `tests/judges/cron`. Skipped, with a line, where there is no Go; with
//! `FOREBAY_REQUIRE_GO` set that is a failure.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use forebay_config::{Signal, Trigger};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRng, TestRunner};
use serde_json::{Value, json};

const SPECS: usize = 6_000;
const COUNT: usize = 4;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The judge's answers to these questions; `None` where there is no Go.
fn judge(questions: &[Value]) -> Option<Vec<Value>> {
    if Command::new("go").arg("version").output().is_err() {
        assert!(
            std::env::var_os("FOREBAY_REQUIRE_GO").is_none(),
            "there is no Go, and FOREBAY_REQUIRE_GO is set"
        );
        eprintln!("skipped: no Go here; apt-get install golang-go");
        return None;
    }
    let mut child = Command::new("go")
        .args(["run", "."])
        .current_dir(workspace().join("tests/judges/cron"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("go runs");
    let mut stdin = child.stdin.take().expect("piped");
    let lines: String = questions.iter().map(|question| format!("{question}\n")).collect();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("it reads everything");
    assert!(output.status.success(), "the judge failed");
    let text = String::from_utf8(output.stdout).expect("text");
    Some(text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

/// Our answer to a question, in the judge's form.
fn ours(question: &Value) -> Value {
    let text = |key: &str| question[key].as_str().expect("text");
    let (spec, zone) = (text("spec"), text("zone"));
    // With another time as the end, since a window that ends when it starts is refused.
    let end = "59 23 31 12 *";
    let settings = [("timezone", zone), ("start", spec), ("end", end), ("desiredReplicas", "1")];
    let (rule, faults) = Trigger::of("cron", &settings).rule(1);
    let Some(Signal::Cron(window)) = rule.map(|rule| rule.signal) else {
        return json!({"error": format!("{faults:?}")});
    };
    let mut now = question["from"].as_u64().expect("a time") * 1000;
    let mut next = Vec::new();
    while next.len() < COUNT
        && let Some(at) = window.start.next(now, &window.timezone)
    {
        next.push(at / 1000);
        now = at;
    }
    json!({"next": next})
}

fn element(most: u32, names: &'static [&'static str]) -> BoxedStrategy<String> {
    let number = prop_oneof![
        12 => (0..=most).prop_map(|number| number.to_string()),
        2 => (0..=most + 2).prop_map(|number| format!("{number:02}")),
        1 => (0..=most).prop_map(|number| format!("+{number}")),
        4 => prop::sample::select(if names.is_empty() { vec!["0", "1"] } else { names.to_vec() })
            .prop_map(str::to_owned),
        1 => prop::sample::select(vec!["7", "60", "24", "L", "W", "1L", "15W", "1#2", "x", "", "-1"])
            .prop_map(str::to_owned),
    ];
    let step = prop_oneof![
        6 => (1..=most).prop_map(|number| format!("/{number}")),
        1 => prop::sample::select(vec!["/0", "/", "//2", "/2/3", "/99999999999999999999", "/x"])
            .prop_map(str::to_owned),
    ];
    let bounds = prop_oneof![
        6 => Just("*".to_owned()),
        2 => Just("?".to_owned()),
        8 => number.clone(),
        5 => (number.clone(), number.clone()).prop_map(|(from, to)| format!("{from}-{to}")),
        1 => number.clone().prop_map(|number| format!("*-{number}")),
        1 => (number.clone(), number).prop_map(|(a, b)| format!("{a}-{b}-{a}")),
    ];
    (bounds, prop::option::weighted(0.3, step))
        .prop_map(|(bounds, step)| bounds + &step.unwrap_or_default())
        .boxed()
}

fn field(most: u32, names: &'static [&'static str]) -> BoxedStrategy<String> {
    prop_oneof![
        10 => element(most, names),
        3 => prop::collection::vec(element(most, names), 2..4).prop_map(|list| list.join(",")),
        1 => Just(",".to_owned()),
    ]
    .boxed()
}

fn spec() -> impl Strategy<Value = String> {
    let months = &["jan", "FEB", "Mar", "dec", "sept"];
    let days = &["sun", "MON", "Tue", "sat", "sunday", "FR\u{130}"];
    let fields =
        (field(59, &[]), field(23, &[]), field(31, &[]), field(12, months), field(6, days));
    let space = prop::sample::select(vec![" ", " ", " ", "  ", "\t", "\u{a0}"]);
    let five = (fields, space).prop_map(|((a, b, c, d, e), s)| [a, b, c, d, e].join(s));
    let prefix = prop::sample::select(vec![
        "TZ=UTC ",
        "CRON_TZ=Europe/Berlin ",
        "TZ=america/new_york ",
        "TZ= ",
        "TZ=Local ",
        "TZ=UTC\t",
        "tz=UTC ",
        "CRON_TZ=UTC",
    ]);
    prop_oneof![
        20 => five.clone(),
        3 => (prefix, five.clone()).prop_map(|(prefix, five)| format!("{prefix}{five}")),
        1 => (element(59, &[]), five.clone()).prop_map(|(second, five)| format!("{second} {five}")),
        1 => five.prop_map(|five| five.rsplit_once(' ').unwrap_or(("", "")).0.to_owned()),
        1 => prop::sample::select(vec![
            "@daily", "@hourly", "@weekly", "@every 5m", "@reboot", "TZ=UTC", "* * * * * *", "",
        ]).prop_map(str::to_owned),
    ]
}

/// Zones with every kind of clock change.
const ZONES: [&str; 22] = [
    "UTC",
    "Etc/UTC",
    "GMT",
    "Europe/Berlin",
    "Europe/Amsterdam",
    "America/New_York",
    "US/Pacific",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Pacific/Chatham",
    "Africa/Cairo",
    "Asia/Beirut",
    "America/Havana",
    "Antarctica/Troll",
    "Atlantic/Azores",
    "Europe/London",
    "europe/berlin",
    "utc",
    "Mars/Olympus",
    "../UTC",
    "EST5EDT",
];

#[test]
fn schedules_are_read_and_go_on_as_in_keda() {
    let rng = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    // From before the changes of 2026's clocks to after them.
    let question = (spec(), prop::sample::select(ZONES.to_vec()), 1_767_225_600_u64..1_798_761_600);
    let mut questions: Vec<Value> = (0..SPECS)
        .map(|_| {
            let (spec, zone, from) = question.new_tree(&mut runner).expect("made").current();
            json!({"spec": spec.trim(), "zone": zone, "from": from, "count": COUNT})
        })
        .collect();
    // Every quarter of an hour that the clock skips or repeats, in zones of every kind.
    for zone in ZONES {
        for (hour, minute) in (0..4).chain(22..24).flat_map(|hour| [(hour, 0), (hour, 30)]) {
            for from in
                [1_772_000_000_u64, 1_774_650_000, 1_774_742_400, 1_792_880_000, 1_793_500_000]
            {
                let spec = format!("{minute} {hour} * * *");
                questions.push(json!({"spec": spec, "zone": zone, "from": from, "count": COUNT}));
            }
        }
    }
    // A trigger's field that is empty is missing, which is another question.
    questions.retain(|question| question["spec"] != "" && question["zone"] != "");
    let Some(answers) = judge(&questions) else { return };
    assert_eq!(answers.len(), questions.len());
    let (mut taken, mut wrong) = (0, Vec::new());
    for (question, answer) in questions.iter().zip(&answers) {
        let ours = ours(question);
        taken += usize::from(answer["error"].is_null());
        let same = match answer["error"].is_null() {
            true => ours["next"] == answer["next"],
            false => !ours["error"].is_null(),
        };
        if !same {
            wrong.push(format!("{question}\n  KEDA: {answer}\n  here: {ours}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    let refused = questions.len() - taken;
    assert!(taken > 1_500 && refused > 1_500, "a poor corpus: {taken} taken, {refused} refused");
}

#[test]
fn the_judge_is_of_the_version_that_keda_is_built_with() {
    let pinned = |file: &str| {
        let text = std::fs::read_to_string(workspace().join(file)).expect("a go.mod");
        let line = text.lines().find(|line| line.contains("github.com/robfig/cron/v3 "));
        let version =
            line.and_then(|line| line.split_whitespace().find(|word| word.starts_with("v3")));
        version.expect("pinned").to_owned()
    };
    assert_eq!(pinned("tests/judges/cron/go.mod"), pinned("tests/cluster/keda/go.mod"));
}

#[test]
fn the_dialect_is_keda_s_and_no_other() {
    let error = |zone: &str, start: &str| {
        let question = json!({"spec": start, "zone": zone, "from": 1_767_225_600, "count": 1});
        ours(&question)["error"].as_str().map(str::to_owned)
    };
    for good in [
        "0/30 * * * *",
        "0/15 * * * *",
        "CRON_TZ=UTC 0 8 * * *",
        "0 8 ? * mon-FRI",
        "*/7 1-23/2 * * *",
    ] {
        assert_eq!(error("UTC", good), None, "{good}");
    }
    for bad in ["0 18 * * 7", "@daily", "0 0 L * *", "0 0 15W * *", "0 0 * * 1#2", "0 0 0 1 1 *"] {
        assert!(error("UTC", bad).is_some(), "{bad}");
    }
    let report = error("europe/berlin", "0 8 * * *").expect("refused");
    assert!(report.contains("write Europe/Berlin"), "{report}");
}
