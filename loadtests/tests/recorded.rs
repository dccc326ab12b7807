//! Recorded requests, replayed: the simulator's replies have the recorded status, headers in their
//! order, and bodies of the recorded shape; error messages are the same text.

mod common;

use common::{Client, Reply, body_shape, head, recorded, recorded_reply, tiny};
use forebay_loadtests::sim::Sim;

/// How much of the body is the same.
#[derive(Clone, Copy, PartialEq)]
enum Same {
    Shape,
    /// The same in any order of members: the recorded one is the client's own in parts.
    Members,
    Text,
    Head,
}

async fn replay(sim: &Sim, folder: &str, names: &[&str], same: Same) {
    for name in names {
        let request = recorded(folder, &format!("{name}.req"));
        let mut client = Client::connect(sim.addr()).await;
        client.send(&request).await;
        let got = client.reply(request.starts_with(b"HEAD")).await;
        let got = got.unwrap_or_else(|| panic!("{folder}/{name}: no whole response"));
        let want = recorded_reply(folder, name);
        assert_eq!(head(&got), head(&want), "{folder}/{name}");
        match same {
            Same::Shape => assert_eq!(body_shape(&got), body_shape(&want), "{folder}/{name}"),
            Same::Members => assert_eq!(members(&got), members(&want), "{folder}/{name}"),
            Same::Text => assert_eq!(got.body, want.body, "{folder}/{name}"),
            Same::Head => {}
        }
    }
}

/// The shapes of a body's JSON or events, with their members sorted.
fn members(reply: &Reply) -> Vec<String> {
    let sorted = |json: &serde_json::Value| common::shape(&json.to_string());
    let mut shapes = match reply.chunks.is_empty() {
        true => vec![sorted(&reply.json())],
        false => reply.events().iter().map(sorted).collect(),
    };
    shapes.dedup();
    shapes
}

#[tokio::test]
async fn plain_routes_answer_as_recorded() {
    let sim = tiny(&[]).await;
    let same = [
        "health",
        "ping",
        "version",
        "load",
        "kv_event_sources",
        "models_one",
        "notfound",
        "root",
        "health_head",
        "health_post_405",
        "chat_get_405",
        "options_cors",
        "responses_get_404",
        "load_under_load",
        "health_under_load",
        "frame_upgrade_h2c",
        "frame_big_header_70k",
        "frame_pipelined",
        "chat_double_slash",
        "chat_trailing_slash",
        "frame_bad_request_line",
        "frame_h2_prior_knowledge",
    ];
    replay(&sim, "a-default", &same, Same::Text).await;
    replay(&sim, "a-default", &["models", "tokenize", "tokenize_chat"], Same::Shape).await;
    replay(&sim, "a-default", &["detokenize", "messages_count_tokens"], Same::Shape).await;
    let redirect = recorded("a-default", "chat_trailing_slash.req");
    let reply = common::ask(sim.addr(), &redirect).await;
    assert_eq!(reply.header("location"), Some("http://127.0.0.1:8000/v1/chat/completions"));
}

#[tokio::test]
async fn chats_have_the_recorded_shape() {
    let sim = tiny(&[]).await;
    let names = [
        "chat",
        "chat_stream",
        "chat_stream_usage",
        "chat_stream_usage_continuous",
        "chat_n2",
        "chat_stream_logprobs",
        "chat_logprobs",
        "chat_stop_string",
        "chat_stream_eos_bias",
        "chat_max_completion_tokens",
        "chat_return_token_ids_stream",
        "chat_stream_long",
        "chat_unknown_param",
        "chat_priority",
        "chat_user_request_id_body",
        "chat_x_request_id",
        "chat_orca_text",
        "chat_orca_json_stream",
        "chat_no_model",
        "err_bad_role",
        "frame_http10",
        "frame_http10_stream",
        "frame_connection_close_stream",
        "frame_chunked_request",
        "accept_encoding_gzip",
        "dup_request_id_1",
    ];
    replay(&sim, "a-default", &names, Same::Shape).await;
    // The schema is not followed, so the reply may end otherwise.
    replay(&sim, "a-default", &["chat_json_schema"], Same::Head).await;
    for name in ["chat_user_request_id_body", "chat_x_request_id"] {
        let got = common::ask(sim.addr(), &recorded("a-default", &format!("{name}.req"))).await;
        let want = recorded_reply("a-default", name);
        assert_eq!(got.json()["id"], want.json()["id"], "{name}: the client chooses the id");
    }
}

