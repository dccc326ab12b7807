//! Values in text, read as by the functions of Go that KEDA calls.

/// A number as `encoding/json` reads a `float64`.
pub(super) fn json_number(text: &str) -> Option<f64> {
    let number = serde_json::from_str::<serde_json::Number>(text).ok()?;
    number.as_f64().filter(|number| number.is_finite())
}

/// A number as `encoding/json` reads an `int64`: no fraction and no exponent.
pub(super) fn json_whole(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let zeros = digits.len() > 1 && digits.starts_with('0');
    text.parse().ok().filter(|_| plain && !zeros)
}

/// `strconv.ParseBool`.
pub(super) fn flag(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `strconv.ParseInt(text, 10, 32)`.
pub(super) fn whole_32(text: &str) -> Option<i32> {
    text.parse().ok()
}

/// `strconv.ParseFloat(text, 64)`, but for numbers in base 16.
pub(super) fn float(text: &str) -> Option<f64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    match digits.to_ascii_lowercase().as_str() {
        "inf" | "infinity" | "nan" => text.parse().ok(),
        // A larger number is an error in Go.
        _ => text.parse::<f64>().ok().filter(|number| number.is_finite()),
    }
}

/// Whether it is a duration of 0 or more, or a number of milliseconds.
pub(super) fn timeout(text: &str) -> bool {
    if let Ok(milliseconds) = text.parse::<i64>() {
        // `0` is a duration, too.
        return milliseconds >= 0;
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        let whole = number.bytes().filter(|byte| *byte == b'.').count() <= 1;
        let number = if whole && number.bytes().any(|byte| byte.is_ascii_digit()) {
            number.trim_end_matches('.').parse::<f64>().ok()
        } else {
            None
        };
        let Some(number) = number else { return false };
        let units = [
            ("ns", 1e-9),
            ("us", 1e-6),
            ("µs", 1e-6),
            ("μs", 1e-6),
            ("ms", 1e-3),
            ("s", 1.0),
            ("m", 60.0),
            ("h", 3600.0),
        ];
        let end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let Some((_, length)) = units.iter().find(|(name, _)| *name == unit) else { return false };
        seconds += number * length;
        rest = behind;
    }
    // It can hold 290 years.
    !text.is_empty() && text != "+" && seconds < 9.2e9
}

/// A Kubernetes quantity.
pub(super) fn quantity(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (digits, suffix) = unsigned.split_at(end);
    let plain = digits.bytes().filter(|byte| *byte == b'.').count() <= 1;
    let plain = plain && digits.bytes().any(|byte| byte.is_ascii_digit());
    let number: f64 = digits.trim_end_matches('.').parse().ok().filter(|_| plain)?;
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => f64::powi(1024.0, 2),
        "Gi" => f64::powi(1024.0, 3),
        "Ti" => f64::powi(1024.0, 4),
        "Pi" => f64::powi(1024.0, 5),
        "Ei" => f64::powi(1024.0, 6),
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?;
            10_f64.powi(exponent.parse::<i32>().ok()?)
        }
    };
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    Some(sign * number * factor)
}

/// The thousandths that KEDA makes of a number for the HPA, with fewer than 0 as 0.
pub(super) fn is_above_zero_in_thousandths(number: f64) -> bool {
    number > 0.0 && format!("{number:.3}").bytes().any(|byte| (b'1'..=b'9').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_go_reads_them() {
        for (text, want) in [("5", true), ("0.5", true), ("-1e3", true), ("1e400", false)] {
            assert_eq!(json_number(text).is_some(), want, "{text}");
        }
        for text in ["", "five", ".5", "5.", "+5", "05", "NaN", "Inf", "0x5", "5,0", "null"] {
            assert_eq!(json_number(text), None, "{text}");
            assert_eq!(json_whole(text), None, "{text}");
        }
        for (text, want) in
            [("3", Some(3)), ("-3", Some(-3)), ("0", Some(0)), ("3.0", None), ("3e0", None)]
        {
            assert_eq!(json_whole(text), want, "{text}");
        }
        for (text, want) in [
            ("5s", true),
            ("1h2m3.5s", true),
            ("500", true),
            ("0", true),
            ("1µs", true),
            ("-5s", false),
            ("-5", false),
            ("5 s", false),
            ("5d", false),
            ("", false),
            ("s", false),
            (".s", false),
        ] {
            assert_eq!(timeout(text), want, "{text}");
        }
        for (text, want) in [
            ("100m", Some(0.1)),
            ("0.1", Some(0.1)),
            ("1Ki", Some(1024.0)),
            ("1e3", Some(1000.0)),
            ("-1", Some(-1.0)),
            (".5", Some(0.5)),
            ("", None),
            ("m", None),
            ("1.2.3", None),
            ("1mm", None),
            ("five", None),
        ] {
            assert_eq!(quantity(text), want, "{text}");
        }
        assert!(!is_above_zero_in_thousandths(0.0004) && is_above_zero_in_thousandths(0.0006));
    }
}
