//! Sessions of browsers on the admin port: a login with the token, kept as a cookie.
//!
//! The cookie holds a random number and nothing of the token. A session ends after a while, with a
//! logout, when the token changes, and with this process. The streams that it opened end with it.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use forebay_signals::Token;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// The cookie's name begins with this. Browsers ignore the port of a cookie's origin, so each process has a
/// name of its own: two consoles that are forwarded to ports of one host do not end each other's sessions.
const COOKIE: &str = "forebay_session_";
/// How long a session lasts.
const LASTS: Duration = Duration::from_secs(12 * 60 * 60);
/// Sessions at once; the oldest makes way for a new one.
const MOST: usize = 256;

/// The sessions, and the token that opens one.
#[derive(Clone)]
pub(super) struct Sessions {
    token: Token,
    /// The cookie's name.
    cookie: Arc<str>,
    /// By the hash of the cookie's value, so that the time of a look-up says nothing about the value.
    open: Arc<Mutex<BTreeMap<[u8; 32], Session>>>,
}

struct Session {
    since: Instant,
    /// The token that opened it.
    token: Arc<str>,
}

impl Sessions {
    pub(super) fn new(token: Token) -> Self {
        let cookie = format!("{COOKIE}{:08x}", rand::random::<u32>()).into();
        Self { token, cookie, open: Arc::default() }
    }

    /// `POST /login` with the token as the body, and `POST /logout`.
    pub(super) fn routes(&self) -> Router {
        Router::new()
            .route("/login", post(login))
            .route("/logout", post(logout))
            .with_state(self.clone())
    }

    /// The open session that a request with these headers belongs to.
    pub(super) fn of(&self, headers: &HeaderMap) -> Option<OpenSession> {
        let keys = self.cookies(headers).map(key);
        let mut sessions = keys.map(|key| OpenSession { sessions: self.clone(), key });
        sessions.find(OpenSession::lasts)
    }

    /// The values of the session's cookie that a request carries.
    fn cookies<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
        let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = all.flat_map(|value| value.split(';'));
        pairs.filter_map(|pair| pair.trim().strip_prefix(&*self.cookie)?.strip_prefix('='))
    }

    fn is_open(&self, key: &[u8; 32], now: Instant) -> bool {
        let mut open = self.open.lock();
        let Some(session) = open.get(key) else { return false };
        let lasts = now.saturating_duration_since(session.since) < LASTS
            && self.token.is(session.token.as_bytes());
        if !lasts {
            open.remove(key);
        }
        lasts
    }

    /// Opens a session; returns the cookie's value, or `None` if this is not the token.
    fn open(&self, sent: &str, now: Instant) -> Option<String> {
        if !self.token.is(sent.trim()) {
            return None;
        }
        let value = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let mut open = self.open.lock();
        while open.len() >= MOST {
            let oldest = open.iter().min_by_key(|(_, session)| session.since);
            let Some(oldest) = oldest.map(|(key, _)| *key) else { break };
            open.remove(&oldest);
        }
        open.insert(key(&value), Session { since: now, token: sent.trim().into() });
        Some(value)
    }

    fn close(&self, value: &str) {
        self.open.lock().remove(&key(value));
    }
}

/// The session of one request.
pub(super) struct OpenSession {
    sessions: Sessions,
    key: [u8; 32],
}

impl OpenSession {
    fn lasts(&self) -> bool {
        self.sessions.is_open(&self.key, Instant::now())
    }

    /// The answer to its request; a stream ends before the first data that come after the session's end.
    pub(super) fn answer(self, response: Response) -> Response {
        if response.body().size_hint().exact().is_some() {
            return response;
        }
        response.map(|body| {
            let data = body.into_data_stream();
            Body::from_stream(data.take_while(move |_| ready(self.lasts())))
        })
    }
}

fn key(value: &str) -> [u8; 32] {
    Sha256::digest(value.as_bytes()).into()
}

async fn login(State(sessions): State<Sessions>, body: String) -> Response {
    match sessions.open(&body, Instant::now()) {
        Some(value) => {
            let seconds = LASTS.as_secs();
            let name = &sessions.cookie;
            let cookie =
                format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict");
            let cookie = HeaderValue::try_from(cookie).expect("digits and names only");
            ([(header::SET_COOKIE, cookie)], "logged in\n").into_response()
        }
        None => {
            let why = "this is not the token of admin.tokenFile\n";
            (StatusCode::UNAUTHORIZED, why).into_response()
        }
    }
}

