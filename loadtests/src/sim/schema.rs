//! JSON that fits a JSON schema, as a model with structured outputs writes it.
//!
//! It follows types, properties, items, alternatives, references, enumerations, bounds, lengths and the
//! common formats, and not `pattern`, `not` and `if`. Pure: the same schema and seed give the same JSON.

use crate::mix::mix;
use crate::sim::text::word;
use serde_json::{Map, Value};

/// Values of one document, optional ones included. Clients choose schemas, which may contain themselves.
const MOST_VALUES: usize = 2000;
/// Optional properties and items are left out below this depth, or when half of the values are made.
const DEPTH: usize = 6;
/// Nothing is below this depth, not even what must be there.
const MOST_DEPTH: usize = 60;
/// References that lead to each other without a value in between.
const MOST_HOPS: usize = 32;

/// A value that fits `schema`.
pub(crate) fn fitting(schema: &Value, seed: u64) -> Value {
    Maker { root: schema, left: MOST_VALUES }.value(schema, 0, seed)
}

struct Maker<'a> {
    root: &'a Value,
    /// Values that may still be made.
    left: usize,
}

impl Maker<'_> {
    fn value(&mut self, schema: &Value, depth: usize, seed: u64) -> Value {
        if self.left == 0 {
            return Value::Null;
        }
        self.left -= 1;
        if depth > MOST_DEPTH {
            return Value::Null;
        }
        let Some(schema) = self.resolved(schema, depth, seed) else { return Value::Null };
        if let Some(value) = schema.get("const") {
            return value.clone();
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array)
            && let Some(value) = picked(values, seed)
        {
            return value.clone();
        }
        match kind(&schema) {
            "object" => self.object(&schema, depth, seed),
            "array" => self.array(&schema, depth, seed),
            "integer" => number(&schema, true, seed),
            "number" => number(&schema, false, seed),
            "boolean" => Value::Bool(seed & 1 == 1),
            "null" => Value::Null,
            _ => Value::String(string(&schema, seed)),
        }
    }

    /// Whether only what must be there is made.
    fn brief(&self, depth: usize) -> bool {
        depth >= DEPTH || self.left < MOST_VALUES / 2
    }

    /// The schema itself, with references followed, one alternative chosen and `allOf` merged. `None`
    /// for one that nothing fits.
    fn resolved(&self, schema: &Value, depth: usize, seed: u64) -> Option<Map<String, Value>> {
        let mut merged = schema.as_object().cloned();
        if schema == &Value::Bool(true) {
            merged = Some(Map::new());
        }
        let mut merged = merged?;
        for hop in 0..MOST_HOPS {
            let seed = mix(seed, hop as u64);
            if let Some(Value::String(path)) = merged.remove("$ref") {
                let target = path.strip_prefix('#').and_then(|path| self.root.pointer(path))?;
                merge(&mut merged, target.as_object()?);
            } else if let Some(Value::Array(all)) = merged.remove("allOf") {
                for one in &all {
                    merge(&mut merged, one.as_object()?);
                }
            } else if let Some(Value::Array(some)) =
                merged.remove("anyOf").or_else(|| merged.remove("oneOf"))
            {
                let null = some.iter().find(|one| one.get("type").is_some_and(|t| t == "null"));
                let chosen = null.filter(|_| self.brief(depth)).or_else(|| picked(&some, seed))?;
                merge(&mut merged, chosen.as_object()?);
            } else {
                return Some(merged);
            }
        }
        None
    }

    fn object(&mut self, schema: &Map<String, Value>, depth: usize, seed: u64) -> Value {
        let mut made = Map::new();
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        for (at, (name, property)) in properties.iter().enumerate() {
            if required.contains(&name.as_str()) || !self.brief(depth) {
                made.insert(name.clone(), self.value(property, depth + 1, mix(seed, at as u64)));
            }
        }
        // Free entries: as many as must be, and one where nothing else is there.
        let free = schema.get("additionalProperties").unwrap_or(&Value::Bool(true));
        let least = count(schema, "minProperties").unwrap_or(0);
        let wanted = least.max(usize::from(properties.is_empty() && !self.brief(depth)));
        let mut at = 0;
        while *free != Value::Bool(false) && made.len() < wanted && self.left > 0 {
            let name = word(mix(seed, at as u64));
            let name =
                if made.contains_key(name) { format!("{name}{at}") } else { name.to_owned() };
            made.insert(name, self.value(free, depth + 1, mix(seed, at as u64)));
            at += 1;
        }
        Value::Object(made)
    }

    fn array(&mut self, schema: &Map<String, Value>, depth: usize, seed: u64) -> Value {
        let least = count(schema, "minItems").unwrap_or(0);
        let most = count(schema, "maxItems").unwrap_or(usize::MAX);
        let fixed = schema.get("prefixItems").and_then(Value::as_array);
        let fixed = fixed.map(Vec::as_slice).unwrap_or_default();
        let free = schema.get("items").unwrap_or(&Value::Bool(true));
        let usual = if self.brief(depth) { 0 } else { 1 + (seed % 3) as usize };
        let wanted = if fixed.is_empty() { usual } else { fixed.len() }.max(least).min(most);
        let distinct = schema.get("uniqueItems") == Some(&Value::Bool(true));
        let mut made: Vec<Value> = Vec::new();
        for at in 0..wanted.min(MOST_VALUES) {
            let schema = fixed.get(at).unwrap_or(free);
            if *schema == Value::Bool(false) || self.left == 0 {
                break;
            }
            // An enumeration may have fewer values than are wanted.
            for attempt in 0..64 {
                let value = self.value(schema, depth + 1, mix(seed, (at << 6 | attempt) as u64));
                if !distinct || !made.contains(&value) {
                    made.push(value);
                    break;
                }
            }
        }
        Value::Array(made)
    }
}

