//! `/tokenize` and `/detokenize`.

use super::{chat_template, numbers};
use crate::sim::api::fault::Fault;
use crate::sim::api::json::Check;
use crate::sim::shared::Shared;
use crate::sim::text::{self, Prompt, quoted};
use serde_json::{Map, Value};

/// A prompt's or a conversation's tokens.
pub(crate) fn tokenize(shared: &Shared, body: &Map<String, Value>) -> Result<String, Fault> {
    let mut check = Check::new();
    let model = check.text(body, "model");
    let prompt = check.text(body, "prompt");
    let with_strings = check.flag(body, "return_token_strs");
    let text = match (prompt, body.get("messages")) {
        (Some(text), _) => text,
        (None, Some(Value::Array(messages))) => chat_template(messages),
        (None, _) => {
            check.missing(body, "prompt");
            check.missing(body, "messages");
            String::new()
        }
    };
    check.ok()?;
    shared.resolve(model.as_deref())?;
    let ids = Prompt::text(&text).token_ids();
    let strings = if with_strings {
        let each: Vec<String> =
            ids.iter().map(|id| quoted(&Prompt::ids(&[*id]).detokenize())).collect();
        format!("[{}]", each.join(","))
    } else {
        "null".into()
    };
    Ok(format!(
        r#"{{"count":{},"max_model_len":{},"tokens":{},"token_strs":{strings}}}"#,
        ids.len(),
        shared.args.capacity.max_model_len,
        numbers(&ids)
    ))
}

/// Tokens back into text.
pub(crate) fn detokenize(shared: &Shared, body: &Map<String, Value>) -> Result<String, Fault> {
    let mut check = Check::new();
    let model = check.text(body, "model");
    let ids = match body.get("tokens") {
        Some(Value::Array(list)) => list.as_slice(),
        Some(other) => {
            check.wrong("tokens", "list_type", "Input should be a valid list", other);
            &[]
        }
        None => {
            check.missing(body, "tokens");
            &[]
        }
    };
    check.ok()?;
    shared.resolve(model.as_deref())?;
    let ids = super::prompt_of_ids(ids).token_ids();
    let text = text::detokenize(&ids);
    Ok(format!(r#"{{"prompt":{}}}"#, quoted(&text)))
}
