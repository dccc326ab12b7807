//! Faults in the metadata of a trigger.

/// A fault in the metadata of a trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key that it is about.
    pub key: String,
    /// The fault, and the mend.
    pub message: String,
    /// Whether the trigger can't be used so; else a warning.
    pub error: bool,
}
