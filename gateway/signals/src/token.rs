//! The admin ports' bearer token, from a file that may change.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use subtle::ConstantTimeEq;

/// A token that is read anew whenever it is needed: by those who send it with each connection, by
/// the port with each request. When its file can't be read, it stays what it was.
#[derive(Clone)]
pub struct Token {
    file: Option<PathBuf>,
    last: Arc<RwLock<Arc<str>>>,
}

impl Token {
    /// Reads the token of `file`.
    ///
    /// # Errors
    /// It can't be read, or is empty.
    pub fn read(file: &Path) -> io::Result<Self> {
        let last = Arc::new(RwLock::new(text(file)?));
        Ok(Self { file: Some(file.to_owned()), last })
    }

    /// The token as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<str> {
        let mut last = self.last.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(new)) = self.file.as_deref().map(text) {
            *last = new;
        }
        Arc::clone(&last)
    }

    /// Whether `sent` is the token; how long that takes tells nothing about where they differ.
    #[must_use]
    pub fn is(&self, sent: &str) -> bool {
        self.current().as_bytes().ct_eq(sent.as_bytes()).into()
    }
}

fn text(file: &Path) -> io::Result<Arc<str>> {
    let text = fs::read_to_string(file)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(text.into())
}

/// Never the token itself.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("file", &self.file).finish_non_exhaustive()
    }
}

/// One that does not change.
impl From<&str> for Token {
    fn from(text: &str) -> Self {
        Self { file: None, last: Arc::new(RwLock::new(text.into())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_changes_with_its_file_and_stays_when_that_is_gone() {
        let file = std::env::temp_dir().join(format!("forebay-token-{}", std::process::id()));
        assert!(Token::read(&file).is_err(), "not there");
        fs::write(&file, " \n").unwrap();
        assert!(Token::read(&file).is_err(), "empty");
        fs::write(&file, "one\n").unwrap();
        let token = Token::read(&file).unwrap();
        assert!(token.is("one") && !token.is("two") && !token.is("on") && !token.is(""));
        fs::write(&file, "two").unwrap();
        assert!(token.is("two") && !token.is("one"));
        fs::write(&file, "").unwrap();
        assert!(token.is("two") && !token.is(""), "half written");
        fs::remove_file(&file).unwrap();
        assert!(token.is("two"));
        assert!(!format!("{token:?}").contains("two"));
    }
}
