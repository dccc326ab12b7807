//! Where the control plane comes from, by envtest's convention.

use std::path::{Path, PathBuf};

/// What the tests run against.
pub enum Source {
    /// Binaries that are started for the tests.
    Binaries(Binaries),
    /// A running cluster, by its kubeconfig.
    Existing(PathBuf),
}

/// Binaries by name, from `KUBEBUILDER_ASSETS` or else from where `tests/cluster/build` puts them.
#[derive(Clone, Debug)]
pub struct Binaries {
    folders: Vec<PathBuf>,
}

impl Source {
    /// `Err` says in one line why nothing can run, and what would help.
    pub fn find() -> Result<Self, String> {
        let existing = std::env::var("USE_EXISTING_CLUSTER").is_ok_and(|it| it == "true");
        if existing {
            let file = std::env::var_os("KUBECONFIG").map(PathBuf::from);
            let file = file.filter(|file| file.exists());
            return file.map(Self::Existing).ok_or_else(|| {
                "USE_EXISTING_CLUSTER is true and KUBECONFIG names no file".to_owned()
            });
        }
        let binaries = Binaries::of_environment();
        let needed =
            ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];
        let missing: Vec<_> = needed.into_iter().filter(|it| binaries.get(it).is_none()).collect();
        if missing.is_empty() {
            return Ok(Self::Binaries(binaries));
        }
        Err(format!(
            "{} not in {}; run tests/cluster/build, or set KUBEBUILDER_ASSETS, or \
             USE_EXISTING_CLUSTER=true and KUBECONFIG",
            missing.join(", "),
            binaries
                .folders
                .iter()
                .map(|it| it.display().to_string())
                .collect::<Vec<_>>()
                .join(":")
        ))
    }
}

impl Binaries {
    fn of_environment() -> Self {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let own = std::env::var_os("FOREBAY_CLUSTER_BIN").map(PathBuf::from).or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
            Some(cache.or_else(home)?.join("forebay-cluster/bin"))
        });
        Self { folders: assets.into_iter().chain(own).collect() }
    }

    /// The path of one of them, or of a folder beside them.
    pub fn get(&self, name: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(name)).find(|path| path.exists())
    }

    /// Whether KEDA is among them.
    pub fn has_keda(&self) -> bool {
        let needed = ["keda-operator", "keda-adapter", "keda-webhooks", "keda-crds"];
        needed.iter().all(|it| self.get(it).is_some())
    }
}
