//! A trouble that may last: reported once for each reason, and once when it is over.

use std::error::Error;

/// The trouble of one thing, if it has one now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    reason: Option<String>,
}

impl Trouble {
    /// Notes a trouble. Returns whether to report it: it is new, or has another reason.
    #[must_use]
    pub fn begins(&mut self, reason: impl Into<String> + AsRef<str>) -> bool {
        let is_new = self.reason() != Some(reason.as_ref());
        if is_new {
            self.reason = Some(reason.into());
        }
        is_new
    }

    /// Notes that all is well. Returns whether there was a trouble before.
    pub fn ends(&mut self) -> bool {
        self.reason.take().is_some()
    }

    /// The reason of the trouble that lasts.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// The message of an error's first cause: "connection refused" rather than "client error".
#[must_use]
pub fn first_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_reported_once_for_each_reason_and_when_it_is_over() {
        let mut trouble = Trouble::default();
        assert!(!trouble.ends(), "there was none");
        assert!(trouble.begins("refused"));
        assert!(!trouble.begins("refused"), "reported already");
        assert!(trouble.begins("timed out"), "another reason");
        assert!(trouble.begins("refused"), "and the first one again");
        assert_eq!(trouble.reason(), Some("refused"));
        assert!(trouble.ends());
        assert!(!trouble.ends());
        assert!(trouble.begins("refused"), "a new trouble");
    }
}
