//! Request bodies: prompts of a given length in tokens, and the JSON around them.
//!
//! A prompt is a slice of one long text of four-letter words, each about one token, from a random
//! place: cheap to make, exact in length, and without a prefix that others share by chance. Where a
//! trace says what prompts have in common, so do these.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::settings::Api;
use super::units::ExtraFields;
use crate::mix::mix;
use crate::replay::trace::PromptContent;

const WORDS: [&str; 48] = [
    "time", "year", "work", "part", "hand", "case", "week", "fact", "area", "book", "word", "side",
    "kind", "head", "home", "room", "line", "form", "door", "name", "idea", "body", "game", "city",
    "team", "food", "road", "land", "bank", "plan", "view", "rate", "wall", "king", "page", "bird",
    "tree", "wind", "fire", "star", "ship", "song", "gold", "rain", "snow", "moon", "fish", "milk",
];
/// A word and the space after it.
const WORD_BYTES: usize = 5;
/// The words at the beginning of a piece of text that make it unique: 48^8 are 2^44.
const NAME_WORDS: usize = 8;
/// Words in the text that prompts are cut from.
const TEXT_WORDS: usize = 1 << 16;

/// The text of a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PromptText<'a> {
    /// So many tokens that no other prompt has.
    Random(u32),
    /// The pieces of a trace's prompt: the same piece is the same text.
    Known(&'a PromptContent),
}

/// Makes the bodies of a run's requests.
pub(crate) struct BodyWriter {
    text: String,
    shared_prefix: usize,
    /// The JSON before the output length, after it, and after the prompt; by whether it streams.
    frames: [[String; 3]; 2],
}

impl BodyWriter {
    pub(crate) fn new(
        api: Api,
        model: &str,
        shared_prefix: u32,
        extra: &ExtraFields,
        seed: u64,
    ) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut text = String::with_capacity(TEXT_WORDS * WORD_BYTES);
        for _ in 0..TEXT_WORDS {
            text.push_str(WORDS[random.random_range(0..WORDS.len())]);
            text.push(' ');
        }
        let frames = [false, true].map(|stream| frame(api, model, stream, extra));
        Self { text, shared_prefix: shared_prefix as usize, frames }
    }

    /// The body of one request.
    pub(crate) fn body(
        &self,
        stream: bool,
        prompt: PromptText<'_>,
        output: u32,
        random: &mut SmallRng,
    ) -> Bytes {
        let [before, between, after] = &self.frames[usize::from(stream)];
        let tokens = match prompt {
            PromptText::Random(tokens) => tokens,
            PromptText::Known(content) => content.tokens(),
        } as usize;
        let length = before.len() + between.len() + after.len() + tokens * WORD_BYTES + 12;
        let mut body = String::with_capacity(length);
        body.push_str(before);
        body.push_str(&output.to_string());
        body.push_str(between);
        match prompt {
            PromptText::Random(_) => {
                let shared = tokens.min(self.shared_prefix);
                self.words(&mut body, 0, shared);
                self.words(&mut body, random.random_range(0..TEXT_WORDS), tokens - shared);
            }
            PromptText::Known(content) => {
                for segment in &content.segments {
                    self.piece(&mut body, segment.id, segment.tokens as usize);
                }
            }
        }
        body.push_str(after);
        body.into()
    }

    /// Appends the piece of text with this number: so many words, of which the first ones differ from
    /// those of every other piece.
    fn piece(&self, body: &mut String, number: u64, count: usize) {
        let hash = mix(number, 0);
        for place in 0..count.min(NAME_WORDS) {
            body.push_str(WORDS[(mix(hash, place as u64) % WORDS.len() as u64) as usize]);
            body.push(' ');
        }
        let from = (hash % TEXT_WORDS as u64) as usize;
        self.words(body, from, count.saturating_sub(NAME_WORDS));
    }

    /// Appends `count` words of the text from word `from`, around its end where needed.
    fn words(&self, body: &mut String, from: usize, count: usize) {
        let (mut from, mut left) = (from, count);
        while left > 0 {
            let taken = left.min(TEXT_WORDS - from);
            body.push_str(&self.text[from * WORD_BYTES..(from + taken) * WORD_BYTES]);
            (from, left) = (0, left - taken);
        }
    }
}

