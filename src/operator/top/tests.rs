use axum::routing::get;
use forebay_scaler::overview::{StateCounts, Trouble, TroubleKind};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyEvent;
use tokio_util::task::AbortOnDropHandle;

use super::look::PastDecision;
use super::*;
use crate::console::LEADER;

fn screen() -> Screen {
    let pool = |held, ready| {
        let replicas = StateCounts { ready, ..StateCounts::default() };
        Arc::new(PoolOverview { held, replicas, desired: ready, ..PoolOverview::default() })
    };
    let mut failing = (*pool(3, 0)).clone();
    let text = "no replica can be started: \u{1b}[31mred".to_owned();
    failing.troubles = vec![Trouble { kind: TroubleKind::CannotStart, text }];
    let pools = [("a", pool(0, 1)), ("b", pool(9, 2)), ("c", Arc::new(failing))];
    let mut screen = Screen {
        pools: pools.map(|(name, pool)| (name.to_owned(), pool)).into(),
        seen: Seen {
            decisions: vec![PastDecision {
                at_millis: 0,
                why: "scaling 0 → 1".to_owned(),
                current: false,
            }],
            silent: vec!["the gateway at http://10.0.0.1:9900 is silent".to_owned()],
            ..Seen::default()
        },
        ..Screen::default()
    };
    screen.choose(0);
    screen
}

fn drawn(screen: &mut Screen) -> String {
    let mut terminal = Terminal::new(TestBackend::new(160, 30)).expect("a screen");
    terminal.draw(|frame| screen.draw(frame, 300_000)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(160);
    lines.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
}

#[test]
fn the_screen_has_all_pools_and_the_chosen_one_in_detail() {
    let mut screen = screen();
    let text = drawn(&mut screen);
    for part in
        ["3 pools, 3 of 3 replicas ready, 12 held", "2 ready", " live ", "5 m ago  scaling 0 → 1"]
    {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert!(text.contains("! the gateway at http://10.0.0.1:9900 is silent"), "{text}");
    screen.choose(2);
    let text = drawn(&mut screen);
    assert!(text.contains("! no replica can be started:  [31mred"), "{text}");
    screen.lost = Some("connection refused".to_owned());
    let text = drawn(&mut screen);
    assert!(text.contains("these figures are old: connection refused"), "{text}");
}

#[test]
fn the_choice_stays_with_its_pool_when_the_order_changes_and_within_the_list() {
    let mut screen = screen();
    assert_eq!(screen.chosen.as_deref(), Some("a"));
    screen.order = PoolOrder::Held;
    assert_eq!((screen.chosen.as_deref(), screen.place()), (Some("a"), Some(2)));
    screen.choose(-1);
    assert_eq!(screen.chosen.as_deref(), Some("c"));
    screen.choose(-10);
    assert_eq!(screen.chosen.as_deref(), Some("b"));
    screen.choose(10);
    assert_eq!(screen.chosen.as_deref(), Some("a"));
    screen.pools.remove("a");
    screen.choose(0);
    assert_eq!(screen.chosen.as_deref(), Some("b"), "the chosen one is gone");
}

#[test]
fn a_peak_stays_when_an_hour_is_drawn_in_few_columns() {
    let mut values = vec![1; 360];
    values[200] = 50;
    let fitted = fitted(&values, 60);
    assert_eq!((fitted.len(), fitted.iter().max()), (60, Some(&50)));
    assert_eq!(super::fitted(&[1, 2], 4), [1, 1, 2, 2], "a young history fills the width");
    assert_eq!(super::fitted(&[], 4), [0; 0]);
}

#[tokio::test]
async fn keys_work_while_the_far_end_hangs() {
    let asked = Arc::new(tokio::sync::Notify::new());
    let hang = {
        let asked = Arc::clone(&asked);
        async move || -> String {
            asked.notify_one();
            std::future::pending().await
        }
    };
    let feed = forebay_signals::publisher::Publisher::new();
    feed.publish([("a".to_owned(), PoolOverview::default())].into());
    let app = axum::Router::new().route("/overview", feed.route()).route("/history", get(hang));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let client = AdminClient::at(listener.local_addr().expect("bound"));
    let server = tokio::spawn(async { axum::serve(listener, app).await });
    let mut terminal = Terminal::new(TestBackend::new(160, 30)).expect("a screen");
    let (sender, keys) = mpsc::channel(16);
    let leave = async {
        asked.notified().await;
        sender.send(Wish::End).await.expect("it listens");
    };
    let shown = async { tokio::join!(show(&mut terminal, &client, client.clone(), keys), leave).0 };
    let ended = tokio::time::timeout(Duration::from_secs(20), shown).await;
    ended.expect("it ends with the key").expect("in good order");
    server.abort();
}

#[tokio::test]
async fn the_screen_goes_over_to_another_scaler_that_leads() {
    let serve = async |router: axum::Router| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        (
            address,
            AbortOnDropHandle::new(tokio::spawn(async { axum::serve(listener, router).await })),
        )
    };
    let feed = forebay_signals::publisher::Publisher::new();
    feed.publish([("taken-over".to_owned(), PoolOverview::default())].into());
    let asked = Arc::new(tokio::sync::Notify::new());
    let history = {
        let asked = Arc::clone(&asked);
        async move || {
            asked.notify_one();
            "{}"
        }
    };
    let leads =
        axum::Router::new().route("/overview", feed.route()).route("/history", get(history));
    let (leader, _leads) = serve(leads).await;
    let named = [(LEADER, format!("http://{leader}"))];
    let standby = axum::Router::new()
        .route("/overview", get(async || axum::http::StatusCode::SERVICE_UNAVAILABLE))
        .route("/gateways", get(async move || (named, "[]")));
    let (standby, _stands_by) = serve(standby).await;
    let first = AdminClient::at(standby);
    let mut terminal = Terminal::new(TestBackend::new(160, 30)).expect("a screen");
    let (sender, keys) = mpsc::channel(16);
    let leave = async {
        asked.notified().await;
        sender.send(Wish::End).await.expect("it listens");
    };
    let shown = async { tokio::join!(show(&mut terminal, &first, first.clone(), keys), leave).0 };
    let ended = tokio::time::timeout(Duration::from_secs(20), shown).await;
    ended.expect("it finds the leader").expect("in good order");
    let cells = terminal.backend().buffer().content();
    let text: String = cells.iter().map(|cell| cell.symbol()).collect();
    assert!(text.contains(&leader.to_string()) && text.contains("taken-over"), "{text}");
}

#[test]
fn keys_are_read_as_wishes() {
    let press = |code, modifiers| wish(&Event::Key(KeyEvent::new(code, modifiers)));
    assert_eq!(press(KeyCode::Char('q'), KeyModifiers::NONE), Some(Wish::End));
    assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Wish::End));
    assert_eq!(press(KeyCode::Char('c'), KeyModifiers::NONE), None);
    assert_eq!(press(KeyCode::Down, KeyModifiers::NONE), Some(Wish::Move(1)));
}
