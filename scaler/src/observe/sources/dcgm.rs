//! The `/metrics` of DCGM exporters.
//!
//! A GPU counts once, even if several exporters report it; its MIG instances count in its place. A GPU
//! whose gauges are missing or impossible is unknown: the mean is then at least what the others give,
//! and marked as partial.

use std::collections::BTreeMap;

use forebay_config::{Gauge, GpuFigure};
use futures_util::future::try_join_all;

use super::exposition::{Sample, samples, whole};
use super::{Client, SourceResult};

/// The mean of a figure over the GPUs of all `urls`; `None` if there are none.
pub(super) async fn read(
    client: &Client,
    figure: GpuFigure,
    urls: &[String],
    labels: &[(String, String)],
    now_ms: u64,
) -> SourceResult {
    let read = |url: &String| {
        let url = metrics(url);
        async move {
            let text = client.text(&url).await;
            let text = text.and_then(|text| whole(&text).map(str::to_owned));
            text.map_err(|error| format!("{url}: {error}"))
        }
    };
    mean(&try_join_all(urls.iter().map(read)).await?, figure, labels, now_ms)
}

/// An exporter's address, with the default path unless it has one.
fn metrics(url: &str) -> String {
    let path = url.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    if path { url.to_owned() } else { format!("{url}/metrics") }
}

/// A GPU or a MIG instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Device<'a> {
    /// The GPU's UUID and the instance's number; an empty number is the GPU itself.
    Known(&'a str, &'a str),
    /// Without a UUID: the exporter's number and all labels.
    Labelled(usize, Vec<(&'a str, &'a str)>),
    /// Even the labels are unreadable: the numbers of the exporter and of the line.
    Unreadable(usize, usize),
}

impl<'a> Device<'a> {
    fn of(sample: &Sample<'a>, exporter: usize, line: usize) -> Self {
        let uuid = sample.label("UUID").or_else(|| sample.label("uuid"));
        match (uuid.filter(|uuid| !uuid.is_empty()), sample.labels()) {
            (Some(uuid), _) => Self::Known(uuid, sample.label("GPU_I_ID").unwrap_or_default()),
            (None, Some(labels)) => Self::Labelled(exporter, labels.to_vec()),
            (None, None) => Self::Unreadable(exporter, line),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Known(uuid, "") => (*uuid).to_owned(),
            Self::Known(uuid, instance) => format!("{uuid}, instance {instance},"),
            Self::Labelled(_, labels) => {
                let gpu = labels.iter().find(|(label, _)| *label == "gpu");
                gpu.map_or_else(|| "a GPU".to_owned(), |(_, gpu)| format!("GPU {gpu}"))
            }
            Self::Unreadable(..) => "a GPU".to_owned(),
        }
    }
}

/// The gauges found for a device: the first possible value of each, or else the fault.
type Gauges = Vec<Option<Result<f64, String>>>;

fn mean(
    texts: &[String],
    figure: GpuFigure,
    labels: &[(String, String)],
    now_ms: u64,
) -> SourceResult {
    let gauges = figure.gauges();
    let selected = |sample: &Sample<'_>| {
        let has = |(label, value): &(String, String)| sample.label(label) == Some(value);
        sample.labels().is_none() || labels.iter().all(has)
    };
    let mut devices = BTreeMap::<Device<'_>, Gauges>::new();
    for (at, gauge) in gauges.iter().enumerate() {
        for (exporter, text) in texts.iter().enumerate() {
            let all = samples(text, gauge.name, now_ms).enumerate();
            for (line, sample) in all.filter(|(_, sample)| selected(sample)) {
                let device = devices.entry(Device::of(&sample, exporter, line)).or_default();
                device.resize(gauges.len(), None);
                let value = sample.value.and_then(|value| gauge.check(value));
                if !matches!(&device[at], Some(Ok(_))) && (device[at].is_none() || value.is_ok()) {
                    device[at] = Some(value);
                }
            }
        }
    }
    let instances: Vec<_> = devices
        .keys()
        .filter_map(|device| match device {
            Device::Known(uuid, instance) if !instance.is_empty() => Some(*uuid),
            _ => None,
        })
        .collect();
    devices
        .retain(|device, _| !matches!(device, Device::Known(uuid, "") if instances.contains(uuid)));

    let figures: Vec<_> = devices
        .iter()
        .map(|(device, found)| {
            one(figure, gauges, found)
                .map_err(|(gauge, why)| format!("{gauge} of {} {why}", device.name()))
        })
        .collect();
    let known = figures.iter().flatten().sum::<f64>();
    let faults: Vec<_> = figures.iter().filter_map(|figure| figure.as_ref().err()).collect();
    match (figures.len(), faults.first()) {
        (0, _) => Ok((None, None)),
        (count, None) => Ok((Some(known / count as f64), None)),
        (count, Some(first)) if faults.len() == count => Err((*first).clone()),
        (count, Some(first)) => {
            let partial = format!("{} of {count} GPUs can't be read ({first})", faults.len());
            Ok((Some(known / count as f64), Some(partial)))
        }
    }
}

/// A device's figure, or the faulty gauge and its fault.
fn one(figure: GpuFigure, gauges: &[Gauge], found: &Gauges) -> Result<f64, (&'static str, String)> {
    let mut values = Vec::with_capacity(gauges.len());
    for (gauge, value) in gauges.iter().zip(found) {
        let value = value.clone().unwrap_or_else(|| Err("is not exported".to_owned()));
        values.push(value.map_err(|why| (gauge.name, why))?);
    }
    let name = gauges.first().map_or("", |gauge| gauge.name);
    figure.of(&values).ok_or_else(|| (name, "is a share of nothing".to_owned()))
}

#[cfg(test)]
mod tests;
