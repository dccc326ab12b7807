//! Reads a trigger's metadata: texts by key. Keys that nothing has read are reported.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::units::{format_duration, parse_duration};

/// A fault in the metadata of a trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its key.
    pub key: String,
    /// The fault and its remedy.
    pub message: String,
    /// Whether the trigger can't be used with it; else a warning.
    pub error: bool,
}

/// One trigger's metadata while it is read.
pub(super) struct Metadata<'a> {
    texts: &'a BTreeMap<String, String>,
    known: Vec<&'static str>,
    pub(super) faults: Vec<Fault>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(texts: &'a BTreeMap<String, String>) -> Self {
        Self { texts, known: Vec::new(), faults: Vec::new() }
    }

    pub(super) fn error(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(Fault { key: key.into(), message: message.into(), error: true });
    }

    pub(super) fn warn(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(Fault { key: key.into(), message: message.into(), error: false });
    }

    /// The text at `key`; `None` where there is none or it is empty.
    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        self.known.push(key);
        self.texts.get(key).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    pub(super) fn required(&mut self, key: &'static str, example: &str) -> Option<&'a str> {
        let text = self.text(key);
        if text.is_none() {
            self.error(key, format!("missing; write for example {key}: {example}"));
        }
        text
    }

    pub(super) fn number(&mut self, key: &'static str) -> Option<f64> {
        let text = self.text(key)?;
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
        if number.is_none() {
            self.error(key, format!("`{text}` is not a number"));
        }
        number
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let text = self.text(key)?;
        match text {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => {
                self.error(key, format!("must be true or false, not `{text}`"));
                None
            }
        }
    }

    /// Seconds: a plain number, also with a fraction, or a duration.
    pub(super) fn seconds(&mut self, key: &'static str) -> Option<f64> {
        let text = self.text(key)?;
        if let Ok(number) = text.parse::<f64>()
            && number.is_finite()
        {
            return Some(number);
        }
        match parse_duration(text) {
            Ok(duration) => Some(duration.as_secs_f64()),
            Err(error) => {
                self.error(key, error.to_string());
                None
            }
        }
    }

    /// A duration between two others.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        (least, most): (Duration, Duration),
    ) -> Duration {
        let Some(text) = self.text(key) else { return default };
        match parse_duration(text) {
            Ok(duration) if (least..=most).contains(&duration) => duration,
            Ok(_) => {
                let (least, most) = (format_duration(least), format_duration(most));
                self.error(key, format!("`{text}` is not between {least} and {most}"));
                default
            }
            Err(error) => {
                self.error(key, error.to_string());
                default
            }
        }
    }

    /// `name=value,…`, as KEDA writes headers and parameters.
    pub(super) fn pairs(&mut self, key: &'static str) -> Vec<(String, String)> {
        let Some(text) = self.text(key) else { return Vec::new() };
        let mut pairs = Vec::new();
        for item in text.split(',').filter(|item| !item.trim().is_empty()) {
            match item.split_once('=') {
                Some((name, value)) if !name.trim().is_empty() => {
                    pairs.push((name.trim().to_owned(), value.trim().to_owned()));
                }
                _ => self.error(key, format!("`{item}` is not name=value")),
            }
        }
        pairs
    }

    /// Warns of keys that nothing has read.
    pub(super) fn rest(&mut self) {
        let unknown = self.texts.keys().filter(|key| !self.known.contains(&key.as_str()));
        for key in unknown.cloned().collect::<Vec<_>>() {
            let message = match crate::yaml::closest(&key, &self.known) {
                Some(near) => format!("unknown, and without effect; did you mean {near}?"),
                None => {
                    format!("unknown, and without effect; known here: {}", self.known.join(", "))
                }
            };
            self.warn(&key, message);
        }
    }
}
