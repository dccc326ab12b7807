//! Text → configuration: syntax, then types, then the rules that span fields.

pub(crate) mod output;

use std::path::Path as FilePath;

use serde_json::Value;

use crate::yaml::problem::{Place, Problem, Problems};
use crate::yaml::{self, Tree};
use crate::{Config, check};

/// Reads and checks the file at `path`.
///
/// # Errors
/// It can't be read, or all its problems.
pub fn load(path: impl AsRef<FilePath>) -> Result<Config, Problems> {
    let path = path.as_ref();
    let source = path.display().to_string();
    let unreadable = |message: String| {
        let source = source.clone();
        Problems::sorted(vec![Problem { source, place: None, field: String::new(), message }])
    };
    let bytes = std::fs::read(path);
    let bytes = bytes.map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| unreadable("is not text in UTF-8".to_owned()))?;
    parse(&text, &source)
}

/// Reads and checks `text`; problems name it as `source_name`.
///
/// # Errors
/// All its problems: of the syntax, or else of the fields, or else of the rules between them.
pub fn parse(text: &str, source_name: &str) -> Result<Config, Problems> {
    inspect(text, source_name).map(|(config, _)| config)
}

/// Like [`parse`], with the warnings and their lines.
///
/// # Errors
/// Like [`parse`].
pub fn inspect(text: &str, source_name: &str) -> Result<(Config, Problems), Problems> {
    let problem = |place: Place, field: String, message: String| Problem {
        source: source_name.to_owned(),
        place: Some(place),
        field,
        message,
    };
    // A byte order mark does not belong to the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tree = Tree::parse(text).map_err(|broken| {
        let broken = broken.into_iter();
        Problems::sorted(
            broken.map(|(place, message)| problem(place, String::new(), message)).collect(),
        )
    })?;
    let homes = homes();
    let elsewhere = |name: &str| {
        let mut at = homes.iter().filter(|(field, _)| field == name).map(|(_, home)| home);
        // If several places have such a field, a hint would be a guess.
        at.next().filter(|_| at.next().is_none()).cloned()
    };
    let config: Config = yaml::read(&tree, &elsewhere).map_err(|faults| {
        let faults = faults
            .into_iter()
            .map(|fault| problem(tree.place(&fault.path), fault.path.to_string(), fault.message));
        Problems::sorted(faults.collect())
    })?;
    let placed = |findings: Vec<check::Finding>| {
        let placed = findings.into_iter().map(|finding| {
            problem(tree.place(&finding.path), finding.path.to_string(), finding.message)
        });
        Problems::sorted(placed.collect())
    };
    let findings = check::check(&config);
    if findings.errors.is_empty() {
        Ok((config, placed(findings.warnings)))
    } else {
        Err(placed(findings.errors))
    }
}

/// Each field and where it belongs, as `pools[].scaling`.
fn homes() -> Vec<(String, String)> {
    let schema = output::schema();
    let mut homes = Vec::new();
    output::visit_fields(&schema, &mut |parents: &[String], name: &str, _: &Value| {
        let home = if parents.is_empty() { "the top level".to_owned() } else { parents.join(".") };
        homes.push((name.to_owned(), home));
    });
    homes
}
