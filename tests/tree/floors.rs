//! The floors of each crate, from the ground up: a room imports from those before it.

/// One crate's source folder.
pub struct Crate {
    /// Its folder, from the root of the repository.
    pub folder: &'static str,
    /// Its rooms, lowest first: folders or files directly below `src`, without ending. `lib.rs`
    /// and `main.rs` stand on top of all.
    pub floors: &'static [&'static str],
}

pub const CRATES: &[Crate] = &[Crate {
    folder: "gateway/src",
    floors: &[
        "text", "answer", "figures", "net", "tenant", "pool", "read", "route", "exchange",
        "realtime", "edge", "control", "inspect", "fuzzing",
    ],
}];
