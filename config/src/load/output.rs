//! The configuration's two other forms: its JSON schema, and its effective text.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::Config;

/// The JSON schema of the configuration file, for completion and checks in editors.
///
/// Draft 7, which editors' YAML servers understand best. To use it, write it to a file and begin
/// the configuration with `# yaml-language-server: $schema=forebay.schema.json`.
#[must_use]
pub fn schema() -> Value {
    let generator = SchemaSettings::draft07().for_deserialize().into_generator();
    let mut schema = generator.into_root_schema_for::<Config>().to_value();
    flow(&mut schema);
    schema
}

/// Unwraps descriptions, which are wrapped as in the source; editors wrap them as they need.
fn flow(node: &mut Value) {
    match node {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            fields.values_mut().for_each(flow);
        }
        Value::Array(items) => items.iter_mut().for_each(flow),
        _ => {}
    }
}

/// The effective configuration as YAML, with all defaults. [`crate::parse`] reads it back to the
/// same configuration.
#[must_use]
pub fn print(config: &Config) -> String {
    let options =
        serde_saphyr::ser_options! { compact_list_indent: false, prefer_block_scalars: false };
    let mut text = String::new();
    let written = serde_saphyr::to_fmt_writer_with_options(&mut text, config, options);
    written.expect("our types have text keys and finite depth, and a String takes any text");
    text
}

/// Calls `visit` for each field of `schema`: the names above it, lists as `pools[]`; its own name;
/// and its schema.
pub(crate) fn visit_fields(schema: &Value, visit: &mut dyn FnMut(&[String], &str, &Value)) {
    walk(schema, schema, &mut Vec::new(), visit);
}

fn walk(
    root: &Value,
    node: &Value,
    parents: &mut Vec<String>,
    visit: &mut dyn FnMut(&[String], &str, &Value),
) {
    let node = resolve(root, node);
    for key in ["anyOf", "oneOf", "allOf"] {
        for option in node[key].as_array().into_iter().flatten() {
            walk(root, option, parents, visit);
        }
    }
    for (name, field) in node["properties"].as_object().into_iter().flatten() {
        visit(parents, name, field);
        let items = &resolve(root, field)["items"];
        let (step, inner) =
            if items.is_object() { (format!("{name}[]"), items) } else { (name.clone(), field) };
        parents.push(step);
        walk(root, inner, parents, visit);
        parents.pop();
    }
}

fn resolve<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    let target = node["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
    target.and_then(|path| root.pointer(path)).unwrap_or(node)
}
