//! Ranges of figures. A value outside of its range is a fault of its source, and not a reading.

/// The least and the most that a figure can be, and its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// The unit, as it follows a number.
    pub unit: &'static str,
}

impl Range {
    /// A share of a whole.
    pub const SHARE: Self = Self { least: 0.0, most: 1.0, unit: "" };
    /// The same in percent.
    pub const PERCENT: Self = Self { least: 0.0, most: 100.0, unit: " %" };
    /// Watts of one GPU: several times what the largest draws.
    pub const WATTS: Self = Self { least: 0.0, most: 10_000.0, unit: " W" };
    /// Memory of one GPU: 16 TiB, many times what the largest has.
    pub const MEBIBYTES: Self = Self { least: 0.0, most: 16_777_216.0, unit: " MiB" };
    /// The result of any query. Beyond 2⁵³ a float does not count in ones: such a number is an
    /// overflow, or a counter below zero.
    pub const COUNTABLE: Self =
        Self { least: -9_007_199_254_740_992.0, most: 9_007_199_254_740_992.0, unit: "" };

    /// The value, if it is within the range.
    ///
    /// # Errors
    /// The reason why it is not, as the end of a sentence.
    pub fn check(&self, value: f64) -> Result<f64, String> {
        let Self { least, most, unit } = self;
        if (*least..=*most).contains(&value) {
            return Ok(value);
        }
        if value.is_nan() {
            return Err("is NaN".to_owned());
        }
        Err(format!("is {value}{unit}, and can only be {least} to {most}{unit}"))
    }
}
