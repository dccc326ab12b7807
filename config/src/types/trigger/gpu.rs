//! Figures of GPUs from the DCGM exporter: the gauges that each is made of, and their ranges.

use super::range::Range;

/// A figure of the DCGM exporter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuFigure {
    /// Share of time in which a kernel ran, in percent.
    Utilization,
    /// Share of time in which memory was copied, in percent.
    MemoryCopyUtilization,
    /// Share of the memory in use, in percent.
    MemoryUsed,
    /// Power drawn, in watts.
    Power,
}

/// One of the exporter's gauges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gauge {
    /// The exporter's name for it.
    pub name: &'static str,
    /// Its range.
    pub range: Range,
    /// It is a whole number: a value between 0 and 1 has another unit.
    pub whole: bool,
}

impl Gauge {
    const fn new(name: &'static str, range: Range, whole: bool) -> Self {
        Self { name, range, whole }
    }

    /// The value, if it is within the range.
    ///
    /// # Errors
    /// The reason why it is not, as the end of a sentence.
    pub fn check(&self, value: f64) -> Result<f64, String> {
        if self.whole && value > 0.0 && value < 1.0 {
            return Err(format!("is {value}, a share of 1 and not a percentage"));
        }
        self.range.check(value)
    }
}

const UTILIZATION: &[Gauge] = &[Gauge::new("DCGM_FI_DEV_GPU_UTIL", Range::PERCENT, true)];
const MEMORY_COPY: &[Gauge] = &[Gauge::new("DCGM_FI_DEV_MEM_COPY_UTIL", Range::PERCENT, true)];
const MEMORY: &[Gauge] = &[
    Gauge::new("DCGM_FI_DEV_FB_USED", Range::MEBIBYTES, false),
    Gauge::new("DCGM_FI_DEV_FB_FREE", Range::MEBIBYTES, false),
];
const POWER: &[Gauge] = &[Gauge::new("DCGM_FI_DEV_POWER_USAGE", Range::WATTS, false)];

impl GpuFigure {
    /// The gauges that it is made of. Without all of them, a GPU's figure is unknown.
    #[must_use]
    pub fn gauges(self) -> &'static [Gauge] {
        match self {
            Self::Utilization => UTILIZATION,
            Self::MemoryCopyUtilization => MEMORY_COPY,
            Self::MemoryUsed => MEMORY,
            Self::Power => POWER,
        }
    }

    /// Its range.
    #[must_use]
    pub fn range(self) -> Range {
        match self {
            Self::Power => Range::WATTS,
            _ => Range::PERCENT,
        }
    }

    /// A GPU's figure from its gauges, in their order. `None` for a GPU without memory.
    #[must_use]
    pub fn of(self, gauges: &[f64]) -> Option<f64> {
        match (self, gauges) {
            (Self::MemoryUsed, [used, free]) if used + free > 0.0 => {
                Some(100.0 * used / (used + free))
            }
            (Self::MemoryUsed, _) => None,
            (_, gauges) => gauges.first().copied(),
        }
    }

    /// PromQL for the mean over the GPUs that `selector` selects, by the same rules as for exporters
    /// that are read directly: a GPU counts once, however many exporters report it, and its MIG
    /// instances count in its place.
    ///
    /// A fault makes the result leave the figure's range, so that it is reported: a gauge outside of
    /// its range is the result itself, and GPUs that lack a gauge make it their number below zero.
    pub(super) fn query(self, selector: &str) -> String {
        let selector = selector.trim_matches([',', ' ']);
        let series = |name: &str, instance: &str| {
            let matchers: Vec<_> =
                [selector, instance].into_iter().filter(|part| !part.is_empty()).collect();
            match matchers.is_empty() {
                true => name.to_owned(),
                false => format!("{name}{{{}}}", matchers.join(",")),
            }
        };
        let each = |gauge: &Gauge| {
            let [all, gpus, instances] = ["", r#"GPU_I_ID="""#, r#"GPU_I_ID!="""#]
                .map(|instance| series(gauge.name, instance));
            format!("max by (UUID, GPU_I_ID) ({all} unless ({gpus} and on (UUID) {instances}))")
        };
        let impossible = |gauge: &Gauge| {
            let (all, Range { least, most, .. }) = (series(gauge.name, ""), gauge.range);
            format!("{all} < {least} or {all} > {most}")
        };
        let gauges = self.gauges();
        let faults = gauges.iter().map(impossible).collect::<Vec<_>>().join(" or ");
        match gauges {
            [used, free] => {
                let (used, free) = (each(used), each(free));
                format!(
                    "max({faults}) or -count({used} unless {free}) \
                     or avg(100 * {used} / ({used} + {free}))"
                )
            }
            gauges => {
                let all = gauges.first().map(each).unwrap_or_default();
                format!("max({faults}) or avg({all})")
            }
        }
    }

    pub(super) fn is_percentage(self) -> bool {
        self != Self::Power
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_within_its_range_and_in_its_unit() {
        let [gauge] = UTILIZATION else { panic!("one") };
        for (value, want) in [
            (0.0, Ok(0.0)),
            (100.0, Ok(100.0)),
            (808_334_905.0, Err("is 808334905 %, and can only be 0 to 100 %")),
            (-1.0, Err("is -1 %, and can only be 0 to 100 %")),
            (0.37, Err("is 0.37, a share of 1 and not a percentage")),
            (f64::INFINITY, Err("is inf %, and can only be 0 to 100 %")),
            (f64::NAN, Err("is NaN")),
        ] {
            assert_eq!(gauge.check(value), want.map_err(str::to_owned), "{value}");
        }
    }

    #[test]
    fn the_query_selects_in_each_of_its_parts() {
        let plain = GpuFigure::Utilization.query("");
        assert_eq!(
            plain,
            "max(DCGM_FI_DEV_GPU_UTIL < 0 or DCGM_FI_DEV_GPU_UTIL > 100) \
             or avg(max by (UUID, GPU_I_ID) (DCGM_FI_DEV_GPU_UTIL unless \
             (DCGM_FI_DEV_GPU_UTIL{GPU_I_ID=\"\"} and on (UUID) DCGM_FI_DEV_GPU_UTIL{GPU_I_ID!=\"\"})))"
        );
        let selected = GpuFigure::MemoryUsed.query("pod=\"a\"");
        let all = selected.matches("DCGM_FI_DEV_FB_").count();
        assert_eq!(selected.matches("{pod=\"a\"").count(), all, "{selected}");
    }
}
