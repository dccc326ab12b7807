//! Sessions of browsers on the admin port: a login with the token, kept as a cookie.
//!
//! The cookie holds a random number and nothing of the token. A session ends after a while, with a
//! logout, when the token changes, and with this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use forebay_signals::Token;
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

    /// Whether a request with these headers belongs to an open session.
    pub(super) fn has(&self, headers: &HeaderMap) -> bool {
        self.cookies(headers).any(|value| self.is_open(value, Instant::now()))
    }

    /// The values of the session's cookie that a request carries.
    fn cookies<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
        let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = all.flat_map(|value| value.split(';'));
        pairs.filter_map(|pair| pair.trim().strip_prefix(&*self.cookie)?.strip_prefix('='))
    }

    fn is_open(&self, value: &str, now: Instant) -> bool {
        let mut open = self.open.lock();
        let key = key(value);
        let Some(session) = open.get(&key) else { return false };
        let lasts = now.saturating_duration_since(session.since) < LASTS
            && self.token.is(session.token.as_bytes());
        if !lasts {
            open.remove(&key);
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
            assert_eq!(sessions.has(&with_cookie(&cookie)), want, "{cookie}");
        }
        assert!(!sessions.has(&HeaderMap::new()));
        sessions.close(&value);
        assert!(!sessions.is_open(&value, now), "logged out");
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
        assert!(both.iter().all(|sessions| sessions.has(&sent)));
    }

    #[test]
    fn a_session_ends_with_its_time_and_with_the_token() {
        let file = std::env::temp_dir().join(format!("forebay-session-{}", std::process::id()));
        std::fs::write(&file, "one").expect("written");
        let sessions = Sessions::new(Token::read(&file).expect("readable"));
        let now = Instant::now();
        let value = sessions.open("one", now).expect("the token");
        assert!(sessions.is_open(&value, now + LASTS - Duration::from_secs(1)));
        assert!(!sessions.is_open(&value, now + LASTS));
        let other = Sessions { token: Token::from("two"), ..sessions.clone() };
        let value = sessions.open("one", now).expect("the token");
        assert!(!other.is_open(&value, now), "the token has changed");
        let _ = std::fs::remove_file(&file);
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
        assert!(!sessions.is_open(&first, at(1000)) && sessions.is_open(&second, at(1000)));
    }
}
