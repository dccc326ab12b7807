//! Tenants, their limits and their keys.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The tenant of requests without a key.
pub const ANONYMOUS: &str = "anonymous";

/// The file with the hashes of the API keys. Without this section keys are not checked, and every
/// request belongs to the tenant `anonymous`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Keys {
    /// A YAML or JSON list of `tenant` and `sha256`, or a folder as Kubernetes mounts a Secret: a
    /// file for each tenant, named like it, with one hash a line. `forebay hash-key` makes them. It
    /// is read again when it changes; a file that can't be used leaves the keys as they were.
    pub file: PathBuf,
    /// Whether a request without a key is refused. If not, it belongs to the tenant `anonymous`. A
    /// request with a wrong key is always refused.
    #[serde(default = "default_required")]
    pub required: bool,
}

fn default_required() -> bool {
    true
}

/// A group of clients with limits of its own, over all gateways together. Metrics name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tenant {
    /// The name that keys refer to; `anonymous` is for requests without a key. Up to 63 letters,
    /// digits, `-`, `_` and `.`, beginning with a letter or digit.
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub name: String,
    /// Held requests of a higher class are released before those of a lower one.
    #[serde(default)]
    pub priority_class: PriorityClass,
    /// Most requests a minute; by default unlimited. A minute's worth may come at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests_per_minute: Option<u32>,
    /// Most tokens a minute, prompts and answers together; by default unlimited. A request is
    /// admitted by an estimate from its prompt's length and its `max_tokens`; unused tokens are given
    /// back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tokens_per_minute: Option<u64>,
    /// Most requests at once: being read, held or in flight; by default unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_concurrent: Option<u32>,
    /// Model names that it may use and list; `*` stands for any text. If empty, all.
    #[serde(default)]
    pub models: Vec<String>,
}

/// Order of held requests. Within a class, the tenant that got the fewest tokens goes first.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum PriorityClass {
    /// Released before all others: people who wait.
    High,
    /// The default.
    #[default]
    Normal,
    /// Released when no other is held: batches.
    Low,
}

impl PriorityClass {
    /// How many classes there are.
    pub const COUNT: usize = Self::Low as usize + 1;
}

impl Tenant {
    /// A tenant of this name without limits.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            priority_class: PriorityClass::default(),
            requests_per_minute: None,
            tokens_per_minute: None,
            max_concurrent: None,
            models: Vec::new(),
        }
    }

    /// Whether it may use the model of this name.
    #[must_use]
    pub fn may_use(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|pattern| matches(pattern, model))
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any text. The leftmost match of each
/// piece is as good as any other, so no backtracking is needed.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let mut pieces = rest.split('*').peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return text.ends_with(piece);
        }
        let Some(at) = text.find(piece) else { return false };
        text = &text[at + piece.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, want) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("*", "any/thing", true),
            ("Qwen/*", "Qwen/Qwen3-8B", true),
            ("Qwen/*", "qwen/x", false),
            ("*-8B", "Qwen3-8B", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("a**a", "aa", true),
        ] {
            assert_eq!(matches(pattern, text), want, "{pattern} {text}");
        }
        let mut tenant = Tenant::named("t");
        assert!(tenant.may_use("anything"));
        tenant.models = vec!["a".into(), "b*".into()];
        assert!(tenant.may_use("a") && tenant.may_use("bc") && !tenant.may_use("c"));
    }

    #[test]
    fn high_goes_before_low() {
        assert!(PriorityClass::High < PriorityClass::Normal);
        assert!(PriorityClass::Normal < PriorityClass::Low);
    }
}
