use proptest::prelude::*;

use super::*;

const TEXT: &str = r#"# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",device="nvidia0",pod="vllm-0"} 90
DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-b",device="nvidia1",pod="vllm-1"} 70
DCGM_FI_DEV_GPU_UTIL{gpu="2",UUID="GPU-c",device="nvidia2",pod="other"} 2
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-a",pod="vllm-0"} 60000
DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-a",pod="vllm-0"} 20000
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",pod="vllm-0"} 612.5
"#;

fn of(texts: &[&str], figure: GpuFigure) -> SourceResult {
    let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
    mean(&texts, figure, &[], 0)
}

/// Lines of one gauge, from labels and values.
fn lines(gauge: &str, all: &[(&str, &str)]) -> String {
    all.iter().map(|(labels, value)| format!("{gauge}{{{labels}}} {value}\n")).collect()
}

fn util(all: &[(&str, &str)]) -> String {
    lines("DCGM_FI_DEV_GPU_UTIL", all)
}

const A: &str = r#"gpu="0",UUID="GPU-a""#;
const B: &str = r#"gpu="1",UUID="GPU-b""#;

#[test]
fn figures_are_means_over_the_selected_gpus() {
    let pod = |name: &str| vec![("pod".to_owned(), name.to_owned())];
    for (case, figure, labels, want) in [
        ("all", GpuFigure::Utilization, vec![], Some(54.0)),
        ("one pod's", GpuFigure::Utilization, pod("vllm-1"), Some(70.0)),
        ("no such pod", GpuFigure::Utilization, pod("vllm-9"), None),
        ("percent of the memory", GpuFigure::MemoryUsed, vec![], Some(75.0)),
        ("watts", GpuFigure::Power, vec![], Some(612.5)),
        ("not exported", GpuFigure::MemoryCopyUtilization, vec![], None),
    ] {
        assert_eq!(mean(&[TEXT.to_owned()], figure, &labels, 0), Ok((want, None)), "{case}");
    }
    let other = util(&[(r#"gpu="0",UUID="GPU-d""#, "38")]);
    assert_eq!(of(&[TEXT, &other], GpuFigure::Utilization), Ok((Some(50.0), None)));
}

#[test]
fn a_gpu_counts_once_however_many_exporters_report_it() {
    let (one, other) = (util(&[(A, "30"), (B, "50")]), util(&[(A, "31")]));
    assert_eq!(of(&[&one, &other], GpuFigure::Utilization), Ok((Some(40.0), None)));
    let twice = util(&[(A, "30"), (A, "30"), (B, "50")]);
    assert_eq!(of(&[&twice], GpuFigure::Utilization), Ok((Some(40.0), None)));
    let mended = util(&[(A, "808334905")]);
    assert_eq!(
        of(&[&mended, &one], GpuFigure::Utilization),
        Ok((Some(40.0), None)),
        "one is right"
    );
    // Two exporters on two machines, without UUIDs: two GPUs.
    let (one, other) = (util(&[(r#"gpu="0""#, "30")]), util(&[(r#"gpu="0""#, "50")]));
    assert_eq!(of(&[&one, &other], GpuFigure::Utilization), Ok((Some(40.0), None)));
}

#[test]
fn mig_instances_count_in_the_place_of_their_gpu() {
    let instance = |number| format!(r#"{A},GPU_I_PROFILE="1g.10gb",GPU_I_ID="{number}""#);
    let (first, second) = (instance(1), instance(2));
    let used = [(A, "70000"), (&first, "2000"), (&second, "6000"), (B, "40000")];
    let free = [(A, "10000"), (&first, "8000"), (&second, "4000"), (B, "40000")];
    let text = lines("DCGM_FI_DEV_FB_USED", &used) + &lines("DCGM_FI_DEV_FB_FREE", &free);
    let mean = (20.0 + 60.0 + 50.0) / 3.0;
    assert_eq!(of(&[&text], GpuFigure::MemoryUsed), Ok((Some(mean), None)));
}

#[test]
fn an_impossible_gauge_makes_the_gpu_unknown_and_is_named() {
    let unknown = |figure, text: &str| of(&[text], figure).expect_err("not known");
    for (value, why) in [
        ("808334905", "is 808334905 %, and can only be 0 to 100 %"),
        // DCGM's values for "blank" and "not supported".
        ("9223372036854775792", "is 9223372036854775807 %, and can only be 0 to 100 %"),
        ("2147483634", "is 2147483634 %, and can only be 0 to 100 %"),
        ("-1", "is -1 %, and can only be 0 to 100 %"),
        ("0.37", "is 0.37, a share of 1 and not a percentage"),
        ("NaN", "is NaN"),
        ("-Inf", "is -inf %, and can only be 0 to 100 %"),
        ("", "can't be read"),
        ("30 1600000000000", "is 1600000000 s in the future, by its own time"),
    ] {
        let got = unknown(GpuFigure::Utilization, &util(&[(A, value)]));
        if value.len() < 19 {
            assert_eq!(got, format!("DCGM_FI_DEV_GPU_UTIL of GPU-a {why}"), "{value}");
        }
        assert!(got.starts_with("DCGM_FI_DEV_GPU_UTIL of GPU-a "), "{got}");
    }
    let used = lines("DCGM_FI_DEV_FB_USED", &[(A, "8000")]);
    let free = |value| used.clone() + &lines("DCGM_FI_DEV_FB_FREE", &[(A, value)]);
    for (case, text, why) in [
        ("one of two gauges", used.clone(), "DCGM_FI_DEV_FB_FREE of GPU-a is not exported"),
        (
            "an impossible gauge",
            free("-5"),
            "DCGM_FI_DEV_FB_FREE of GPU-a is -5 MiB, and can only be 0 to 16777216 MiB",
        ),
    ] {
        assert_eq!(unknown(GpuFigure::MemoryUsed, &text), why, "{case}");
    }
    let nothing =
        lines("DCGM_FI_DEV_FB_USED", &[(A, "0")]) + &lines("DCGM_FI_DEV_FB_FREE", &[(A, "0")]);
    assert!(of(&[&nothing], GpuFigure::MemoryUsed).is_err(), "a share of nothing");
}

#[test]
fn with_some_gpus_unknown_the_figure_is_a_lower_bound() {
    let text = util(&[(A, "80"), (B, "808334905")]);
    let (value, partial) = of(&[&text], GpuFigure::Utilization).expect("one is known");
    assert_eq!(value, Some(40.0));
    let partial = partial.expect("marked");
    assert!(partial.starts_with("1 of 2 GPUs can't be read (DCGM_FI_DEV_GPU_UTIL of GPU-b is 808"));
    let broken = format!("{}DCGM_FI_DEV_GPU_UTIL{{gpu=\"1\",UU", util(&[(A, "80")]));
    let (value, partial) = of(&[&broken], GpuFigure::Utilization).expect("one is known");
    assert!(value == Some(40.0) && partial.is_some(), "a line that can't be read is a GPU's");
}

proptest! {
    #[test]
    fn any_export_makes_a_figure_within_its_range_or_none(
        values in prop::collection::vec((0..4_u8, 0..3_u8, any::<f64>(), 0..2_usize), 0..12),
        small in 0.0..120.0_f64,
    ) {
        for figure in [GpuFigure::Utilization, GpuFigure::MemoryUsed, GpuFigure::Power] {
            let mut texts = [String::new(), String::new()];
            for (at, (gpu, instance, value, exporter)) in values.iter().enumerate() {
                let value = if at % 2 == 0 { *value } else { small };
                let gauge = figure.gauges()[at % figure.gauges().len()].name;
                let instance = match instance {
                    0 => String::new(),
                    number => format!(",GPU_I_ID=\"{number}\""),
                };
                texts[*exporter] += &format!("{gauge}{{UUID=\"{gpu}\"{instance}}} {value}\n");
            }
            if let Ok((Some(value), _)) = mean(&texts, figure, &[], 0) {
                prop_assert!(figure.range().check(value).is_ok(), "{value} of {texts:?}");
            }
        }
    }

    #[test]
    fn one_impossible_gpu_never_raises_the_figure(
        known in prop::collection::vec(0..=100_u32, 1..8), value: f64,
    ) {
        prop_assume!(!(0.0..=100.0).contains(&value));
        let mut text = String::new();
        for (gpu, value) in known.iter().enumerate() {
            text += &util(&[(&format!("UUID=\"{gpu}\""), &value.to_string())]);
        }
        let (before, _) = of(&[&text], GpuFigure::Utilization).expect("all are known");
        text += &util(&[("UUID=\"odd\"", &value.to_string())]);
        let (after, partial) = of(&[&text], GpuFigure::Utilization).expect("some are known");
        prop_assert!(after <= before && partial.is_some());
    }
}

#[test]
fn the_path_of_an_exporter_is_metrics_by_default() {
    assert_eq!(metrics("http://dcgm:9400"), "http://dcgm:9400/metrics");
    assert_eq!(metrics("http://dcgm:9400/other"), "http://dcgm:9400/other");
}