async fn logout(State(sessions): State<Sessions>, headers: HeaderMap) -> Response {
    sessions.cookies(&headers).for_each(|value| sessions.close(value));
    let name = &sessions.cookie;
    let gone = format!("{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict");
    let gone = HeaderValue::try_from(gone).expect("names only");
    ([(header::SET_COOKIE, gone)], "logged out\n").into_response()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(Token::from("secret"))
    }

    fn with_cookie(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, text.parse().expect("text"))])
    }

    #[test]
    fn only_the_token_opens_a_session_and_only_its_cookie_belongs_to_it() {
        let sessions = sessions();
        let now = Instant::now();
        assert_eq!(sessions.open("Secret", now), None);
        assert_eq!(sessions.open("", now), None);
        let value = sessions.open("secret\n", now).expect("the token");
        assert!(!value.contains("secret"));
        let name = &sessions.cookie;
        for (cookie, want) in [
            (format!("{name}={value}"), true),
            (format!("theme=dark; {name}={value}; x=y"), true),
            (format!("{name}=0; {name}={value}"), true),
            (format!("other_{name}={value}"), false),
            (format!("{COOKIE}={value}"), false),
            (format!("{name}={}", &value[1..]), false),
            (format!("{name}=secret"), false),
            (format!("{name}="), false),
        ] {
            assert_eq!(sessions.of(&with_cookie(&cookie)).is_some(), want, "{cookie}");
        }
        assert!(sessions.of(&HeaderMap::new()).is_none());
        sessions.close(&value);
        assert!(!sessions.is_open(&key(&value), now), "logged out");
    }

    #[test]
    fn a_browser_keeps_its_sessions_at_two_processes_on_one_host() {
        // As with two consoles that are forwarded to ports of 127.0.0.1.
        let both = [sessions(), sessions()];
        assert_ne!(both[0].cookie, both[1].cookie, "one would replace the other");
        let cookie = |sessions: &Sessions| {
            let value = sessions.open("secret", Instant::now()).expect("the token");
            format!("{}={value}", sessions.cookie)
        };
        let sent = with_cookie(&both.each_ref().map(cookie).join("; "));
        assert!(both.iter().all(|sessions| sessions.of(&sent).is_some()));
    }

    #[test]
    fn a_session_ends_with_its_time_and_with_the_token() {
        let file = std::env::temp_dir().join(format!("forebay-session-{}", std::process::id()));
        std::fs::write(&file, "one").expect("written");
        let sessions = Sessions::new(Token::read(&file).expect("readable"));
        let now = Instant::now();
        let value = sessions.open("one", now).expect("the token");
        assert!(sessions.is_open(&key(&value), now + LASTS - Duration::from_secs(1)));
        assert!(!sessions.is_open(&key(&value), now + LASTS));
        let other = Sessions { token: Token::from("two"), ..sessions.clone() };
        let value = sessions.open("one", now).expect("the token");
        assert!(!other.is_open(&key(&value), now), "the token has changed");
        let _ = std::fs::remove_file(&file);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_with_its_session_and_a_whole_answer_is_left_as_it_is() {
        let end_after = async |end: &dyn Fn(&Sessions, &str)| {
            let sessions = sessions();
            let value = sessions.open("secret", Instant::now()).expect("the token");
            let sent = with_cookie(&format!("{}={value}", sessions.cookie));
            let session = || sessions.of(&sent).expect("open");
            let (events, feed) = tokio::sync::mpsc::unbounded_channel();
            let feed = futures_util::stream::unfold(feed, async |mut feed| {
                feed.recv().await.map(|event: &'static str| (Ok::<_, Infallible>(event), feed))
            });
            let stream = session().answer(Body::from_stream(feed).into_response());
            let whole = session().answer("whole".into_response());
            assert_eq!(whole.body().size_hint().exact(), Some(5));
            events.send("first ").expect("read");
            let mut stream = stream.into_body().into_data_stream();
            assert_eq!(stream.next().await.expect("an event").expect("no error"), "first ");
            end(&sessions, &value);
            events.send("second ").expect("read");
            stream.next().await.map(|event| event.expect("no error"))
        };
        assert_eq!(end_after(&|_, _| {}).await.as_deref(), Some(&b"second "[..]));
        assert_eq!(end_after(&|sessions, value| sessions.close(value)).await, None, "a logout");
        let expire = |sessions: &Sessions, _: &str| {
            sessions.open.lock().values_mut().for_each(|session| session.token = "old".into());
        };
        assert_eq!(end_after(&expire).await, None, "the token has changed");
    }

    #[test]
    fn sessions_are_bounded_and_the_oldest_makes_way() {
        let sessions = sessions();
        let now = Instant::now();
        let at = |n: u64| now + Duration::from_secs(n);
        let first = sessions.open("secret", at(0)).expect("the token");
        let second = sessions.open("secret", at(1)).expect("the token");
        (0..MOST as u64 - 1).for_each(|n| {
            sessions.open("secret", at(2 + n)).expect("the token");
        });
        assert_eq!(sessions.open.lock().len(), MOST);
        assert!(
            !sessions.is_open(&key(&first), at(1000)) && sessions.is_open(&key(&second), at(1000))
        );
    }
}
