use std::fmt::Write;

use forebay_scheduling::prompt::{BLOCK_BYTES, MAX_BLOCKS};
use proptest::prelude::*;
use serde_json::{Value, json};

use reference::{Doc, reference};

use super::*;
use crate::read::scan::scan_contents;

mod reference;

const OWNER: Owner<'static> = Owner { tenant: "anonymous", model: "m", user_is_session: false };

fn contents(body: &str) -> Contents {
    *scan_contents(body.as_bytes()).expect(body).contents.expect("as asked for")
}

fn read(body: &str) -> Prompt {
    contents(body).prompt(OWNER, None)
}

/// The blocks of a body with these members.
fn blocks(body: Value) -> Box<[u64]> {
    read(&body.to_string()).blocks
}

/// A text that fills `count` blocks with something different each.
fn text(count: usize) -> String {
    let mut text = String::new();
    for word in 0.. {
        if text.len() >= count * BLOCK_BYTES {
            break;
        }
        let _ = write!(text, "{word} ");
    }
    text
}

/// How many blocks both begin with.
fn shared(one: &[u64], other: &[u64]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

#[test]
fn the_hashes_of_a_prompt_never_change() {
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": text(2)}]});
    assert_eq!(*blocks(chat), [848_966_923_982_561_160, 851_074_760_574_488_017]);
    assert_eq!(*blocks(json!({"prompt": vec![7; 128]})), [11_728_247_297_808_027_993]);
}

#[test]
fn a_conversation_begins_with_the_blocks_of_its_earlier_turns() {
    for (system, prompt) in [("system", "messages"), ("instructions", "input")] {
        let mut turns = vec![json!({"role": "user", "content": text(3)})];
        let body = |turns: &[Value]| json!({system: text(2), prompt: turns, "tools": [text(1)]});
        let first = blocks(body(&turns));
        turns.push(json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": text(1)}},
        ]}));
        turns.push(json!({"role": "tool", "tool_call_id": "1", "content": text(1)}));
        let second = blocks(body(&turns));
        assert!(first.len() >= 6 && second.len() > first.len());
        assert_eq!(shared(&first, &second), first.len(), "{prompt}");
    }
}

#[test]
fn each_part_of_a_prompt_changes_its_hashes() {
    let tools = |name: &str| json!([{"type": "function", "function": {"name": name}}]);
    let body = |role: &str, system: &str, tool: &str| {
        let content = json!([{"type": "text", "text": text(4)}]);
        let messages = json!([{"role": role, "content": content}]);
        blocks(json!({"messages": messages, "system": system, "tools": tools(tool)}))
    };
    let usual = body("user", "Be brief.", "f");
    for (what, other) in [
        ("role", body("tool", "Be brief.", "f")),
        ("system", body("user", "Be brief!", "f")),
        ("tools", body("user", "Be brief.", "g")),
    ] {
        assert_eq!(shared(&usual, &other), 0, "{what}");
    }
    assert_eq!(usual, body("user", "Be brief.", "f"));
}

#[test]
fn what_separates_caches_separates_prompts_and_sessions() {
    let body = json!({"prompt": text(2), "prompt_cache_key": "s"}).to_string();
    let salted = json!({"prompt": text(2), "prompt_cache_key": "s", "cache_salt": "x"}).to_string();
    let read = |body: &str, owner| contents(body).prompt(owner, None);
    let usual = read(&body, OWNER);
    for (what, other) in [
        ("tenant", read(&body, Owner { tenant: "other", ..OWNER })),
        ("model", read(&body, Owner { model: "adapter", ..OWNER })),
        ("names run together", read(&body, Owner { tenant: "anonymousm", model: "", ..OWNER })),
        ("cache_salt", read(&salted, OWNER)),
    ] {
        assert_eq!(shared(&usual.blocks, &other.blocks), 0, "{what}");
        assert_ne!(usual.session, other.session, "{what}");
    }
}

#[test]
fn a_session_is_named_by_the_header_or_else_by_the_body() {
    let body = r#"{"prompt":"a","prompt_cache_key":"\u0061b"}"#;
    let named = |body: &str, session: Option<&[u8]>| contents(body).prompt(OWNER, session).session;
    assert!(named(body, None).is_some());
    assert_eq!(named(body, None), named("{}", Some(b"ab")));
    assert_eq!(named(body, Some(b"c")), named("{}", Some(b"c")));
    for none in ["{}", r#"{"prompt_cache_key":null}"#, r#"{"prompt_cache_key":""}"#] {
        assert_eq!(named(none, None), None, "{none}");
    }
}

