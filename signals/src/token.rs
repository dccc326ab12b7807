//! The admin ports' bearer token, from a file that may change. It is read when it is needed, without a
//! task: commands that run once use it too.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;
use tokio::time::Instant;

/// How long a reading counts as fresh.
const FRESH: Duration = Duration::from_secs(1);

/// A token whose file is read again when it is needed, at most once a second. While the file can't be
/// read, the token stays. Where its volume hangs, the reading thread alone does.
#[derive(Clone)]
pub struct Token {
    file: Option<PathBuf>,
    last: Arc<RwLock<(Arc<str>, Instant)>>,
}

impl Token {
    /// Reads the token of `file`.
    ///
    /// # Errors
    /// It can't be read, or is empty.
    pub fn read(file: &Path) -> io::Result<Self> {
        let last = Arc::new(RwLock::new((text(file)?, Instant::now())));
        Ok(Self { file: Some(file.to_owned()), last })
    }

    /// The token as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<str> {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Arc<str> {
        let fresh = |read: Instant| now.saturating_duration_since(read) < FRESH;
        let (last, read) = self.last.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(file) = self.file.as_deref().filter(|_| !fresh(read)) else { return last };
        {
            let mut last = self.last.write().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have been first.
            if fresh(last.1) {
                return Arc::clone(&last.0);
            }
            last.1 = now;
        }
        // Without the lock: other threads go on with the last token, however long this takes.
        let read = text(file);
        let mut last = self.last.write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(new) = read {
            last.0 = new;
        }
        Arc::clone(&last.0)
    }

    /// Whether a request with these headers shows the token.
    #[must_use]
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        bearers(headers).any(|sent| self.is(sent))
    }

    /// Whether `sent` is the token. The time that the comparison takes does not depend on where they
    /// differ.
    #[must_use]
    pub fn is(&self, sent: impl AsRef<[u8]>) -> bool {
        self.current().as_bytes().ct_eq(sent.as_ref()).into()
    }
}

/// The values of `authorization: Bearer`; the scheme's case does not matter, as in HTTP.
pub fn bearers(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, sent) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| sent.trim_ascii())
    })
}

fn text(file: &Path) -> io::Result<Arc<str>> {
    let text = fs::read_to_string(file)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(text.into())
}

/// Shows the file and not the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("file", &self.file).finish_non_exhaustive()
    }
}

/// A token that does not change.
impl From<&str> for Token {
    fn from(text: &str) -> Self {
        Self { file: None, last: Arc::new(RwLock::new((text.into(), Instant::now()))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_as_bearer_in_any_case() {
        let token = Token::from("secret");
        for (sent, want) in [
            ("Bearer secret", true),
            ("bearer secret", true),
            ("BEARER   secret ", true),
            ("Bearer Secret", false),
            ("Bearersecret", false),
            ("Basic secret", false),
            ("secret", false),
            ("Bearer ", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, sent.parse().unwrap())]);
            assert_eq!(token.is_in(&headers), want, "{sent:?}");
        }
        assert!(!token.is_in(&HeaderMap::new()));
    }

    #[test]
    fn a_token_changes_with_its_file_and_stays_when_that_is_gone() {
        let file = std::env::temp_dir().join(format!("forebay-token-{}", std::process::id()));
        assert!(Token::read(&file).is_err(), "not there");
        fs::write(&file, " \n").unwrap();
        assert!(Token::read(&file).is_err(), "empty");
        fs::write(&file, "one\n").unwrap();
        let token = Token::read(&file).unwrap();
        assert!(token.is("one") && !token.is("two") && !token.is("on") && !token.is(""));
        let mut now = Instant::now();
        let mut later = || {
            now += FRESH;
            token.at(now)
        };
        fs::write(&file, "two").unwrap();
        assert_eq!(&*later(), "two");
        fs::write(&file, "three").unwrap();
        assert!(token.is("two"), "read a moment ago");
        assert_eq!(&*later(), "three");
        fs::write(&file, "").unwrap();
        assert_eq!(&*later(), "three", "half written");
        fs::remove_file(&file).unwrap();
        assert_eq!(&*later(), "three");
        assert!(!format!("{token:?}").contains("three"));
    }

    #[test]
    fn a_file_that_hangs_holds_up_one_reader_alone() {
        let file = std::env::temp_dir().join(format!("forebay-fifo-{}", std::process::id()));
        fs::write(&file, "one").unwrap();
        let token = Token::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        // Opening a pipe waits for its writer, as a file waits for a volume that hangs.
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        let now = Instant::now() + FRESH;
        let (read, tokens) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let (token, read) = (token.clone(), read.clone());
            std::thread::spawn(move || read.send(token.at(now)));
        }
        let wait = Duration::from_secs(60);
        assert_eq!(tokens.recv_timeout(wait).as_deref(), Ok("one"), "the other reader goes on");
        fs::write(&file, "two").unwrap();
        assert_eq!(tokens.recv_timeout(wait).as_deref(), Ok("two"));
        fs::remove_file(&file).unwrap();
    }
}
