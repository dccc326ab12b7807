use super::*;
use crate::read::scan::scan;

/// The continuation of an answer to `body`, of which `answered` tokens are there.
fn next(api: Api, body: &Value, answered: u64) -> Result<Value, NotContinued> {
    let bytes = Bytes::from(body.to_string());
    let scan = scan(&bytes).expect("valid");
    let body = ContinuableBody::of(api, &bytes, &scan, 100);
    let edits = ContinuationEdits { model: Some("served"), drop_priority: true };
    if body.allows(answered)? == Allowed::NothingLeft {
        return Ok(json!("nothing left"));
    }
    let next = body.next(&[1, 2, 30], answered, edits)?;
    Ok(serde_json::from_slice(&next).expect("JSON"))
}

fn chat(more: Value) -> Value {
    let messages = json!([{"role": "user", "content": "a long prompt"}]);
    let mut body = json!({"model": "m", "messages": messages, "stream": true, "max_tokens": 12});
    let Value::Object(more) = more else { panic!("an object") };
    body.as_object_mut().expect("an object").extend(more);
    body
}

#[test]
fn a_chat_goes_on_from_ids_with_lower_limits_and_all_else_as_it_was() {
    let more = json!({
        "temperature": 0.7, "min_tokens": 3, "priority": 1, "top_logprobs": 2, "logprobs": true,
        "stream_options": {"continuous_usage_stats": true}, "x": null,
    });
    let want = json!({
        "model": "served", "stream": true, "max_tokens": 7, "min_tokens": 0, "temperature": 0.7,
        "top_logprobs": 2, "logprobs": true, "x": null, "return_token_ids": true,
        "messages": [{"role": "user", "content": ""}],
        "stream_options": {"include_usage": true},
        "kv_transfer_params": {"prompt_token_ids": [1, 2, 30]},
    });
    assert_eq!(next(Api::ChatCompletions, &chat(more), 5), Ok(want));
    let usage = json!({"include_usage": true, "continuous_usage_stats": true});
    let kept = next(Api::ChatCompletions, &chat(json!({"stream_options": usage})), 5);
    assert_eq!(kept.expect("continued")["stream_options"], usage);
}

#[test]
fn a_completion_goes_on_from_ids_as_its_prompt() {
    for prompt in [json!("a"), json!(["a"]), json!([1, 2]), json!([[1, 2]])] {
        let body = json!({"prompt": prompt, "stream": true});
        let got = next(Api::Completions, &body, 5).expect("continued");
        assert_eq!(got["prompt"], json!([1, 2, 30]));
        assert_eq!(got["max_tokens"], 11, "of 16 by default");
        assert_eq!(got.get("kv_transfer_params"), None);
    }
    for prompts in [json!(["a", "b"]), json!([[1], [2]])] {
        let body = json!({"prompt": prompts, "stream": true});
        assert_eq!(next(Api::Completions, &body, 5), Err(NotContinued::Choices));
    }
    let offsets = json!({"prompt": "a", "stream": true, "logprobs": 1});
    assert_eq!(next(Api::Completions, &offsets, 5).expect("continued")["logprobs"], 1);
}

#[test]
fn a_limit_that_is_used_up_leaves_nothing() {
    for (limits, answered, left) in [
        (json!({}), 11, true),
        (json!({}), 12, false),
        (json!({}), 13, false),
        (json!({"max_tokens": null}), 1000, true),
        (json!({"max_completion_tokens": 20}), 12, true),
        (json!({"max_completion_tokens": 5}), 5, false),
        (json!({"max_completion_tokens": null}), 12, false),
    ] {
        let got = next(Api::ChatCompletions, &chat(limits.clone()), answered);
        assert_eq!(got.expect("allowed") != "nothing left", left, "{limits} after {answered}");
    }
}