fn frame(api: Api, model: &str, stream: bool, extra: &ExtraFields) -> [String; 3] {
    let extra: String = extra
        .0
        .iter()
        .map(|(name, value)| format!("{}:{value},", Value::from(name.as_str())))
        .collect();
    let before = format!("{{\"model\":{},\"stream\":{stream},\"max_tokens\":", Value::from(model));
    let (begin, end) = match api {
        Api::Chat => (r#""messages":[{"role":"user","content":""#, r#""}]}"#),
        Api::Completions => (r#""prompt":""#, r#""}"#),
    };
    [before, format!(",{extra}{begin}"), end.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::trace::Trace;

    fn body(writer: &BodyWriter, stream: bool, prompt: u32, random: &mut SmallRng) -> Value {
        let body = writer.body(stream, PromptText::Random(prompt), 7, random);
        serde_json::from_slice(&body).expect("JSON")
    }

    #[test]
    fn a_body_has_its_lengths_and_the_further_fields() {
        let extra = r#"{"ignore_eos": true, "stop": ["\n"]}"#.parse().expect("an object");
        let mut random = SmallRng::seed_from_u64(1);
        let writer = BodyWriter::new(Api::Chat, "a\"b", 0, &extra, 1);
        let chat = body(&writer, true, 100_000, &mut random);
        assert_eq!((&chat["model"], &chat["stream"]), (&"a\"b".into(), &true.into()));
        assert_eq!((&chat["max_tokens"], &chat["ignore_eos"]), (&7.into(), &true.into()));
        let prompt = chat["messages"][0]["content"].as_str().expect("text");
        assert_eq!(prompt.split_whitespace().count(), 100_000);

        let writer = BodyWriter::new(Api::Completions, "m", 0, &ExtraFields::default(), 1);
        let completion = body(&writer, false, 3, &mut random);
        assert_eq!(completion["stream"], false);
        assert_eq!(completion["prompt"].as_str().map(str::len), Some(15));
    }

    #[test]
    fn prompts_have_in_common_what_their_trace_says() {
        let trace = Trace::read("multi-turn", "", 1).expect("a generated trace");
        let writer = BodyWriter::new(Api::Completions, "m", 0, &ExtraFields::default(), 1);
        let mut random = SmallRng::seed_from_u64(1);
        let mut known: Vec<(&PromptContent, String)> = Vec::new();
        let mut pairs_with_common_text = 0;
        for number in 0..60 {
            let content = trace.content(number).expect("it has contents");
            let body = writer.body(true, PromptText::Known(content), 7, &mut random);
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            let text = body["prompt"].as_str().expect("text").to_owned();
            assert_eq!(text.len(), content.tokens() as usize * WORD_BYTES);
            for (other, earlier) in &known {
                let pairs = content.segments.iter().zip(&other.segments);
                let same = pairs.take_while(|(one, other)| one == other);
                let same: u32 = same.map(|(segment, _)| segment.tokens).sum();
                let common = text.bytes().zip(earlier.bytes());
                let common = common.take_while(|(one, other)| one == other).count();
                let least = same as usize * WORD_BYTES;
                pairs_with_common_text += u32::from(least > 0);
                assert!((least..least + NAME_WORDS * WORD_BYTES).contains(&common), "{number}");
            }
            known.push((content, text));
        }
        assert!(pairs_with_common_text > 10, "{pairs_with_common_text}");
    }

    #[test]
    fn prompts_share_the_prefix_that_was_set_and_no_other() {
        let mut random = SmallRng::seed_from_u64(1);
        let writer = BodyWriter::new(Api::Completions, "m", 50, &ExtraFields::default(), 1);
        let prompts: Vec<String> = (0..20)
            .map(|_| body(&writer, true, 100, &mut random)["prompt"].as_str().expect("text").into())
            .collect();
        let shared = &prompts[0][..50 * WORD_BYTES];
        assert!(prompts.iter().all(|prompt| prompt.starts_with(shared)));
        let mut rest: Vec<_> = prompts.iter().map(|prompt| &prompt[shared.len()..][..25]).collect();
        rest.sort_unstable();
        rest.dedup();
        assert_eq!(rest.len(), 20);
    }
}
