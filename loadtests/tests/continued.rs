//! Answers that go on from their token ids: as recorded, and the same on every server.

mod common;

use common::{body_shape, head, recorded, recorded_reply, tiny};

#[tokio::test]
async fn answers_continue_from_token_ids_as_recorded() {
    let sim = tiny(&[]).await;
    let names = [
        "chat_full",
        "chat_full_stream",
        "chat_resumed_1_stream",
        "chat_resumed_5_stream",
        "chat_resumed_11_stream",
        "chat_logprobs_stream",
        "chat_logprobs_resumed_stream",
        "chat_continuous_stream",
        "chat_continuous_resumed_stream",
        "completions_full_stream",
        "completions_resumed_5_stream",
    ];
    for name in names {
        let got = common::ask(sim.addr(), &recorded("k-resume", &format!("{name}.req"))).await;
        let want = recorded_reply("k-resume", name);
        assert_eq!(head(&got), head(&want), "{name}");
        assert_eq!(body_shape(&got), body_shape(&want), "{name}");
    }
    for name in ["chat_resumed_bad_type", "chat_resumed_too_long"] {
        let got = common::ask(sim.addr(), &recorded("k-resume", &format!("{name}.req"))).await;
        let want = recorded_reply("k-resume", name);
        assert_eq!((head(&got), got.body), (head(&want), want.body), "{name}");
    }
}

/// The numbers of a list of ids.
fn numbers(ids: &serde_json::Value) -> Vec<u64> {
    ids.as_array().into_iter().flatten().filter_map(serde_json::Value::as_u64).collect()
}

/// An event's text and ids.
fn text_and_ids(event: &serde_json::Value) -> (String, Vec<u64>) {
    let choice = &event["choices"][0];
    let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
    (text.unwrap_or_default().to_owned(), numbers(&choice["token_ids"]))
}

#[tokio::test]
async fn an_answer_continues_token_for_token_on_another_server() {
    let (one, other) = (tiny(&[]).await, tiny(&[]).await);
    let stream = r#","stream":true,"return_token_ids":true,"max_tokens":"#;
    let whole = common::ask(one.addr(), &common::chat("go", &format!("{stream}300"))).await;
    let events = whole.events();
    let mut ids = numbers(&events[0]["prompt_token_ids"]);
    let prompt = ids.len();
    let mut pieces: Vec<(String, Vec<u64>)> = events.iter().map(text_and_ids).collect();
    pieces.retain(|(_, ids)| !ids.is_empty());
    for at in 0..pieces.len() - 1 {
        ids.extend(&pieces[at].1);
        if pieces[at].0.is_empty() || !(at + 1).is_multiple_of(7) {
            continue;
        }
        let given = serde_json::json!({ "prompt_token_ids": ids });
        let left = 300 - (ids.len() - prompt);
        let more = format!("{stream}{left},\"kv_transfer_params\":{given}");
        let rest = common::ask(other.addr(), &common::chat("go", &more)).await;
        let mut rest: Vec<_> = rest.events().iter().map(text_and_ids).collect();
        rest.retain(|(_, ids)| !ids.is_empty());
        assert_eq!(rest, pieces[at + 1..], "cut after {at}");
    }

    // An older server answers from the beginning.
    let old = tiny(&["--ignore-prompt-token-ids"]).await;
    let given = serde_json::json!({ "prompt_token_ids": ids });
    let more = format!("{stream}300,\"kv_transfer_params\":{given}");
    let again = common::ask(old.addr(), &common::chat("go", &more)).await;
    let again: Vec<_> = again.events().iter().map(text_and_ids).collect();
    assert_eq!(again, events.iter().map(text_and_ids).collect::<Vec<_>>());
}
