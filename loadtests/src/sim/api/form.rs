//! The form of a reply: words, JSON by a schema, one of some texts, or the call of a tool.
//!
//! The simulated model calls a tool if it must. If it may, it calls one for each message of the user's, and
//! answers in words once the conversation has a call. The tool is the one that the message names, or else the
//! first; if another call must follow, the first that was not called.

use crate::mix::mix;
use crate::sim::api::fault::Fault;
use crate::sim::args::ReplyArgs;
use crate::sim::schema::fitting;
use crate::sim::text::{LengthRule, Script};
use crate::sim::wall;
use serde_json::{Map, Value, json};

/// The form of all replies to a request.
#[derive(Debug, Clone, Default)]
pub(crate) enum ReplyForm {
    /// Words without a meaning.
    #[default]
    Words,
    /// JSON that fits this schema.
    Json(Value),
    /// One of these texts.
    Choice(Vec<String>),
    /// A call of this tool.
    Call(Tool),
}

/// A tool that is called.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    name: String,
    parameters: Value,
    cause: Cause,
}

/// Why a tool is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The model chose so.
    Model,
    /// The request wants a call, and leaves the tool to the model.
    Required,
    /// The request names the tool.
    Named,
}

/// A call, with an id for each reply.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) ids: Vec<String>,
    cause: Cause,
}

impl Call {
    /// `finish_reason` of a whole call.
    pub(crate) fn finish_reason(&self) -> &'static str {
        if self.cause == Cause::Named { "stop" } else { "tool_calls" }
    }

    /// `content` of a plain chat beside a whole call, as JSON.
    pub(crate) fn content(&self) -> &'static str {
        if self.cause == Cause::Model { "null" } else { r#""""# }
    }

    /// The text of a call that was cut short: as the model wrote it, since the parser takes whole calls.
    pub(crate) fn unparsed(&self, arguments: &str) -> String {
        format!("<tool_call>\n{{\"name\": \"{}\", \"arguments\": {arguments}", self.name)
    }
}

impl ReplyForm {
    /// `response_format` of chats and completions, and vLLM's own `structured_outputs`.
    pub(crate) fn of(body: &Map<String, Value>) -> Self {
        let own = body.get("structured_outputs");
        if let Some(schema) = own.and_then(|own| own.get("json")) {
            return match schema {
                Value::String(text) => serde_json::from_str(text).map_or(Self::Words, Self::Json),
                schema => Self::Json(schema.clone()),
            };
        }
        if let Some(Value::Array(texts)) = own.and_then(|own| own.get("choice")) {
            return Self::Choice(
                texts.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            );
        }
        let format = body.get("response_format");
        let schema = format.and_then(|format| format.get("json_schema")?.get("schema"));
        Self::formatted(format, schema)
    }

    /// A format with its type, as all APIs have it, and its schema, if it has one.
    pub(crate) fn formatted(format: Option<&Value>, schema: Option<&Value>) -> Self {
        match (format.and_then(|format| format.get("type")).and_then(Value::as_str), schema) {
            (Some("json_schema"), Some(schema)) => Self::Json(schema.clone()),
            (Some("json_object"), _) => Self::Json(json!({"type": "object"})),
            _ => Self::Words,
        }
    }

    /// The replies' texts as tokens, and the call that they make up.
    pub(crate) fn scripts(
        &self,
        keys: impl Iterator<Item = u64>,
        rule: &LengthRule<'_>,
    ) -> Vec<Script> {
        let script = |key| match self {
            Self::Words => Script::new(key, rule),
            Self::Json(schema) => Script::written(key, 0, &fitting(schema, key).to_string(), rule),
            Self::Choice(texts) => {
                let at = mix(key, 1).checked_rem(texts.len() as u64).unwrap_or(0);
                let text = texts.get(at as usize).map(String::as_str).unwrap_or_default();
                Script::written(key, 0, text, rule)
            }
            // The first token stands for those that introduce the call and name the tool.
            Self::Call(tool) => {
                Script::written(key, 1, &fitting(&tool.parameters, key).to_string(), rule)
            }
        };
        keys.map(script).collect()
    }

    /// The call, for this number of replies.
    pub(crate) fn call(&self, replies: usize) -> Option<Call> {
        let Self::Call(tool) = self else { return None };
        let ids = (0..replies).map(|_| format!("chatcmpl-tool-{}", wall::id16())).collect();
        Some(Call { name: tool.name.clone(), ids, cause: tool.cause })
    }
}

/// The tools of a request, in no API's own form.
#[derive(Debug, Default)]
pub(crate) struct Offer {
    /// Names and the schemas of their parameters.
    pub(crate) tools: Vec<(String, Value)>,
    pub(crate) choice: ToolChoice,
}

/// Whether a tool is called.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    Never,
    /// The model decides.
    #[default]
    Auto,
    Required,
    Named(String),
}

/// A conversation, as far as the next call depends on it.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    /// The last message of the user's.
    message: String,
    /// Tools that were called since.
    called: Vec<String>,
}

impl Talk {
    pub(crate) fn user(&mut self, text: String) {
        *self = Self { message: text, called: Vec::new() };
    }