#[test]
fn a_user_is_a_session_only_where_that_is_configured() {
    let owner = Owner { user_is_session: true, ..OWNER };
    let session = |body: &str, owner| contents(body).prompt(owner, None).session;
    let user = r#"{"prompt":"a","user":"u"}"#;
    assert_eq!(session(user, OWNER), None);
    assert_eq!(session(user, owner), session(r#"{"prompt_cache_key":"u"}"#, OWNER));
    let both = r#"{"user":"u","prompt_cache_key":"k"}"#;
    assert_eq!(session(both, owner), session(r#"{"prompt_cache_key":"k"}"#, OWNER));
    for none in [r#"{"user":null}"#, r#"{"user":7}"#, r#"{"user":""}"#] {
        assert_eq!(session(none, owner), None, "{none}");
    }
}

#[test]
fn what_changes_a_template_changes_a_prompt_from_its_beginning() {
    let body = |fields: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": text(3)}]});
        for (name, value) in fields.as_object().expect("members") {
            body[name] = value.clone();
        }
        blocks(body)
    };
    let usual = body(json!({}));
    let all = [
        json!({"reasoning_effort": "high"}),
        json!({"reasoning_effort": "low"}),
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"chat_template_kwargs": "high"}),
        json!({"documents": [{"title": "t", "text": text(1)}]}),
    ];
    for (at, fields) in all.iter().enumerate() {
        let one = body(fields.clone());
        assert_eq!(shared(&usual, &one), 0, "{fields}");
        assert_eq!(one, body(fields.clone()));
        for other in &all[..at] {
            assert_eq!(shared(&one, &body(other.clone())), 0, "{fields} {other}");
        }
    }
    for same in [json!({"reasoning_effort": null}), json!({"temperature": 0.5})] {
        assert_eq!(body(same.clone()), usual, "{same}");
    }
}

#[test]
fn what_no_template_writes_does_not_count() {
    let body = |system: Value, marked: bool| {
        let mut part = json!({"type": "text", "text": text(2)});
        if marked {
            part["cache_control"] = json!({"type": "ephemeral"});
        }
        json!({"system": system, "messages": [{"role": "user", "content": [part]}]})
    };
    let line = |hash: &str| {
        let line = format!("x-anthropic-billing-header: cc_version=2; cch={hash};");
        json!([{"type": "text", "text": line}, {"type": "text", "text": "Be brief."}])
    };
    let usual = blocks(body(line("1"), false));
    assert_eq!(usual, blocks(body(line("2"), false)));
    assert_eq!(usual, blocks(body(line("1"), true)));
}

#[test]
fn a_picture_counts_by_its_bytes_and_as_a_thousand_tokens() {
    let picture = |url: &str| {
        let url = json!({"type": "image_url", "image_url": {"url": url}});
        read(&json!({"messages": [{"role": "user", "content": [url, text(1)]}]}).to_string())
    };
    let sent = |data: &str| {
        let source = json!({"type": "base64", "media_type": "image/png", "data": data});
        let image = json!({"type": "image", "source": source});
        read(&json!({"messages": [{"role": "user", "content": [image]}]}).to_string())
    };
    let url = |data: &str| format!("data:image/png;base64,{data}");
    let (one, other) = ("A".repeat(100_000), "A".repeat(99_999) + "B");
    assert_eq!(shared(&picture(&url(&one)).blocks, &picture(&url(&other)).blocks), 0);
    assert_eq!(picture(&url(&one)), picture(&url(&one)));
    assert_eq!(shared(&sent(&one).blocks, &sent(&other).blocks), 0);
    for read in [picture(&url(&one)), sent(&one)] {
        assert!((4096..5120).contains(&read.bytes), "{}", read.bytes);
    }
    let page = "https://example.com/".to_owned() + &"a".repeat(600);
    assert_eq!(shared(&picture(&page).blocks, &picture(&page.replace("com", "org")).blocks), 0);
}

#[test]
fn token_ids_take_four_bytes_each() {
    let ids: Vec<u32> = (0..1_000).collect();
    let mut longer = ids.clone();
    longer.extend([5, 6, 7]);
    let (one, other) = (blocks(json!({"prompt": ids})), blocks(json!({"prompt": longer})));
    assert_eq!((one.len(), shared(&one, &other)), (7, 7));
    let mut changed = ids.clone();
    changed[300] = 0;
    assert_eq!(shared(&one, &blocks(json!({"prompt": changed}))), 2);
    assert_eq!(shared(&blocks(json!({"prompt": [ids]})), &one), 0, "a list of prompts");
    read("{\"prompt\":[1,-2,1.5,99999999999,[],{}]}");
}

#[test]
fn a_prompt_is_hashed_up_to_its_bound_and_measured_beyond() {
    let long = json!({"prompt": "a".repeat((MAX_BLOCKS + 9) * BLOCK_BYTES)});
    let long = read(&long.to_string());
    assert_eq!(long.blocks.len(), MAX_BLOCKS);
    assert_eq!(long.bytes as usize, (MAX_BLOCKS + 9) * BLOCK_BYTES + 2);
    let message = json!({"role": "user", "content": "a".repeat(BLOCK_BYTES)});
    let many = read(&json!({"messages": vec![message; MAX_BLOCKS + 9]}).to_string());
    assert_eq!(many.blocks.len(), MAX_BLOCKS);
    assert!(many.bytes as usize > (MAX_BLOCKS + 9) * BLOCK_BYTES);
}

#[test]
fn a_text_that_only_looks_like_a_file_or_like_a_billing_line_is_content() {
    let user = |text: &str| blocks(json!({"messages": [{"role": "user", "content": text}]}));
    for begin in ["data: a,b\n", "x-anthropic-billing-header: "] {
        let (one, longer) = (begin.to_owned() + &text(3), begin.to_owned() + &text(4));
        assert_eq!(shared(&user(&one), &user(&longer)), 3, "{begin}");
        assert_eq!(shared(&user(&one), &user(&one.replace("12 ", "13 "))), 0, "{begin}");
    }
}

#[test]
fn a_text_in_a_template_is_another_prompt_than_the_text_alone() {
    let (alone, input) = (blocks(json!({"prompt": text(2)})), blocks(json!({"input": text(2)})));
    assert_eq!((shared(&alone, &input), alone.len(), input.len()), (0, 2, 2));
}

#[test]
fn of_tools_that_are_given_twice_the_last_count() {
    let [short, long] = [1, 3].map(|count| json!([text(count)]));
    let twice = format!(r#"{{"tools":{long},"tools":{short},"messages":[]}}"#);
    assert_eq!(read(&twice), read(&json!({"tools": short, "messages": []}).to_string()));
}

#[test]
fn a_message_with_many_members_out_of_order_takes_no_memory_for_all_of_them() {
    let mut members: Vec<_> = (0..100_000).map(|at| format!(r#""{at}":0"#)).collect();
    members.push(r#""a":0"#.to_owned());
    let body = format!(r#"{{"messages":[{{{}}}]}}"#, members.join(","));
    assert!(read(&body).bytes < 1_000);
}

#[test]
fn a_body_without_a_prompt_or_with_a_strange_one_has_few_blocks_and_no_error() {
    let deep = format!(r#"{{"messages":{}1{}}}"#, "[".repeat(900), "]".repeat(900));
    let deep_members = format!(r#"{{"messages":[{}1{}]}}"#, "{\"a\":".repeat(900), "}".repeat(900));
    for body in
        ["{}", r#"{"messages":null}"#, r#"{"messages":[null,7,"a",{}]}"#, r#"{"prompt":""}"#]
    {
        assert_eq!(read(body).blocks.len(), 0, "{body}");
    }
    assert_eq!(read(&deep), read(&deep));
    assert_ne!(read(&deep_members).bytes, 0);
}

/// Writes a document with spaces and escapes by chance.
fn written(doc: &Doc, chance: &mut impl FnMut() -> u8, out: &mut String) {
    let space = |chance: &mut dyn FnMut() -> u8| [" ", "\n\t", "", ""][usize::from(chance() % 4)];
    out.push_str(space(chance));
    match doc {
        Doc::Null => out.push_str("null"),
        Doc::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Doc::Whole(number) => out.push_str(&number.to_string()),
        Doc::Float(number) if chance().is_multiple_of(2) => out.push_str(&format!("{number:e}")),
        Doc::Float(number) => out.push_str(&format!("{number:?}")),
        Doc::Text(text) => quoted(text, chance, out),
        Doc::List(list) => {
            out.push('[');
            for (at, one) in list.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                written(one, chance, out);
            }
            out.push_str(space(chance));
            out.push(']');
        }
        Doc::Object(members) => {
            out.push('{');
            for (at, (name, value)) in members.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                quoted(name, chance, out);
                out.push_str(space(chance));
                out.push(':');
                written(value, chance, out);
            }
            out.push('}');
        }
    }
    out.push_str(space(chance));
}

fn quoted(text: &str, chance: &mut impl FnMut() -> u8, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        let must = matches!(char, '"' | '\\' | '\0'..'\u{20}');
        if must || chance().is_multiple_of(8) {
            char.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(out, "\\u{unit:04X}");
            });
        } else {
            out.push(char);
        }
    }
    out.push('"');
}

fn docs() -> impl Strategy<Value = Doc> {
    let leaf = prop_oneof![
        Just(Doc::Null),
        any::<bool>().prop_map(Doc::Bool),
        any::<i64>().prop_map(Doc::Whole),
        (0..2_000_000_000i64).prop_map(Doc::Whole),
        (-1_000_000..1_000_000i32).prop_map(|eighths| Doc::Float(f64::from(eighths) / 8.0)),
        any::<String>().prop_map(Doc::Text),
        "[a-z \n]{0,900}".prop_map(Doc::Text),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Doc::List),
            members(inner).prop_map(Doc::Object),
        ]
    })
}

fn members(value: impl Strategy<Value = Doc>) -> impl Strategy<Value = Vec<(String, Doc)>> {
    let name = prop_oneof![
        "[a-z]{1,3}",
        any::<String>(),
        Just("role".to_owned()),
        Just("content".to_owned())
    ];
    prop::collection::btree_map(name, value, 0..6)
        .prop_map(|all| all.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

/// A request's members.
fn bodies() -> impl Strategy<Value = Vec<(String, Doc)>> {
    let message = members(docs()).prop_map(Doc::Object);
    let messages = prop_oneof![
        4 => prop::collection::vec(message, 1..5).prop_map(Doc::List),
        1 => prop::collection::vec(docs(), 0..5).prop_map(Doc::List),
        1 => docs(),
    ];
    (messages, prop::option::of(docs()), prop::option::of(docs()), "[a-z]{0,2}").prop_map(
        |(messages, tools, system, salt)| {
            let mut members = vec![("messages".to_owned(), messages)];
            members.extend(tools.map(|tools| ("tools".to_owned(), tools)));
            members.extend(system.map(|system| ("system".to_owned(), system)));
            members.push(("reasoning_effort".to_owned(), Doc::Text(salt.clone())));
            members.push(("cache_salt".to_owned(), Doc::Text(salt)));
            members
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn hashes_are_those_of_a_slow_reader(members in bodies(), chance: Vec<u8>) {
        let mut at = 0;
        let mut chance = || { at += 1; chance.get(at % chance.len().max(1)).copied().unwrap_or(3) };
        let mut body = String::new();
        written(&Doc::Object(members), &mut chance, &mut body);
        let read = read(&body);
        let (blocks, bytes) = reference(&body);
        prop_assert_eq!((&*read.blocks, read.bytes as usize), (&*blocks, bytes), "{}", body);
    }

    #[test]
    fn the_same_values_have_the_same_hashes_however_they_are_written(
        members in bodies(), shuffle in any::<prop::sample::Index>(), chance: Vec<u8>,
    ) {
        let mut plain = String::new();
        written(&Doc::Object(members.clone()), &mut || 3, &mut plain);
        let mut other = members;
        let mid = shuffle.index(other.len());
        other.rotate_left(mid);
        for (name, value) in &mut other {
            if let (true, Doc::List(messages)) = (name == "messages", value) {
                for message in messages {
                    if let Doc::Object(members) = message {
                        members.push(("refusal".to_owned(), Doc::Null));
                        members.reverse();
                    }
                }
            }
        }
        let mut at = 0;
        let mut chance = || { at += 1; chance.get(at % chance.len().max(1)).copied().unwrap_or(0) };
        let mut strange = String::new();
        written(&Doc::Object(other), &mut chance, &mut strange);
        prop_assert_eq!(read(&plain), read(&strange), "{}\n{}", plain, strange);
    }

    #[test]
    fn a_change_alters_the_hashes_from_its_block_on_and_none_before(
        text in "[a-z]{600,4000}", at in any::<prop::sample::Index>(),
    ) {
        let at = at.index(text.len());
        let mut changed = text.clone().into_bytes();
        changed[at] = b'!';
        let changed = String::from_utf8(changed).expect("ASCII");
        let (one, other) = (blocks(json!({"prompt": text})), blocks(json!({"prompt": changed})));
        prop_assert_eq!(one.len(), other.len());
        // The mark of a prompt without a template comes first.
        let block = ((1 + at) / BLOCK_BYTES).min(one.len());
        prop_assert_eq!(shared(&one, &other), block);
        let same = one.iter().zip(&*other).filter(|(one, other)| one == other).count();
        prop_assert_eq!(same, block, "none agrees after it");
    }
}
