//! The source of the control plane, by envtest's convention.

use std::path::{Path, PathBuf};

/// The cluster that the tests run against.
pub enum Source {
    /// Binaries that the tests start.
    Binaries(Binaries),
    /// A running cluster, by its kubeconfig.
    Existing(PathBuf),
}

/// Binaries by name, from `KUBEBUILDER_ASSETS` or from the folder of `tests/cluster/build`.
#[derive(Clone, Debug)]
pub struct Binaries {
    folders: Vec<PathBuf>,
}

impl Source {
    /// Finds the source by the environment.
    ///
    /// # Errors
    /// One line with the reason why nothing can run, and the remedy.
    pub fn find() -> Result<Self, String> {
        let existing = std::env::var("USE_EXISTING_CLUSTER").is_ok_and(|value| value == "true");
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
        let missing: Vec<_> =
            needed.into_iter().filter(|name| binaries.get(name).is_none()).collect();
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
                .map(|folder| folder.display().to_string())
                .collect::<Vec<_>>()
                .join(":")
        ))
    }
}

impl Binaries {
    /// Those of the environment.
    pub fn of_environment() -> Self {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let own = std::env::var_os("FOREBAY_CLUSTER_BIN").map(PathBuf::from).or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
            Some(cache.or_else(home)?.join("forebay-cluster/bin"))
        });
        Self { folders: assets.into_iter().chain(own).collect() }
    }

    /// The path of a binary, or of a folder beside the binaries.
    pub fn get(&self, name: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(name)).find(|path| path.exists())
    }

    /// Whether KEDA's binaries are there.
    pub fn has_keda(&self) -> bool {
        let needed = ["keda-operator", "keda-adapter", "keda-webhooks", "keda-crds"];
        needed.iter().all(|name| self.get(name).is_some())
    }
}
