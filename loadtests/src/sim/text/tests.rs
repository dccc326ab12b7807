use super::*;
use proptest::prelude::*;

#[test]
fn the_tokens_of_a_reply_have_its_text() {
    let script = Script::new(7, &rule(400, &[]));
    let ids: Vec<u32> = (0..400).map(|at| script.token_id(at)).collect();
    assert_eq!(detokenize(&ids), shown_text(&script));
    let split = (0..400).find(|at| script.splits(*at)).expect("one of 64") as usize;
    assert_eq!(detokenize(&ids[..=split]), detokenize(&ids[..split]) + "\u{fffd}");
    let text = Prompt::text("hello, x").token_ids();
    assert_eq!(
        detokenize(&[&text[..], &ids[..1]].concat()),
        "hello, x".to_owned() + script.piece(0)
    );
    assert_eq!(detokenize(&Prompt::text("hello").token_ids()), "hello");
}

fn shown_text(script: &Script) -> String {
    let mut cursor = Cursor::of(script);
    (0..script.to_generate()).map(|_| cursor.next(script)).collect()
}

fn rule(max_tokens: u32, stop: &[String]) -> LengthRule<'_> {
    LengthRule { max_tokens, min_tokens: 0, stop, eos: None }
}

#[test]
fn four_bytes_are_a_token_and_tokens_turn_back_into_text() {
    let prompt = Prompt::text("hello there");
    assert_eq!((prompt.tokens(), prompt.token_ids().len()), (3, 3));
    assert_eq!(Prompt::ids(&prompt.token_ids()).detokenize(), "hello there");
    assert_eq!(Prompt::ids(&[40, 41]).tokens(), 2);
    assert_eq!(Prompt::ids(&prompt.token_ids()), prompt);
    assert_eq!(Prompt::ids(&[40, 0]).tokens(), 2);
}

#[test]
fn prompts_share_the_blocks_of_their_common_start_and_adapters_share_none() {
    let (a, b) = (Prompt::text(&"abcd".repeat(8)), Prompt::text(&("abcd".repeat(6) + "xxxx")));
    let (of_a, of_b) = (a.blocks(2, 0), b.blocks(2, 0));
    assert_eq!((of_a.len(), of_b.len()), (4, 3));
    assert_eq!(of_a[..3], of_b[..3]);
    assert_ne!(a.blocks(2, 1)[0], of_a[0]);
}

#[test]
fn a_reply_goes_on_from_any_of_its_tokens() {
    let text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
    let prompt = Prompt::text(text);
    let whole = Script::new(prompt.hash(3), &rule(200, &[]));
    let ids: Vec<u32> = (0..whole.tokens).map(|at| whole.token_id(at)).collect();
    for cut in 1..whole.tokens {
        let (before, after) = ids.split_at(cut as usize);
        let all = Prompt::ids(&[&prompt.token_ids(), before].concat());
        let resumed = all.with_reply().find_map(|(start, given)| {
            Script::new(start.hash(3), &rule(200, &[])).after(&start, &given)
        });
        let resumed = resumed.expect("the beginning of this reply");
        let numbers = resumed.generated(resumed.to_generate());
        assert_eq!(numbers.map(|at| resumed.token_id(at)).collect::<Vec<_>>(), after);
        let shown: String = (0..cut).map(|at| whole.piece(at)).collect();
        let text = shown_text(&resumed);
        if whole.splits(cut - 1) {
            let start = format!("user\nhello\nassistant\n{shown} —");
            assert!(text.starts_with(&start), "cut within a character: {text}");
        } else {
            assert_eq!(shown + &text, shown_text(&whole), "after {cut}");
        }
    }
    let other = [&prompt.token_ids()[..], &[7, 7, 7]].concat();
    let other = Prompt::ids(&other);
    let none = other.with_reply().find_map(|(start, given)| {
        Script::new(start.hash(3), &rule(200, &[])).after(&start, &given)
    });
    assert_eq!(none, None, "no reply begins so");
}

#[test]
fn a_reply_ends_on_its_own_within_its_bounds_unless_eos_is_ignored() {
    for key in 0..200 {
        let eos = LengthRule { eos: Some((50, 300)), ..rule(1000, &[]) };
        let script = Script::new(key, &eos);
        assert!((50..=300).contains(&script.tokens) && script.reason == Reason::Stop);
        let long = Script::new(key, &rule(1000, &[]));
        assert_eq!((long.tokens, long.reason), (1000, Reason::Length));
    }
}

#[test]
fn a_written_text_is_given_out_whole_or_cut_by_its_length() {
    let text = r#"{"city":"Zürich — Höngg"}"#;
    for silent in [0, 1] {
        let whole = Script::written(1, silent, text, &rule(100, &[]));
        assert_eq!((shown_text(&whole), &whole.reason), (text.to_owned(), &Reason::Stop));
        let exact = Script::written(1, silent, text, &rule(whole.tokens, &[]));
        assert_eq!(exact, whole);
        let cut = Script::written(1, silent, text, &rule(whole.tokens - 1, &[]));
        assert_eq!((shown_text(&cut), &cut.reason), (text.to_owned(), &Reason::Length));
        let cut = Script::written(1, silent, text, &rule(2, &[]));
        assert!(text.starts_with(&shown_text(&cut)) && cut.tokens == 2);
    }
    let stop = ["Zür".to_owned()];
    let stopped = Script::written(1, 0, text, &rule(100, &stop));
    assert_eq!(shown_text(&stopped), r#"{"city":""#);
}

#[test]
fn text_that_may_begin_a_stop_string_is_held_back_until_the_end() {
    let stops = ["#".to_owned(), "é###".to_owned()];
    let script = Script::new(7, &rule(60, &stops));
    let (mut cursor, mut given) = (Cursor::of(&script), String::new());
    for at in 1..=60 {
        given += &cursor.next(&script);
        let tokens: String = (0..at).map(|at| script.piece(at)).collect();
        // vLLM holds back as many characters as the longest stop string has, less one.
        let held = if at == 60 { 0 } else { 3 };
        let want = tokens.chars().count().saturating_sub(held);
        assert_eq!(given, tokens.chars().take(want).collect::<String>(), "{at}");
        assert_eq!(cursor.offset(), given.chars().count());
    }
    let mut cut = Cursor::of(&script);
    let begun: String = (0..9).map(|_| cut.next(&script)).collect();
    let tokens: String = (0..9).map(|at| script.piece(at)).collect();
    assert_eq!(begun + &cut.rest(), tokens);
    // One character can't begin anything.
    let short = Script::new(7, &rule(60, &stops[..1]));
    assert_eq!(Cursor::of(&short).next(&short), short.piece(0));
}

proptest! {
    #[test]
    fn a_stop_string_and_what_follows_it_are_never_shown(
        key: u64, stop in "[a-z —]{1,6}", max in 1..400u32,
    ) {
        let whole = shown_text(&Script::new(key, &rule(max, &[])));
        let stops = [stop.clone()];
        let script = Script::new(key, &rule(max, &stops));
        let cut = shown_text(&script);
        prop_assert_eq!(&cut, whole.split(stop.as_str()).next().unwrap_or_default());
        prop_assert_eq!(whole.contains(&stop), script.reason == Reason::StopString(stop));
    }
}
