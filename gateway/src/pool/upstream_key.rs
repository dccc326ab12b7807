//! The API key of a pool's replicas, from a file that may change.

use std::io;

use arc_swap::ArcSwapOption;
use http::HeaderValue;

/// The value of `authorization` that replicas receive; `None` where no file is configured.
#[derive(Debug, Default)]
pub(crate) struct UpstreamKey(ArcSwapOption<HeaderValue>);

impl UpstreamKey {
    pub(crate) fn get(&self) -> Option<HeaderValue> {
        self.0.load().as_deref().cloned()
    }

    /// Takes the key from the file's text; true if it changed.
    ///
    /// # Errors
    /// The text is not a key.
    pub(crate) fn set(&self, text: &str) -> io::Result<bool> {
        let text = text.trim();
        let value = HeaderValue::from_str(&format!("Bearer {text}"));
        let mut value = value.ok().filter(|_| !text.is_empty()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "it does not hold one line with a key")
        })?;
        value.set_sensitive(true);
        if self.0.load().as_deref() == Some(&value) {
            return Ok(false);
        }
        self.0.store(Some(value.into()));
        Ok(true)
    }

    /// Takes over another one's key; `None` where no file is configured.
    pub(crate) fn copy(&self, other: Option<&Self>) {
        self.0.store(other.and_then(|other| other.0.load_full()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_with_its_file_and_a_text_that_is_not_a_key_changes_nothing() {
        let key = UpstreamKey::default();
        assert_eq!(key.get(), None);
        assert!(key.set("secret\n").expect("a key"));
        assert_eq!(key.get().expect("set"), "Bearer secret");
        assert!(!key.set(" secret").expect("the same"));
        for bad in ["", "\n", "two\nlines", "\u{7f}"] {
            assert!(key.set(bad).is_err(), "{bad:?}");
        }
        assert_eq!(key.get().expect("kept"), "Bearer secret");
        assert_eq!(format!("{key:?}").find("secret"), None, "never in a log");
    }
}
