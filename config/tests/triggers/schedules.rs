//! Schedules of `cron` triggers.

use super::warned;

/// Cron triggers, each with its start, end and replicas.
fn schedules(windows: &[(&str, &str, u32)]) -> Vec<String> {
    let triggers = windows.iter().map(|(start, end, count)| {
        format!(
            "  - type: cron\n    metadata: {{timezone: Europe/Amsterdam, start: '{start}', end: '{end}', desiredReplicas: \"{count}\"}}\n"
        )
    });
    warned(&format!("triggers:\n{}", triggers.collect::<String>()))
}

#[test]
fn a_window_that_its_end_does_not_close_gets_an_end_that_does() {
    for (start, end, words) in [
        ("0 22 * * 1-5", "0 6 * * 1-5", "Friday 22:00 stays open until Monday 06:00"),
        ("0 22 * * mon-fri", "0 6 * * mon-fri", "Friday 22:00 stays open until Monday 06:00"),
        ("0 8 * * 1-5", "0 18 * * 1-4", "nothing opens on Friday 08:00"),
        ("30 22 * * 0,3,6", "15 6 * * 0,3", "nothing opens on Wednesday 22:30"),
        ("0 8 * * 1-5", "0 18 * * 1,3,5", "nothing opens on"),
        ("CRON_TZ=UTC 0 22 * * 1-5", "CRON_TZ=UTC 0 6 * * 1-5", "stays open until Monday"),
        ("0 20 * * 1,3", "0 20 * * 2", "nothing opens on Wednesday 20:00"),
    ] {
        let remarks = schedules(&[(start, end, 4)]);
        assert!(remarks.len() == 1 && remarks[0].contains(words), "{start} to {end}: {remarks:#?}");
        // What is advised works: followed, it leaves nothing to say.
        let (_, advised) = remarks[0].split_once("write end: ").expect("advice");
        let advised = advised.trim_matches('"');
        assert_eq!(schedules(&[(start, advised, 4)]), Vec::<String>::new(), "{start} to {advised}");
    }
    // Without advice where it can't be known what was meant.
    let remarks = schedules(&[("0 8,13 * * 1-5", "0 12,18 * * 1-4", 4)]);
    assert!(remarks.len() == 1 && !remarks[0].contains("write end"), "{remarks:#?}");
}

#[test]
fn windows_that_work_get_no_remark() {
    for (start, end) in [
        ("0 22 * * 1-5", "0 6 * * 2-6"),
        ("0 22 * * *", "0 6 * * *"),
        ("30 7 * * 1-5", "0 20 * * 1-5"),
        ("0 0 1 * *", "0 0 8 * *"),
        ("0 0 * * 1", "0 0 * * 6"),
        ("0 22 * * 5", "0 6 * * 1"),
    ] {
        assert_eq!(schedules(&[(start, end, 4)]), Vec::<String>::new(), "{start} to {end}");
    }
    // Another trigger asks for the weekend anyway: for as many at least, and the whole of it.
    let nights = ("0 22 * * 1-5", "0 6 * * 1-5", 4);
    let weekend = ("0 5 * * 6", "0 7 * * 1", 4);
    assert_eq!(schedules(&[nights, weekend]), Vec::<String>::new());
    assert_eq!(schedules(&[nights, ("0 5 * * 6", "0 7 * * 1", 3)]).len(), 1);
    assert_eq!(schedules(&[nights, ("0 5 * * 6", "0 5 * * 0", 4)]).len(), 1);
    let halves = [nights, ("0 5 * * 6", "0 5 * * 0", 4), ("0 4 * * 0", "0 7 * * 1", 5)];
    assert_eq!(schedules(&halves), Vec::<String>::new());
}

#[test]
fn a_window_that_is_always_open_gets_a_remark() {
    let remarks = schedules(&[("0 8 * * *", "00 8 * * *", 4)]);
    assert!(remarks.len() == 1 && remarks[0].contains("always open"), "{remarks:#?}");
}
