//! Limits that come from the machine: how much memory requests may take, and how many connections
//! there may be. Configured values come first, as far as the machine allows them.

use std::fmt;

use forebay_base::memory::Memory;
use forebay_base::shortage::Resource;
use forebay_config::{ByteSize, Limits};

use crate::net::file_shares::FileShares;

/// The largest default of `bodiesSize`: one gateway needs no more, and other programs need memory
/// too.
const LARGEST_DEFAULT: u64 = 4 << 30;
/// The memory of a connection in addition to its head.
const CONNECTION: u64 = 24 << 10;

/// A sentence about a limit for the operator; it begins with the limit's field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The value of a limit that is not configured.
    Fact(String),
    /// The machine is too small for a configured limit.
    Warning(String),
}

impl Note {
    /// Writes the note to the log.
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

/// The limits in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineLimits {
    /// The most bytes of requests in memory.
    pub bodies_size: u64,
    /// The bytes that one client's requests may always take: two bodies.
    pub bodies_size_of_one: u64,
    /// The most connections of clients that the machine has room for.
    pub connections: u32,
}

impl MachineLimits {
    /// The limits of a process that may use this memory and have this many files open.
    ///
    /// Without `bodiesSize`, requests may take a quarter of the memory; more if two bodies need it,
    /// but never more than half. Connections may take half of the memory for their heads, and each
    /// needs a place among the files.
    #[must_use]
    pub fn of(limits: &Limits, memory: &Memory, files: u64) -> Self {
        let two_bodies = limits.body_size.bytes().saturating_mul(2);
        let bodies_size = match limits.bodies_size {
            Some(given) => given.bytes(),
            None => {
                let quarter = (memory.bytes / 4).min(LARGEST_DEFAULT).max(two_bodies);
                whole(quarter.min(memory.bytes / 2)).bytes()
            }
        };
        let each = limits.header_size.bytes().saturating_add(CONNECTION);
        let heads = u32::try_from(memory.bytes / 2 / each).unwrap_or(u32::MAX).max(1);
        let connections = heads.min(FileShares::of(files).clients);
        Self { bodies_size, bodies_size_of_one: two_bodies, connections }
    }

    /// The resource that bounds the number of connections.
    pub(crate) fn scarce(&self, files: u64) -> Resource {
        if self.connections == FileShares::of(files).clients {
            Resource::Files
        } else {
            Resource::Memory
        }
    }

    /// The configured limits, with `bodiesSize` filled in.
    #[must_use]
    pub fn effective(&self, limits: &Limits) -> Limits {
        Limits { bodies_size: Some(ByteSize::new(self.bodies_size)), ..limits.clone() }
    }

    /// Notes about these limits for the operator.
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
                "gateway.limits.bodySize: two bodies of {} do not fit into the memory for requests \
                 ({}); give more memory, or lower bodySize",
                limits.body_size,
                whole(self.bodies_size)
            )));
        }
        if self.connections < limits.connections {
            let why = match self.scarce(files) {
                Resource::Files => {
                    format!(
                        "the limit on open files ({files}), of which each connection needs up to two"
                    )
                }
                _ => available,
            };
            notes.push(Note::Fact(format!(
                "gateway.limits.connections: {} is more than is possible here; it is {}, because of \
                 {why}",
                limits.connections, self.connections
            )));
        }
        notes
    }
}

/// A size for people: in whole MiB if it is that large.
fn whole(bytes: u64) -> ByteSize {
    const MIB: u64 = 1 << 20;
    ByteSize::new(if bytes >= MIB { bytes / MIB * MIB } else { bytes })
}

#[cfg(test)]
mod tests {
    use forebay_base::memory::Source;

    use super::*;

    fn memory(bytes: u64) -> Memory {
        Memory { bytes, source: Source::Machine }
    }

    const MANY: u64 = 1 << 20;

    #[test]
    fn requests_get_a_quarter_of_the_memory_unless_more_is_needed_or_configured() {
        let limits = Limits::default();
        for (case, mib, want) in [
            ("the chart's", 2048, 512),
            ("a large machine", 1 << 20, 4096),
            ("two bodies at least", 160, 64),
            ("but not more than half", 64, 32),
        ] {
            let bounds = MachineLimits::of(&limits, &memory(mib << 20), MANY);
            assert_eq!(bounds.bodies_size, want << 20, "{case}");
            assert_eq!(bounds.bodies_size_of_one, 64 << 20, "{case}");
        }
        let given = Limits { bodies_size: Some(ByteSize::mib(100)), ..limits };
        assert_eq!(MachineLimits::of(&given, &memory(64 << 20), MANY).bodies_size, 100 << 20);
    }

    #[test]
    fn files_and_memory_bound_the_connections() {
        let limits = Limits::default();
        let connections =
            |mib: u64, files| MachineLimits::of(&limits, &memory(mib << 20), files).connections;
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
            let notes = MachineLimits::of(limits, &memory, files).notes(limits, &memory, files);
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
        assert!(small.contains("bodySize: two bodies of 32Mi do not fit"), "{small}");
        let given = Limits { bodies_size: Some(ByteSize::mib(4096)), ..limits };
        let given = notes(&given, 2048, MANY);
        assert!(given.contains("bodiesSize: 4Gi is more than half of 2Gi"), "{given}");
    }
}
