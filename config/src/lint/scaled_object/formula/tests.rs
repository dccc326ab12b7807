use super::*;

#[test]
fn formulas_are_judged_as_by_keda() {
    // Each verdict is that of expr-lang 1.17.8 within KEDA's cast.
    for (taken, formulas) in [
        (
            true,
            &[
                "a + b",
                "1",
                "max(a, b)",
                "max(a)",
                "min(a, b, 3)",
                "max([a, b])",
                "a > 1 ? a : b",
                "a ?? b",
                "a ** 2",
                "a ^ 2",
                "-a",
                "!(a > 1) ? 1 : 2",
                "a > 0 and b > 0 ? 1 : 2",
                "1e3 * a",
                ".5 * a",
                "5. * a",
                "1_000 * a",
                "sum([a,b])",
                "mean([a,b])",
                "median(a, b)",
                "ceil(a / b)",
                "float(a) + b",
                "my_q",
                "len([a,b])",
                "a / 0",
                "a == nil ? 1 : 0",
                "/* c */ a",
                "a < b == true ? 1 : 2",
                "nil ?? a",
                "a*-1",
                "a--1",
                "--a",
                "+a",
                "not true ? 1 : 2",
                "mean(a)",
                "a == b ? 1 : 0",
                "2e-3*a",
                "5 % 3",
                "int(a) % 2",
            ][..],
        ),
        (
            false,
            &[
                "c",
                "a + c",
                "a +",
                "max(a, c)",
                "max()",
                "a > 1",
                "true",
                "nil",
                "a ?? c",
                "foo(a)",
                "a % 2",
                "a % b",
                "not a",
                "a and b ? 1 : 2",
                "(a + b",
                "a + b)",
                "a b",
                "my-q",
                "[a,b]",
                "max(a,b) // comment",
                "A",
                "float(c)",
                "float()",
                "float(a, b)",
                "a ? 1 : 2",
                "a > b > 1",
                "a ?: b",
                "a = 1",
                "max(a, true)",
                "round(a, 2)",
                "ceil(true)",
                "sum(a, b)",
                "a or b",
                "true or c",
                "a != b",
                "a + true",
            ],
        ),
    ] {
        for formula in formulas {
            let verdict = judge(formula, &["a", "b", "my_q"]);
            let fits = if taken {
                matches!(verdict, Verdict::Taken(_))
            } else {
                matches!(verdict, Verdict::Refused(_))
            };
            assert!(fits, "{formula}: {verdict:?}");
        }
    }
    for unknown in ["let x = a; x + b", "count([a,b], # > 1)", "a | max(b)", "[a,b][0]", "\"5\""] {
        assert_eq!(judge(unknown, &["a", "b"]), Verdict::Unknown, "{unknown}");
    }
    let deep = format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000));
    assert_eq!(judge(&deep, &["a"]), Verdict::Unknown);
    assert_eq!(judge("a + 1", &["a", "b"]), Verdict::Taken(["a".to_owned()].into()));
}