/// Each row of the table in `docs/continue.md` that the request decides.
#[test]
fn only_fields_that_are_known_to_be_harmless_are_allowed() {
    use NotContinued::{
        BeamSearch, Choices, Echo, KvTransferParams, Media, Penalties, PromptLogprobs, Seed, Stop,
        StructuredOutput, Tools, UnknownField, Unreadable,
    };
    for (fields, want) in [
        (json!({"n": 1}), Ok(())),
        (json!({"n": 2}), Err(Choices)),
        (json!({"best_of": 2}), Err(Choices)),
        (json!({"use_beam_search": false}), Ok(())),
        (json!({"use_beam_search": true}), Err(BeamSearch)),
        (json!({"echo": false}), Ok(())),
        (json!({"echo": true}), Err(Echo)),
        (json!({"prompt_logprobs": null}), Ok(())),
        (json!({"prompt_logprobs": 0}), Err(PromptLogprobs)),
        (json!({"response_format": {"type": "text"}}), Ok(())),
        (json!({"response_format": {"type": "json_object"}}), Err(StructuredOutput)),
        (json!({"structured_outputs": {"regex": "a"}}), Err(StructuredOutput)),
        (json!({"guided_choice": ["a"]}), Err(StructuredOutput)),
        (json!({"modalities": ["text"]}), Ok(())),
        (json!({"modalities": ["text", "audio"]}), Err(Media)),
        (json!({"tools": []}), Ok(())),
        (json!({"tools": [{"type": "function"}]}), Ok(())),
        (json!({"tools": [{"function": {"name": "a", "strict": false}}]}), Ok(())),
        (json!({"tools": [{"function": {}}, {"function": {"strict": true}}]}), Err(Tools)),
        (json!({"parallel_tool_calls": true}), Ok(())),
        (json!({"parallel_tool_calls": false}), Err(Tools)),
        (json!({"tool_choice": "auto"}), Ok(())),
        (json!({"tool_choice": "none"}), Ok(())),
        (json!({"tool_choice": "required"}), Err(Tools)),
        (json!({"stop": []}), Ok(())),
        (json!({"stop": ""}), Ok(())),
        (json!({"stop": "ab"}), Ok(())),
        (json!({"stop": [7]}), Err(Unreadable)),
        (json!({"stop": ["a".repeat(129)]}), Err(Stop)),
        (json!({"stop_token_ids": [7], "ignore_eos": true}), Ok(())),
        (json!({"presence_penalty": 0}), Ok(())),
        (json!({"presence_penalty": 0.1}), Err(Penalties)),
        (json!({"frequency_penalty": -1}), Err(Penalties)),
        (json!({"repetition_penalty": 1.2}), Ok(())),
        (json!({"seed": null}), Ok(())),
        (json!({"seed": 0}), Err(Seed)),
        (json!({"kv_transfer_params": {}}), Err(KvTransferParams)),
        (json!({"logprobs": true, "top_logprobs": 3}), Ok(())),
        (json!({"bad_words": []}), Ok(())),
        (json!({"bad_words": ["a"]}), Err(UnknownField)),
        (json!({"thinking_token_budget": 7}), Err(UnknownField)),
        (json!({"user": "a", "metadata": {"a": "b"}, "chat_template_kwargs": {}}), Ok(())),
        (json!({"max_tokens": "12"}), Err(Unreadable)),
    ] {
        let got = next(Api::ChatCompletions, &chat(fields.clone()), 5).map(drop);
        assert_eq!(got, want, "{fields}");
    }
}

#[test]
fn a_prompt_with_something_else_than_text_is_not_continued() {
    let text = json!({"type": "text", "text": "a"});
    for (content, want) in [
        (json!("a"), Ok(())),
        (json!(null), Ok(())),
        (json!([text, text]), Ok(())),
        (json!(["a"]), Ok(())),
        (json!([text, {"type": "image_url", "image_url": {"url": "a"}}]), Err(NotContinued::Media)),
        (json!([{"image_url": "a"}]), Err(NotContinued::Media)),
        (json!([{"type": "input_audio", "input_audio": {}}]), Err(NotContinued::Media)),
    ] {
        let messages =
            json!([{"role": "system", "content": "b"}, {"role": "user", "content": content}]);
        let body = chat(json!({"messages": messages}));
        assert_eq!(next(Api::ChatCompletions, &body, 5).map(drop), want, "{content}");
    }
    let escaped = r#"{"stream":true,"messages":[{"c\u006fntent":[{"\u0069mage_url":"a"}]}]}"#;
    let bytes = Bytes::from(escaped);
    let body = ContinuableBody::of(Api::ChatCompletions, &bytes, &scan(&bytes).expect("valid"), 0);
    assert_eq!(body.prompt, Err(NotContinued::Media), "an escaped key is the same key");
}

