//! The cases of `cases.yaml`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::helm::Rendered;

/// Values, and what the objects have then.
pub struct Case {
    pub name: String,
    pub values: Value,
    /// By object, then by JSON pointer.
    shows: BTreeMap<String, BTreeMap<String, Value>>,
}

impl Case {
    pub fn all() -> Vec<Self> {
        let cases: Vec<Value> = serde_saphyr::from_str(include_str!("cases.yaml")).expect("cases");
        let read = |case: Value| {
            let shows = serde_json::from_value(case["shows"].clone()).expect("shows");
            let name = case["name"].as_str().expect("a name").to_owned();
            Self { name, values: case["values"].clone(), shows }
        };
        cases.into_iter().map(read).collect()
    }

    /// The values without one, if they have it.
    pub fn without(&self, path: &str) -> Option<Value> {
        let mut values = self.values.clone();
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = parent.split('.').filter(|part| !part.is_empty());
        let pointer: String = parent.map(|part| format!("/{part}")).collect();
        values.pointer_mut(&pointer)?.as_object_mut()?.remove(name)?;
        Some(values)
    }

    pub fn check(&self, rendered: &Rendered) {
        let config = rendered.config();
        for (name, fields) in &self.shows {
            let object = if name == "config" { Some(&config) } else { rendered.objects.get(name) };
            for (pointer, want) in fields {
                let found = object.and_then(|object| object.pointer(pointer));
                let found = found.unwrap_or(&Value::Null);
                assert_eq!(found, want, "{}: {name}: {pointer}: {object:#?}", self.name);
            }
        }
    }
}