#[tokio::test]
async fn completions_have_the_recorded_shape() {
    let sim = tiny(&[]).await;
    let names = [
        "completion",
        "completion_stream",
        "completion_stream_usage",
        "completion_stream_usage_continuous",
        "completion_batch_prompts",
        "completion_batch_prompts_stream",
        "completion_token_ids",
        "completion_echo",
    ];
    replay(&sim, "a-default", &names, Same::Shape).await;
}

#[tokio::test]
async fn messages_and_responses_have_the_recorded_shape() {
    let sim = tiny(&[]).await;
    let names = ["messages", "messages_stream", "responses", "responses_stream"];
    replay(&sim, "a-default", &names, Same::Shape).await;
}

#[tokio::test]
async fn errors_have_the_recorded_messages() {
    let sim = tiny(&[]).await;
    let names = [
        "completion_max_tokens_0",
        "chat_tool_named_stream",
        "chat_tool_named",
        "chat_tool_required_stream",
        "chat_tool_required",
        "err_tool_auto_disabled",
        "messages_err_model",
        "err_unknown_model",
        "err_unknown_model_stream",
        "err_unknown_model_completion",
        "err_bad_json",
        "err_empty_body",
        "err_wrong_type",
        "err_missing_messages",
        "err_messages_wrong_type",
        "err_empty_messages",
        "err_context_too_long",
        "err_context_too_long_stream",
        "err_max_tokens_too_big",
        "err_max_tokens_0",
        "err_temperature",
        "err_n_0",
        "err_top_logprobs",
        "err_stream_options_no_stream",
        "err_content_type",
        "err_no_content_type",
        "err_image",
        "err_embeddings_on_generate",
        "frame_gzip_request",
    ];
    replay(&sim, "a-default", &names, Same::Text).await;
    // The recorded request has 8 MiB of text; its length is in its answer.
    let want = recorded_reply("a-default", "frame_body_8MiB");
    let template = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n".len();
    let got = common::ask(sim.addr(), &common::chat(&"x".repeat(8_388_658 - template), "")).await;
    assert_eq!((head(&got), got.body), (head(&want), want.body));
}

