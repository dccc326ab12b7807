//! The key that a pool's replicas were started with, from a file that may change.

use std::io;
use std::path::Path;

use arc_swap::ArcSwapOption;
use http::HeaderValue;

/// The value of `authorization` that replicas get; none where no file is configured.
#[derive(Debug, Default)]
pub(crate) struct UpstreamKey(ArcSwapOption<HeaderValue>);

impl UpstreamKey {
    pub(crate) fn get(&self) -> Option<HeaderValue> {
        self.0.load().as_deref().cloned()
    }

    /// Takes the key out of what the file holds; whether it is another one than before.
    ///
    /// # Errors
    /// The text is no key.
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

    /// As `other` is, which is none where no file is configured.
    pub(crate) fn copy(&self, other: Option<&Self>) {
        self.0.store(other.and_then(|other| other.0.load_full()));
    }

    /// Reads the file anew. What is there serves on if it can't be read.
    pub(crate) async fn refresh(&self, pool: &str, path: &Path) {
        let read = match tokio::fs::read_to_string(path).await {
            Ok(text) => self.set(&text),
            Err(error) => Err(error),
        };
        match read {
            Ok(true) => tracing::info!("{pool}: the replicas' key has changed"),
            Ok(false) => {}
            Err(error) => {
                tracing::debug!("{pool}: apiKeyFile: {}: {error}", path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_with_its_file_and_what_is_none_changes_nothing() {
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
