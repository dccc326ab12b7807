//! The floors of each crate, from the ground up: a room imports from those before it.

/// One crate's source folder.
pub(crate) struct Crate {
    /// Its folder, from the root of the repository.
    pub(crate) folder: &'static str,
    /// Its rooms, lowest first: folders or files directly below `src`, without ending. `lib.rs`
    /// and `main.rs` stand on top of all. Empty for a crate of a few files on one floor.
    pub(crate) floors: &'static [&'static str],
}

pub(crate) const CRATES: &[Crate] = &[
    Crate { folder: "config/src", floors: &["units", "yaml", "types", "lint", "check", "load"] },
    Crate {
        folder: "gateway/src",
        floors: &[
            "text", "wire", "answer", "figures", "net", "tenant", "pool", "read", "route",
            "exchange", "realtime", "edge", "control", "inspect", "fuzzing",
        ],
    },
    Crate {
        folder: "scheduling/src",
        floors: &[
            "queue",
            "retry_budget",
            "objective",
            "eta",
            "room",
            "models",
            "prompt",
            "prefix",
            "pick",
        ],
    },
    Crate {
        folder: "scaler/src",
        floors: &[
            "clock",
            "fake_api",
            "decide",
            "supervisor",
            "lead",
            "observe",
            "act",
            "keda",
            "view",
            "run",
        ],
    },
    Crate {
        folder: "loadtests/src",
        floors: &["mix", "timing", "kv", "plot", "replay", "sim", "load"],
    },
    Crate { folder: "base/src", floors: &[] },
    Crate { folder: "discovery/src", floors: &[] },
    Crate { folder: "signals/src", floors: &[] },
    Crate {
        folder: "telemetry/src",
        floors: &[
            "context", "sampler", "span", "figure", "settings", "metric", "queue", "tracer",
            "client", "export",
        ],
    },
    Crate { folder: "src", floors: &[] },
];
