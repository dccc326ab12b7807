//! Bounds that come from the machine: how much memory requests may take, and how many connections
//! there may be. What the configuration gives goes before, as far as the machine allows it.

use std::fmt;

use forebay_config::{ByteSize, Limits};
use forebay_system::Resource;
use forebay_system::memory::Memory;

use crate::net::share::Split;

/// The default of `bodiesSize` is at most this: what one machine serves needs no more, and its
/// memory is others' too.
const MOST: u64 = 4 << 30;
/// A connection takes this beside its head.
const CONNECTION: u64 = 24 << 10;

/// What an operator should know of the bounds: a sentence that begins with its field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A bound that was not given.
    Fact(String),
    /// The machine is too small for what was given.
    Warning(String),
}

impl Note {
    /// Writes it to the log.
    pub fn log(&self) {
        match self {
            Self::Fact(text) => tracing::info!(target: "forebay::bounds", "{text}"),
            Self::Warning(text) => tracing::warn!(target: "forebay::bounds", "{text}"),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Fact(text) | Self::Warning(text)) = self;
        f.write_str(text)
    }
}

/// The bounds in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Most bytes of requests in memory.
    pub bodies_size: u64,
    /// What one client's requests may take in any case: two bodies.
    pub bodies_size_of_one: u64,
    /// Most connections of clients that the machine has room for.
    pub connections: u32,
}

impl Bounds {
    /// Those of a process that may use this memory, and have so many files open.
    ///
    /// Without `bodiesSize` a quarter of the memory is for requests, and in any case as much as two
    /// bodies have, but not more than half. Connections may have half of the memory for their heads,
    /// and a place among the files.
    #[must_use]
    pub fn of(limits: &Limits, memory: &Memory, files: u64) -> Self {
        let two_bodies = limits.body_size.bytes().saturating_mul(2);
        let bodies_size = match limits.bodies_size {
            Some(given) => given.bytes(),
            None => {
                let quarter = (memory.bytes / 4).min(MOST).max(two_bodies);
                whole(quarter.min(memory.bytes / 2)).bytes()
            }
        };
        let each = limits.header_size.bytes().saturating_add(CONNECTION);
        let heads = u32::try_from(memory.bytes / 2 / each).unwrap_or(u32::MAX).max(1);
        let connections = heads.min(Split::of(files).clients);
        Self { bodies_size, bodies_size_of_one: two_bodies, connections }
    }

    /// What bounds the connections.
    pub(crate) fn scarce(&self, files: u64) -> Resource {
        if self.connections == Split::of(files).clients {
            Resource::Files
        } else {
            Resource::Memory
        }
    }

    /// The limits with these bounds in place of what was left out.
    #[must_use]
    pub fn effective(&self, limits: &Limits) -> Limits {
        Limits { bodies_size: Some(ByteSize::new(self.bodies_size)), ..limits.clone() }
    }

    /// What an operator should know of them.
    #[must_use]
    pub fn notes(&self, limits: &Limits, memory: &Memory, files: u64) -> Vec<Note> {
        let mut notes = Vec::new();
        let available = format!("{} of memory ({})", whole(memory.bytes), memory.source);
        match limits.bodies_size {
            None => notes.push(Note::Fact(format!(
                "gateway.limits.bodiesSize: {}, from {available}",
                whole(self.bodies_size)
            ))),
            Some(given) if given.bytes() > memory.bytes / 2 => notes.push(Note::Warning(format!(
                "gateway.limits.bodiesSize: {given} is more than half of {available}, and clients \
                 can fill it; lower it, or leave it out"
            ))),
            Some(_) => {}
        }
        if self.bodies_size < self.bodies_size_of_one {
            notes.push(Note::Warning(format!(
                "gateway.limits.bodySize: two bodies of {} are more than all requests may have ({}); \
                 give more memory, or lower bodySize",
                limits.body_size,
                whole(self.bodies_size)
            )));
        }
        if self.connections < limits.connections {
            let why = match self.scarce(files) {
                Resource::Files => {
                    format!("the limit on open files ({files}), which each needs up to two of")
                }
                _ => available,
            };
            notes.push(Note::Fact(format!(
                "gateway.limits.connections: {} is more than there can be; it is {}, because of {why}",
                limits.connections, self.connections
            )));
        }
        notes
    }
}

/// A size to read: in whole MiB where it has some.
fn whole(bytes: u64) -> ByteSize {
    const MIB: u64 = 1 << 20;
    ByteSize::new(if bytes >= MIB { bytes / MIB * MIB } else { bytes })
}

#[cfg(test)]
mod tests {
    use forebay_system::memory::Source;

    use super::*;

    fn memory(bytes: u64) -> Memory {
        Memory { bytes, source: Source::Machine }
    }

    const MANY: u64 = 1 << 20;

    #[test]
    fn requests_get_a_quarter_of_the_memory_unless_more_is_needed_or_given() {
        let limits = Limits::default();
        for (case, mib, want) in [
            ("the chart's", 2048, 512),
            ("a large machine", 1 << 20, 4096),
            ("two bodies at least", 160, 64),
            ("but not more than half", 64, 32),
        ] {
            let bounds = Bounds::of(&limits, &memory(mib << 20), MANY);
            assert_eq!(bounds.bodies_size, want << 20, "{case}");
            assert_eq!(bounds.bodies_size_of_one, 64 << 20, "{case}");
        }
        let given = Limits { bodies_size: Some(ByteSize::mib(100)), ..limits };
        assert_eq!(Bounds::of(&given, &memory(64 << 20), MANY).bodies_size, 100 << 20);
    }

    #[test]
    fn connections_are_no_more_than_files_and_memory_allow() {
        let limits = Limits::default();
        let connections =
            |mib: u64, files| Bounds::of(&limits, &memory(mib << 20), files).connections;
        assert_eq!(connections(64 << 10, MANY), 381_300);
        assert_eq!(connections(64 << 10, 1024), 448);
        assert_eq!(connections(2048, MANY), 11_915);
        assert_eq!(connections(0, 0), 1);
    }

    #[test]
    fn the_notes_name_the_field_and_the_cause() {
        let limits = Limits::default();
        let notes = |limits: &Limits, mib: u64, files| {
            let memory = memory(mib << 20);
            let notes = Bounds::of(limits, &memory, files).notes(limits, &memory, files);
            notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let usual = notes(&limits, 64 << 10, MANY);
        assert_eq!(
            usual,
            "gateway.limits.bodiesSize: 4Gi, from 64Gi of memory (the machine's memory)"
        );
        let files = notes(&limits, 64 << 10, 1024);
        assert!(files.contains("it is 448, because of the limit on open files (1024)"), "{files}");
        let small = notes(&limits, 100, MANY);
        assert!(small.contains("bodySize: two bodies of 32Mi are more than"), "{small}");
        let given = Limits { bodies_size: Some(ByteSize::mib(4096)), ..limits };
        let given = notes(&given, 2048, MANY);
        assert!(given.contains("bodiesSize: 4Gi is more than half of 2Gi"), "{given}");
    }
}
