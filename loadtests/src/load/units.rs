//! Values as flags and scenario files write them: lengths in tokens, rates, headers, extra fields.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use serde::de::{DeserializeOwned, Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::replay::trace::generate::normal;

/// The most tokens of one prompt or answer.
const MOST_TOKENS: u32 = 10_000_000;
/// The most requests per second.
const MOST_RATE: f64 = 1e6;
/// The spread of log-normal lengths, as chat traffic has it.
const SPREAD: f64 = 0.8;

/// A length in tokens: `600`, `100-200` (uniform) or `~600` (log-normal around that median).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenLength {
    Fixed(u32),
    Between(u32, u32),
    Around(u32),
}

impl TokenLength {
    /// One length of this distribution, at least 1.
    pub(crate) fn draw(self, random: &mut SmallRng) -> u32 {
        match self {
            Self::Fixed(tokens) => tokens,
            Self::Between(least, most) => random.random_range(least..=most),
            Self::Around(median) => {
                let drawn = f64::from(median) * (SPREAD * normal(random)).exp();
                drawn.clamp(1.0, f64::from(median.saturating_mul(16).min(MOST_TOKENS))) as u32
            }
        }
    }
}

impl FromStr for TokenLength {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let tokens = |text: &str| {
            let tokens = text.trim().parse().ok();
            tokens.filter(|tokens| (1..=MOST_TOKENS).contains(tokens))
        };
        let length = if let Some(median) = text.strip_prefix('~') {
            tokens(median).map(Self::Around)
        } else if let Some((least, most)) = text.split_once('-') {
            let (least, most) = (tokens(least), tokens(most));
            least.zip(most).filter(|(least, most)| least <= most).map(|(l, m)| Self::Between(l, m))
        } else {
            tokens(text).map(Self::Fixed)
        };
        length.ok_or_else(|| {
            format!(
                "`{text}` is not a length in tokens: write `600`, `100-200` (uniform) or `~600` \
                 (log-normal around that median), from 1 to {MOST_TOKENS}"
            )
        })
    }
}

/// Requests per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate(pub(crate) f64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = text.trim().parse().ok().filter(|rate| *rate > 0.0 && *rate <= MOST_RATE);
        rate.map(Self).ok_or_else(|| {
            format!(
                "`{text}` is not a rate: write requests per second, above 0 and up to {MOST_RATE}"
            )
        })
    }
}

/// Requests per second at the beginning and at the end: `1-200`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RateRange {
    pub(crate) from: f64,
    pub(crate) to: f64,
}

impl FromStr for RateRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = |text: &str| {
            let rate = text.trim().parse::<f64>().ok();
            rate.filter(|rate| (0.0..=MOST_RATE).contains(rate))
        };
        let range = text.split_once('-').and_then(|(from, to)| rate(from).zip(rate(to)));
        let range = range.filter(|(from, to)| *from > 0.0 || *to > 0.0);
        range.map(|(from, to)| Self { from, to }).ok_or_else(|| {
            format!(
                "`{text}` is not a ramp: write the first and the last rate in requests per second, \
                 such as `1-200`"
            )
        })
    }
}

/// A header for every request: `name: value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: http::HeaderName,
    pub(crate) value: http::HeaderValue,
}

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let header = text.split_once(':').and_then(|(name, value)| {
            Some(Self { name: name.trim().parse().ok()?, value: value.trim().parse().ok()? })
        });
        header.ok_or_else(|| {
            format!("`{text}` is not a header: write `name: value`, such as `x-priority: high`")
        })
    }
}

/// Further fields of every request's body, as a JSON object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ExtraFields(pub(crate) Map<String, Value>);

impl FromStr for ExtraFields {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map(Self).map_err(|error| {
            format!("not a JSON object ({error}): write one such as `{{\"ignore_eos\": true}}`")
        })
    }
}

/// A duration such as `30s`, for flags.
pub(crate) fn duration_flag(text: &str) -> Result<Duration, String> {
    forebay_config::parse_duration(text).map_err(|error| error.to_string())
}

/// A duration such as `30s`, for files.
pub(crate) fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    duration_flag(&scalar(d)?).map(Some).map_err(D::Error::custom)
}

/// Any scalar that `T` reads from text.
pub(crate) fn parsed<'de, T, D>(d: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err = String>,
    D: Deserializer<'de>,
{
    scalar(d)?.parse().map(Some).map_err(D::Error::custom)
}

/// A list of scalars that `T` reads from text.
pub(crate) fn parsed_list<'de, T, D>(d: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err = String>,
    D: Deserializer<'de>,
{
    let texts = list::<String, D>(d)?;
    texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(D::Error::custom)
}

fn list<'de, T: DeserializeOwned, D: Deserializer<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    Vec::deserialize(d)
}

/// The text of a YAML scalar: `600` and `"600"` are the same.
fn scalar<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    struct Scalar;

    impl Visitor<'_> for Scalar {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number or text")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_u64<E: Error>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
        fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }
        fn visit_f64<E: Error>(self, number: f64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }

    d.deserialize_any(Scalar)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_length_is_fixed_or_drawn_from_its_distribution() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut draw = |text: &str| {
            let length: TokenLength = text.parse().expect(text);
            let mut drawn: Vec<_> = (0..1001).map(|_| length.draw(&mut random)).collect();
            drawn.sort_unstable();
            (drawn[0], drawn[500], drawn[1000])
        };
        assert_eq!(draw("600"), (600, 600, 600));
        let (least, _, most) = draw("100-200");
        assert!((100..110).contains(&least) && (190..=200).contains(&most), "{least} {most}");
        let (least, median, most) = draw("~600");
        assert!((540..660).contains(&median) && least < 200 && most > 2000, "{median}");
    }

    #[test]
    fn a_wrong_value_says_what_to_write() {
        fn error<T: FromStr<Err = String> + fmt::Debug>(text: &str) -> String {
            text.parse::<T>().expect_err(text)
        }
        for (error, want) in [
            (error::<TokenLength>("0"), "`0` is not a length in tokens: write `600`"),
            (error::<TokenLength>("9-3"), "`9-3` is not a length in tokens"),
            (error::<Rate>("-1"), "`-1` is not a rate: write requests per second"),
            (error::<RateRange>("5"), "`5` is not a ramp: write the first and the last rate"),
            (error::<Header>("x"), "`x` is not a header: write `name: value`"),
            (error::<ExtraFields>("[]"), "not a JSON object"),
        ] {
            assert!(error.contains(want), "{error}");
        }
    }
}