    pub(crate) fn called(&mut self, tool: Option<&Value>) {
        self.called.extend(tool.and_then(Value::as_str).map(str::to_owned));
    }
}

impl Offer {
    /// The tool that is chosen and not offered.
    pub(crate) fn unknown(&self) -> Option<&str> {
        match &self.choice {
            ToolChoice::Named(wanted) if self.tools.iter().all(|(name, _)| name != wanted) => {
                Some(wanted)
            }
            _ => None,
        }
    }

    /// Refuses a choice for which this server has no parser.
    pub(crate) fn check(&self, args: &ReplyArgs) -> Result<(), Fault> {
        let parser = args.tool_call_parser.is_some();
        let refused = match &self.choice {
            ToolChoice::Auto
                if self.tools.is_empty() || (parser && args.enable_auto_tool_choice) =>
            {
                return Ok(());
            }
            ToolChoice::Auto => "\"auto\" tool choice requires --enable-auto-tool-choice and \
                             --tool-call-parser to be set"
                .into(),
            ToolChoice::Required if !parser => {
                "tool_choice=\"required\" requires --tool-call-parser to be set".into()
            }
            ToolChoice::Named(name) if !parser => {
                format!("tool_choice=function \"{name}\" requires --tool-call-parser to be set")
            }
            _ => return Ok(()),
        };
        Err(Fault::bad_request(refused))
    }

    /// Whether a parser looks for calls in the replies.
    pub(crate) fn is_parsed(&self) -> bool {
        !self.tools.is_empty() && self.choice != ToolChoice::Never
    }

    /// The tool that the next reply calls; `None`: it has words.
    pub(crate) fn next(&self, talk: &Talk) -> Option<Tool> {
        let named = || self.tools.iter().find(|(name, _)| talk.message.contains(name.as_str()));
        let new = |(name, _): &&(String, Value)| !talk.called.contains(name);
        let (name, parameters) = match &self.choice {
            ToolChoice::Never => None,
            ToolChoice::Auto if !talk.called.is_empty() => None,
            ToolChoice::Auto => named().or(self.tools.first()),
            ToolChoice::Required => named()
                .filter(new)
                .or_else(|| self.tools.iter().find(new))
                .or_else(|| self.tools.last()),
            ToolChoice::Named(wanted) => self.tools.iter().find(|(name, _)| name == wanted),
        }?;
        let cause = match self.choice {
            ToolChoice::Named(_) => Cause::Named,
            ToolChoice::Required => Cause::Required,
            ToolChoice::Auto | ToolChoice::Never => Cause::Model,
        };
        Some(Tool { name: name.clone(), parameters: parameters.clone(), cause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(choice: ToolChoice, message: &str, called: &[&str]) -> Option<String> {
        let tools = ["weather", "search", "final_result"];
        let tools = tools.map(|name| (name.to_owned(), json!({}))).to_vec();
        let mut talk = Talk::default();
        talk.called(Some(&json!("search")));
        talk.user(message.into());
        called.iter().for_each(|name| talk.called(Some(&json!(name))));
        Offer { tools, choice }.next(&talk).map(|tool| tool.name)
    }

    #[test]
    fn the_next_call_follows_from_the_choice_and_the_conversation() {
        let named = || ToolChoice::Named("search".into());
        for (choice, message, called, want) in [
            (ToolChoice::Never, "weather", &[][..], None),
            (ToolChoice::Auto, "hello", &[], Some("weather")),
            (ToolChoice::Auto, "use search", &[], Some("search")),
            (ToolChoice::Auto, "use search", &["search"], None),
            (ToolChoice::Required, "use search", &[], Some("search")),
            (ToolChoice::Required, "use search", &["search"], Some("weather")),
            (ToolChoice::Required, "hello", &["weather", "search"], Some("final_result")),
            (
                ToolChoice::Required,
                "hello",
                &["weather", "search", "final_result"],
                Some("final_result"),
            ),
            (named(), "hello", &["search"], Some("search")),
        ] {
            let case = format!("{choice:?} after {message:?} and {called:?}");
            assert_eq!(next(choice, message, called).as_deref(), want, "{case}");
        }
    }

    #[test]
    fn formats_of_all_spellings_lead_to_their_schema() {
        let of = |body: Value| match ReplyForm::of(body.as_object().expect("an object")) {
            ReplyForm::Json(schema) => schema,
            other => json!(format!("{other:?}")),
        };
        let schema = json!({"type": "integer"});
        for (body, want) in [
            (json!({"response_format": {"type": "text"}}), json!("Words")),
            (json!({"response_format": {"type": "json_object"}}), json!({"type": "object"})),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
                schema.clone(),
            ),
            (json!({"structured_outputs": {"json": schema}}), schema.clone()),
            (json!({"structured_outputs": {"json": "{\"type\": \"integer\"}"}}), schema.clone()),
            (json!({"structured_outputs": {"choice": ["a"]}}), json!("Choice([\"a\"])")),
            (json!({}), json!("Words")),
        ] {
            assert_eq!(of(body.clone()), want, "{body}");
        }
    }
}