#[test]
fn a_long_body_beside_the_prompt_is_not_kept() {
    let body = chat(json!({"metadata": {"a": "x".repeat(LONGEST_REST)}}));
    assert_eq!(next(Api::ChatCompletions, &body, 5), Err(NotContinued::Memory));
    let body = chat(json!({"messages": [{"role": "user", "content": "x".repeat(LONGEST_REST)}]}));
    let bytes = Bytes::from(body.to_string());
    let kept = ContinuableBody::of(Api::ChatCompletions, &bytes, &scan(&bytes).expect("valid"), 0);
    assert!(kept.body.len() < 200, "the prompt is not kept");
}

#[test]
fn only_a_list_of_texts_or_lists_is_several_prompts() {
    for (prompt, want) in [
        (r#""a""#, false),
        ("[]", false),
        (r#"["a"]"#, false),
        (r#"["a", "b"]"#, true),
        ("[1, 2, 3]", false),
        ("[[1, 2]]", false),
        ("[[1], [2]]", true),
        ("[[1", false),
        ("null", false),
    ] {
        assert_eq!(has_several_prompts(prompt.as_bytes()), want, "{prompt}");
    }
}

#[test]
fn a_completion_has_no_limit_of_a_chat() {
    let body = json!({"prompt": "a", "stream": true, "max_tokens": 20, "max_completion_tokens": 2});
    let got = next(Api::Completions, &body, 5).expect("continued");
    assert_eq!((&got["max_tokens"], &got["max_completion_tokens"]), (&json!(15), &json!(2)));
}

#[test]
fn an_answer_without_a_token_begins_anew_where_its_beginning_would_matter() {
    for (fields, want) in [
        (json!({"seed": 7, "presence_penalty": 1, "stop": ["ab"]}), Ok(())),
        (json!({"tool_choice": "required", "bad_words": ["a"]}), Ok(())),
        (json!({"response_format": {"type": "json_object"}}), Ok(())),
        (json!({"n": 2}), Err(NotContinued::Choices)),
        (json!({"echo": true}), Err(NotContinued::Echo)),
        (json!({"kv_transfer_params": {}}), Err(NotContinued::KvTransferParams)),
    ] {
        let got = next(Api::ChatCompletions, &chat(fields.clone()), 0).map(drop);
        assert_eq!(got, want, "{fields}");
    }
}

#[test]
fn stop_strings_that_may_have_begun_are_noticed() {
    let stops = |more: Value| {
        let bytes = Bytes::from(chat(more).to_string());
        let scan = scan(&bytes).expect("valid");
        let body = ContinuableBody::of(Api::ChatCompletions, &bytes, &scan, 0);
        let Ok(Allowed::Tokens(stops)) = body.allows(5) else { panic!("not allowed") };
        stops
    };
    let none = stops(json!({}));
    assert!(none.are_none() && none.lag() == 0 && !none.may_begin_in("a"));
    let several = stops(json!({"stop": ["\n\n", "é!x", ""]}));
    assert_eq!(several.lag(), 2);
    for (text, want) in
        [("", false), ("a", false), ("a\n", true), ("é", true), ("é!", true), ("é!y", false)]
    {
        assert_eq!(several.may_begin_in(text), want, "{text:?}");
    }
    let one = stops(json!({"stop": "\n"}));
    assert!(one.lag() == 0 && !one.may_begin_in("a\n"), "it has no beginning");
    let included = stops(json!({"stop": "ab", "include_stop_str_in_output": true}));
    assert!(included.lag() == 0 && included.may_begin_in("xa"));
}