#[tokio::test]
async fn options_show_in_replies_as_recorded() {
    let sim = tiny(&["--enable-request-id-headers", "--enable-prompt-tokens-details"]).await;
    let names = [
        "request_id_given",
        "request_id_none",
        "cached_tokens_1",
        "cached_tokens_2",
        "bystander_during_compile",
    ];
    replay(&sim, "c-options", &names, Same::Shape).await;
    let names =
        ["request_id_on_error", "request_id_health", "health_after", "err_prompt_bigger_than_kv"];
    // The recorded answers to these are the same but for the id's value.
    replay(&sim, "c-options", &names, Same::Text).await;
    replay(&sim, "c-options", &["request_id_given_stream"], Same::Head).await;
    let health = common::ask(sim.addr(), &recorded("c-options", "request_id_health.req")).await;
    assert_eq!(health.header("x-request-id"), Some("my-id-45"));

    let again = common::ask(sim.addr(), &recorded("c-options", "cached_tokens_2.req")).await;
    let cached = &again.json()["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64() > Some(0) && cached.as_u64().map(|n| n % 128) == Some(0), "{cached}");
    let stream =
        common::ask(sim.addr(), &recorded("c-options", "cached_tokens_2_stream.req")).await;
    let usage = stream.events().pop().expect("a usage chunk")["usage"].clone();
    assert_eq!(&usage["prompt_tokens_details"]["cached_tokens"], cached);

    let sim = tiny(&["--enable-prompt-tokens-details"]).await;
    let names = ["models", "session_id", "dp_rank_header_bad"];
    replay(&sim, "i-dp2", &names, Same::Shape).await;
}

#[tokio::test]
async fn keys_adapters_and_development_routes_answer_as_recorded() {
    let sim =
        tiny(&["--api-key", "sk-one", "sk-two", "--dev", "--lora-modules=ad1=/srv/vllm/lora1"])
            .await;
    let folder = "e-auth-lora-dev";
    let names = ["auth_none", "auth_wrong", "auth_not_bearer", "auth_x_api_key_messages"];
    replay(&sim, folder, &names, Same::Text).await;
    let names =
        ["noauth_models", "noauth_health", "noauth_version", "noauth_load", "lora_load_ad2"];
    replay(&sim, folder, &names, Same::Text).await;
    replay(&sim, folder, &["models_with_two_loras", "noauth_tokenize"], Same::Shape).await;
    let names = ["lora_load_ad2_again", "lora_unload_ad2", "chat_lora_unloaded_404"];
    replay(&sim, folder, &names, Same::Text).await;
    replay(&sim, folder, &["models_with_lora", "lora_load_missing"], Same::Shape).await;
    // Recorded with a reasoning parser, so with other fields in their bodies.
    let names =
        ["auth_lowercase_scheme", "chat_lora_ad1", "chat_lora_ad1_stream", "priority_header"];
    replay(&sim, folder, &names, Same::Head).await;
    let names = [
        "dev_is_sleeping",
        "dev_is_paused",
        "dev_reset_prefix_cache",
        "dev_pause_keep",
        "dev_is_paused_yes",
        "health_while_paused",
        "dev_resume",
        "dev_pause_abort",
        "dev_resume2",
        "dev_sleep_level1",
        "dev_is_sleeping_after",
        "health_while_sleeping",
        "dev_wake_up",
        "health_after_wake",
    ];
    replay(&sim, folder, &names, Same::Text).await;
    replay(&sim, folder, &["dev_abort_requests"], Same::Shape).await;
    let adapter = common::ask(sim.addr(), &recorded(folder, "chat_lora_ad1.req")).await;
    assert_eq!(adapter.json()["model"], "ad1");
}

#[tokio::test]
async fn a_pooling_server_answers_as_recorded() {
    let flags = ["--served-model-name=tiny-embed", "--runner=pooling"];
    let tiny = common::TINY.iter().filter(|flag| !flag.starts_with("--served"));
    let sim = common::start(tiny.chain(&flags).copied()).await;
    let names = [
        "models",
        "embeddings",
        "embeddings_batch",
        "embeddings_base64",
        "embeddings_tokens",
        "pooling",
        "score",
        "rerank",
    ];
    replay(&sim, "h-embeddings", &names, Same::Shape).await;
    let names = [
        "embeddings_dimensions",
        "embeddings_unknown_model",
        "embeddings_too_long",
        "embeddings_empty",
        "chat_on_pooling",
        "embeddings_bad_type",
    ];
    replay(&sim, "h-embeddings", &names, Same::Text).await;
}

/// The flags of the recorded server that calls tools.
const TOOLS: [&str; 4] = [
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--enable-request-id-headers",
    "--enable-prompt-tokens-details",
];

#[tokio::test]
async fn tool_calls_and_schemas_have_the_recorded_shape() {
    let sim = tiny(&TOOLS).await;
    let names = ["chat_tool_named", "chat_tool_named_stream", "chat_tool_none"];
    replay(&sim, "c-options", &names, Same::Shape).await;
    let names = [
        "chat_auto",
        "chat_auto_stream",
        "chat_choice",
        "chat_named",
        "chat_named_stream",
        "chat_schema",
        "chat_schema_stream",
        "completion_schema",
        "messages_any_stream",
        "messages_schema",
        "responses_schema",
        "responses_schema_stream",
        "responses_tool",
        "responses_tool_stream",
    ];
    replay(&sim, "k-tools-and-schemas", &names, Same::Members).await;
    let names = [
        "err_choice_unknown_tool",
        "err_choice_value",
        "err_choice_without_tools",
        "err_messages_unknown_tool",
        "err_responses_choice_without_tools",
        "err_responses_unknown_tool",
        "err_tools_empty",
    ];
    replay(&sim, "k-tools-and-schemas", &names, Same::Text).await;

    // The simulated model is cut earlier: it needs fewer tokens for a call.
    let cut =
        String::from_utf8(recorded("k-tools-and-schemas", "chat_auto_cut.req")).expect("text");
    let got = cut.replace(r#""max_tokens": 40"#, r#""max_tokens":  4"#);
    let got = common::ask(sim.addr(), got.as_bytes()).await;
    let want = recorded_reply("k-tools-and-schemas", "chat_auto_cut");
    assert_eq!(members(&got), members(&want));
    let begins = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {";
    assert!(got.chat_text().starts_with(begins), "{}", got.chat_text());
    assert!(want.chat_text().starts_with(begins), "{}", want.chat_text());

    // The recorded arguments follow no schema.
    let got = common::ask(sim.addr(), &recorded("k-tools-and-schemas", "messages_any.req")).await;
    let want = recorded_reply("k-tools-and-schemas", "messages_any");
    let shape = |reply: &common::Reply| {
        let mut json = reply.json();
        json["content"][0]["input"] = serde_json::json!({});
        common::shape(&json.to_string())
    };
    assert_eq!((head(&got), shape(&got)), (head(&want), shape(&want)));

    let page = common::ask(sim.addr(), &common::get("/metrics")).await.body;
    let count = |mode: &str, outcome: &str, kind: &str| -> f64 {
        let series = format!(
            "vllm:tool_call_parser_invocations_total{{mode=\"{mode}\",model_name=\"tiny\",\
             outcome=\"{outcome}\",request_type=\"{kind}\"}} "
        );
        let line = page.lines().find_map(|line| line.strip_prefix(&series));
        line.and_then(|value| value.parse().ok()).expect("a value")
    };
    assert_eq!(count("non_streaming", "tool_call", "chat_completions"), 5.0);
    assert_eq!(count("non_streaming", "tool_call", "responses"), 1.0);
    assert!(count("streaming", "tool_call", "responses") > 5.0);
    assert_eq!(count("streaming", "no_tool_call", "chat_completions"), 0.0);
}

/// The parsed arguments of the only call in a chat, or its content.
async fn asked(sim: &Sim, more: &str) -> Result<serde_json::Value, String> {
    let reply = common::ask(sim.addr(), &common::chat("Is it warm?", more)).await;
    let message = &reply.json()["choices"][0]["message"];
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    match message["tool_calls"][0]["function"]["arguments"].as_str() {
        Some(arguments) => Ok(serde_json::from_str(arguments).expect("JSON")),
        None => Err(text(&message["content"])),
    }
}

#[tokio::test]
async fn an_agent_calls_its_tool_and_then_answers_in_the_form_that_it_should() {
    let sim = tiny(&TOOLS).await;
    let tool = r#","tools":[{"type":"function","function":{"name":"warmth","parameters":{
        "type":"object","properties":{"city":{"enum":["Paris","Rome"]},"day":{"type":"integer"}},
        "required":["city","day"],"additionalProperties":false}}}]"#;
    for _ in 0..2 {
        let arguments = asked(&sim, tool).await.expect("a call");
        assert!(["Paris", "Rome"].map(Into::into).contains(&arguments["city"]), "{arguments}");
        assert!(arguments["day"].is_i64(), "{arguments}");
    }
    let format = r#","response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{
        "type":"object","properties":{"warm":{"type":"boolean"}},"required":["warm"]}}}"#;
    let with_result = format!(
        r#"{{"messages":[{{"role":"user","content":"Is it warm?"}},
            {{"role":"assistant","tool_calls":[{{"id":"1","type":"function",
              "function":{{"name":"warmth","arguments":"{{}}"}}}}]}},
            {{"role":"tool","tool_call_id":"1","content":"31 C"}}]{tool}{format}}}"#
    );
    let reply =
        common::ask(sim.addr(), &common::post("/v1/chat/completions", &with_result)).await.json();
    assert_eq!(reply["choices"][0]["finish_reason"], "stop", "{reply}");
    let content = reply["choices"][0]["message"]["content"].as_str().expect("text");
    let answer: serde_json::Value = serde_json::from_str(content).expect("JSON");
    assert!(answer["warm"].is_boolean(), "{answer}");

    // Streamed, the pieces make up the same JSON; cut short, they are its beginning.
    let request = common::chat("Is it warm?", &format!("{format},\"stream\":true"));
    let streamed = common::ask(sim.addr(), &request).await.chat_text();
    let whole = asked(&sim, format).await.expect_err("no call");
    assert_eq!(streamed, whole);
    let cut = asked(&sim, &format!("{format},\"max_tokens\":2")).await.expect_err("no call");
    assert!(whole.starts_with(&cut) && cut.len() < whole.len(), "{cut}");
}