/// Adds what `more` says to `schema`. Properties and required names are united, others replaced.
fn merge(schema: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (key, value) in more {
        match (schema.get_mut(key), value) {
            (Some(Value::Object(into)), Value::Object(from)) if key == "properties" => {
                into.extend(from.clone());
            }
            (Some(Value::Array(into)), Value::Array(from)) if key == "required" => {
                into.extend(from.iter().cloned());
            }
            _ => {
                schema.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The type that is made: the first one that is not `null`, or the one that the keywords are for.
fn kind(schema: &Map<String, Value>) -> &str {
    match schema.get("type") {
        Some(Value::String(kind)) => kind,
        Some(Value::Array(kinds)) => {
            let kinds = || kinds.iter().filter_map(Value::as_str);
            kinds().find(|kind| *kind != "null").or_else(|| kinds().next()).unwrap_or("null")
        }
        _ => {
            let has = |words: &[&str]| words.iter().any(|word| schema.contains_key(*word));
            if has(&["properties", "required", "additionalProperties", "minProperties"]) {
                "object"
            } else if has(&["items", "prefixItems", "minItems", "maxItems"]) {
                "array"
            } else if has(&["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]) {
                "number"
            } else {
                "string"
            }
        }
    }
}

fn picked(values: &[Value], seed: u64) -> Option<&Value> {
    let at = (seed >> 8).checked_rem(values.len() as u64)?;
    values.get(at as usize)
}

fn count(schema: &Map<String, Value>, key: &str) -> Option<usize> {
    schema.get(key).and_then(Value::as_u64).map(|count| count.min(MOST_VALUES as u64) as usize)
}

/// A number within its bounds, 1 to 100 where there are none.
fn number(schema: &Map<String, Value>, whole: bool, seed: u64) -> Value {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let step = bound("multipleOf").filter(|step| *step > 0.0);
    let grain = step.unwrap_or(if whole { 1.0 } else { 0.5 });
    let least = bound("minimum").or_else(|| Some(bound("exclusiveMinimum")? + grain));
    let most = bound("maximum").or_else(|| Some(bound("exclusiveMaximum")? - grain));
    let (least, most) = match (least, most) {
        (Some(least), Some(most)) => (least, most),
        (Some(least), None) => (least, least + 99.0 * grain),
        (None, Some(most)) => ((most - 99.0 * grain).max(1.0).min(most), most),
        (None, None) => (grain, 100.0 * grain),
    };
    // Multiples of the grain, where one is within the bounds.
    let (first, last) = ((least / grain).ceil(), (most / grain).floor());
    let value = match last - first {
        steps if steps >= 0.0 => (first + (seed % (steps.min(1e6) as u64 + 1)) as f64) * grain,
        _ if whole => least.ceil(),
        _ => (least + most) / 2.0,
    };
    if whole { Value::from(value as i64) } else { Value::from(value) }
}

/// A few words, or a text in the wanted format.
fn string(schema: &Map<String, Value>, seed: u64) -> String {
    let day = 1 + seed % 28;
    match schema.get("format").and_then(Value::as_str) {
        Some("date") => return format!("2026-11-{day:02}"),
        Some("time") => return format!("09:{day:02}:00Z"),
        Some("date-time") => return format!("2026-11-{day:02}T09:{day:02}:00Z"),
        Some("duration") => return format!("P{day}D"),
        Some("email") => return format!("{}@example.com", word(seed)),
        Some("hostname") => return format!("{}.example.com", word(seed)),
        Some("uri" | "url" | "uri-reference") => {
            return format!("https://example.com/{}", word(seed));
        }
        Some("ipv4") => return format!("192.0.2.{day}"),
        Some("ipv6") => return format!("2001:db8::{day:x}"),
        Some("uuid") => {
            let (low, high) = (mix(seed, 1), mix(seed, 2));
            return format!(
                "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
                low as u32,
                low >> 48,
                low >> 32 & 0xfff,
                high >> 52,
                high & 0xffff_ffff_ffff
            );
        }
        _ => {}
    }
    let least = count(schema, "minLength").unwrap_or(0);
    let most = count(schema, "maxLength").unwrap_or(usize::MAX);
    let mut text = word(seed).to_owned();
    for at in 0..seed % 3 {
        text = format!("{text} {}", word(mix(seed, at)));
    }
    let mut at = 3;
    while text.len() < least {
        text = format!("{text} {}", word(mix(seed, at)));
        at += 1;
    }
    // The words are ASCII, so bytes are characters. A cut may leave a space at the end.
    if text.len() > most {
        text.truncate(most);
        if text.ends_with(' ') {
            text.replace_range(most - 1.., "s");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Values for many seeds.
    fn made(schema: &Value) -> Vec<Value> {
        (0..200).map(|seed| fitting(schema, mix(seed, 7))).collect()
    }

    #[test]
    fn each_keyword_is_followed() {
        type Fits = fn(&Value) -> bool;
        let cases: [(Value, Fits); 16] = [
            (json!({"type": "boolean"}), |v| v.is_boolean()),
            (json!({"type": "null"}), Value::is_null),
            (json!({"const": [1, "a"]}), |v| *v == json!([1, "a"])),
            (json!({"type": "string", "enum": ["Paris", "Rome"]}), |v| {
                ["Paris", "Rome"].contains(&v.as_str().unwrap_or_default())
            }),
            (json!({"type": "integer", "minimum": 1, "maximum": 9}), |v| {
                (1..=9).contains(&v.as_i64().unwrap_or(0))
            }),
            (json!({"type": "integer", "exclusiveMinimum": -3, "maximum": -2}), |v| {
                *v == json!(-2)
            }),
            (json!({"type": "integer", "multipleOf": 7, "minimum": 8}), |v| {
                v.as_i64().is_some_and(|n| n % 7 == 0 && n >= 8)
            }),
            (json!({"type": "number", "minimum": 0.1, "maximum": 0.2}), |v| {
                v.as_f64().is_some_and(|n| (0.1..=0.2).contains(&n))
            }),
            (json!({"type": "string", "minLength": 40, "maxLength": 41}), |v| {
                v.as_str().is_some_and(|text| (40..=41).contains(&text.len()))
            }),
            (json!({"type": "string", "format": "uuid"}), |v| {
                let parts: Vec<usize> =
                    v.as_str().unwrap_or_default().split('-').map(str::len).collect();
                parts == [8, 4, 4, 4, 12]
            }),
            (json!({"type": ["null", "string"], "maxLength": 3}), |v| {
                v.as_str().is_some_and(|text| text.len() <= 3)
            }),
            (
                json!({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": true, "minItems": 2}),
                |v| *v == json!([1, 2]) || *v == json!([2, 1]),
            ),
            (json!({"prefixItems": [{"const": 1}, {"const": 2}], "items": false}), |v| {
                *v == json!([1, 2])
            }),
            (json!({"properties": {"a": {"const": 1}}, "required": ["a"]}), |v| {
                *v == json!({"a": 1})
            }),
            (json!({"type": "object", "additionalProperties": {"type": "integer"}}), |v| {
                v.as_object().is_some_and(|o| o.len() == 1 && o.values().all(Value::is_i64))
            }),
            (json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}), |v| {
                v.is_i64() || v.is_null()
            }),
        ];
        for (schema, fits) in cases {
            for value in made(&schema) {
                assert!(fits(&value), "{value} for {schema}");
            }
        }
        // All alternatives and optional properties occur.
        let two = json!({"oneOf": [{"const": 1}, {"const": 2}]});
        assert!([json!(1), json!(2)].iter().all(|one| made(&two).contains(one)));
    }

    #[test]
    fn references_and_all_of_are_merged() {
        let schema = json!({
            "$defs": {
                "City": {"type": "object", "properties": {"name": {"const": "Rome"}}, "required": ["name"]},
            },
            "type": "object",
            "properties": {"to": {"allOf": [{"$ref": "#/$defs/City"}], "description": "d"}},
            "required": ["to"],
        });
        for value in made(&schema) {
            assert_eq!(value, json!({"to": {"name": "Rome"}}));
        }
    }

    #[test]
    fn a_schema_within_itself_ends() {
        let tree = json!({
            "$defs": {"Node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                },
                "required": ["name", "children", "next"],
            }},
            "$ref": "#/$defs/Node",
        });
        for value in made(&tree) {
            let mut nodes = vec![&value];
            while let Some(node) = nodes.pop() {
                assert!(node["name"].is_string() && node["children"].is_array(), "{node}");
                nodes.extend(node["children"].as_array().into_iter().flatten());
                nodes.extend(Some(&node["next"]).filter(|next| !next.is_null()));
            }
        }
        for endless in [
            json!({"$ref": "#"}),
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
            json!({"type": "array", "minItems": 1_000_000_000, "items": {"$ref": "#"}}),
            json!({"type": "object", "minProperties": 1_000_000_000}),
        ] {
            assert!(fitting(&endless, 3).to_string().len() < 200_000, "{endless}");
        }
    }

    #[test]
    fn nothing_fits_what_allows_nothing() {
        for none in [json!(false), json!({"$ref": "#/nowhere"}), json!(3)] {
            assert_eq!(fitting(&none, 1), Value::Null);
        }
    }
}
