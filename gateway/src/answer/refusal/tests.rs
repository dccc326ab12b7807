use std::collections::BTreeSet;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Lists an example of each kind of refusal with its status. A variant without a row does not
/// compile.
macro_rules! examples {
    ($($pattern:pat => $example:expr, $status:literal;)*) => {
        fn examples() -> Vec<(Refusal, u16)> {
            let _every_variant_has_a_row = |refusal: &Refusal| {
                use Refusal::*;
                match refusal { $($pattern => {})* }
            };
            vec![$(($example, $status)),*]
        }
    };
}

examples! {
    UnknownPath(_) => Refusal::UnknownPath("/x".into()), 404;
    NotExposed { .. } => Refusal::NotExposed { path: "/x".into(), hint: " Did you mean `/y`?".into() }, 404;
    WrongMethod { .. } => Refusal::WrongMethod { path: "/x".into(), method: "PUT".into(), allowed: "POST" }, 405;
    BadHead(_) => Refusal::BadHead("no host"), 400;
    ForeignHost(_) => Refusal::ForeignHost("evil.example".into()), 403;
    ForeignOrigin(_) => Refusal::ForeignOrigin("null".into()), 403;
    NotJson => Refusal::NotJson, 400;
    Compressed(_) => Refusal::Compressed("gzip".into()), 415;
    Expectation => Refusal::Expectation, 417;
    UpgradeRequired => Refusal::UpgradeRequired, 426;
    TooManyHeaders(_) => Refusal::TooManyHeaders(100), 431;
    BadBody(_) => Refusal::BadBody("broken".into()), 400;
    BadRequest { .. } => Refusal::BadRequest { message: "twice".into(), param: Some("model") }, 400;
    BodyTooLarge(_) => Refusal::BodyTooLarge(1), 413;
    BodyTooSlow(_) => Refusal::BodyTooSlow(SECOND), 408;
    BodiesFull => Refusal::BodiesFull, 503;
    ClientBodiesFull(_) => Refusal::ClientBodiesFull("tenant `a`".into()), 429;
    Shortage(_) => Refusal::Shortage("no more files".into()), 503;
    LongModel(_) => Refusal::LongModel(256), 400;
    UnknownModel { .. } => Refusal::UnknownModel { model: "x".into(), known: "`a`".into() }, 404;
    NoModel { .. } => Refusal::NoModel { known: "`a`".into() }, 400;
    NoKey => Refusal::NoKey, 401;
    WrongKey => Refusal::WrongKey, 401;
    ForbiddenModel { .. } => Refusal::ForbiddenModel { tenant: "a".into(), model: "m".into() }, 403;
    Limited { .. } => limited(), 429;
    QueueFull { .. } => Refusal::QueueFull { held: 1, retry_after: SECOND, why: String::new() }, 429;
    HoldExpired { .. } => Refusal::HoldExpired { waited: SECOND, retry_after: SECOND, why: String::new() }, 503;
    CannotStartInTime { .. } => Refusal::CannotStartInTime { expected: Some(SECOND), retry_after: SECOND }, 503;
    StartFailed { .. } => Refusal::StartFailed { why: ": it exited".into(), retry_after: SECOND }, 503;
    Exhausted { last: Failure { cause: Cause::QueueFull, .. }, .. } => exhausted(Cause::QueueFull), 503;
    Exhausted { .. } => exhausted(Cause::Connect), 502;
    Poison => Refusal::Poison, 500;
    Failed(Failure { cause: Cause::KeyRefused, .. }) => Refusal::Failed(Failure::new(Cause::KeyRefused, "401")), 502;
    Failed(_) => Refusal::Failed(Failure::of(500, "a bug".into())), 500;
    TooLong(_) => Refusal::TooLong(SECOND), 504;
    PoolRemoved => Refusal::PoolRemoved, 503;
    ShuttingDown => Refusal::ShuttingDown, 503;
    ClientLeft => Refusal::ClientLeft, 408;
}

fn limited() -> Refusal {
    Refusal::Limited { tenant: "a".into(), limit: Limit::Requests(60), retry_after: SECOND }
}

fn exhausted(cause: Cause) -> Refusal {
    Refusal::Exhausted { counted_tries: 2, last: Failure::new(cause, "no answer") }
}

#[test]
fn every_refusal_has_vllms_shape_and_its_own_status() {
    for (refusal, status) in examples() {
        let body = refusal.body(ErrorShape::OpenAi);
        assert_eq!(body["error"]["code"], status, "{refusal}");
        assert_eq!(body["error"]["message"], refusal.to_string());
        assert!(body["error"]["type"].is_string());
        let anthropic = refusal.body(ErrorShape::Anthropic);
        assert_eq!(anthropic["error"]["message"], refusal.to_string());
        let response = refusal.response(ErrorShape::OpenAi);
        assert_eq!(response.status(), status);
        let retry = response.headers().contains_key(header::RETRY_AFTER);
        assert_eq!(retry, matches!(status, 429 | 503), "{refusal}: retry-after");
    }
}

#[test]
fn the_page_of_answers_lists_every_refusal() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/answers.md");
    let page = std::fs::read_to_string(page).expect("docs/answers.md");
    let section = page.split("\n## The gateway's own errors\n").nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    // Reason, status and type are the first columns; the last says whether there is a `retry-after`.
    let listed: BTreeSet<String> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            format!("{} {} {} {}", cells[0], cells[1], cells[2], cells[4] != "no")
        })
        .collect();
    let wanted = examples().into_iter().map(|(refusal, status)| {
        let retry = matches!(status, 429 | 503);
        format!("`{}` {status} `{}` {retry}", refusal.reason(), refusal.status().1)
    });
    assert_eq!(listed, wanted.collect::<BTreeSet<_>>());
}