#[tokio::test]
async fn fresh_metrics_have_every_recorded_line() {
    let mut flags = TOOLS.to_vec();
    flags.push("--num-gpu-blocks-override=33");
    let sim = tiny(&flags).await;
    let got = common::ask(sim.addr(), &recorded("c-options", "metrics_fresh_idle.req")).await;
    let want = recorded_reply("c-options", "metrics_fresh_idle");
    assert_eq!(head(&got), head(&want));
    let names = |page: &str| -> Vec<String> {
        let name = |line: &str| match line.rsplit_once(' ') {
            Some((name, _)) if !line.starts_with('#') => name.to_owned(),
            _ => line.to_owned(),
        };
        page.lines().map(name).collect()
    };
    assert_eq!(names(&got.body), names(&want.body));
    let slash = common::ask(sim.addr(), &recorded("a-default", "metrics_trailing_slash.req")).await;
    assert_eq!(slash.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(slash.header("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn metrics_after_traffic_have_the_recorded_series() {
    let sim = tiny(&[]).await;
    for name in ["models", "chat", "chat_stream", "notfound", "err_n_0", "completion"] {
        common::ask(sim.addr(), &recorded("a-default", &format!("{name}.req"))).await;
    }
    let series = |page: &str| -> std::collections::BTreeSet<String> {
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        let names = samples.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()));
        names.filter(|name| !name.starts_with("vllm:cache_config_info")).collect()
    };
    let recorded = series(&recorded_reply("a-default", "metrics_under_load").body);
    let got = common::ask(sim.addr(), &common::get("/metrics")).await;
    let unknown: Vec<String> = series(&got.body).difference(&recorded).cloned().collect();
    assert_eq!(unknown, Vec::<String>::new());
    for line in [
        r#"vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 3.0"#,
        r#"vllm:generation_tokens_total{engine="0",model_name="tiny"} 24.0"#,
        r#"http_requests_total{handler="/v1/chat/completions",method="POST",status="4xx"} 1.0"#,
        r#"http_requests_total{handler="none",method="GET",status="4xx"} 1.0"#,
    ] {
        assert!(got.body.contains(line), "{line}\n{}", got.body);
    }
}

#[tokio::test]
async fn an_expected_body_is_asked_for_and_answered() {
    let sim = tiny(&[]).await;
    let request = recorded("a-default", "frame_expect_100.req");
    let body = request.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let mut client = Client::connect(sim.addr()).await;
    client.send(&request[..body]).await;
    let go_on = client.reply(false).await.expect("100");
    assert_eq!(head(&go_on), head(&recorded_reply("a-default", "frame_expect_100")));
    client.send(&request[body..]).await;
    assert_eq!(client.reply(false).await.expect("a reply").code(), 200);
}
