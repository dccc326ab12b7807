//! Helm, and what it renders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::binaries::Binaries;

/// The program.
pub struct Helm {
    program: PathBuf,
    folder: PathBuf,
}

/// The objects of one rendering.
#[derive(Debug)]
pub struct Rendered {
    pub text: String,
    /// By `KIND/NAME`, or `KIND/NAMESPACE/NAME` outside of the release's namespace.
    pub objects: BTreeMap<String, Value>,
    folder: PathBuf,
}

/// The path of a program of `tests/cluster/build`.
pub fn program(name: &str) -> Option<PathBuf> {
    let found = Binaries::of_environment().get(name);
    if found.is_none() {
        println!("skipped: there is no {name}; run tests/cluster/build");
        let required =
            std::env::var_os("FOREBAY_REQUIRE_CLUSTER").is_some_and(|value| value == "1");
        assert!(!required, "there is no {name}; run tests/cluster/build");
    }
    found
}

impl Helm {
    /// `None`, with a note, where there is none.
    pub fn find() -> Option<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("chart-{}-{number}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Some(Self { program: program("helm")?, folder })
    }

    pub fn chart() -> &'static str {
        concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart/forebay")
    }

    /// A new folder, which ends with this.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Runs helm and returns what it printed.
    ///
    /// # Errors
    /// What it printed as an error.
    pub fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.program).args(arguments).output().expect("helm runs");
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).expect("text"));
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Renders the chart as the release `forebay` in the namespace `own`, with a token that is the
    /// same each time.
    ///
    /// # Errors
    /// Helm's error.
    pub fn render(&self, values: &Value) -> Result<Rendered, String> {
        let file = self.folder.join("values.yaml");
        std::fs::write(&file, values.to_string()).unwrap();
        let first = self.folder.join("first.yaml");
        std::fs::write(&first, json!({"adminToken": {"value": "token"}}).to_string()).unwrap();
        let (first, file) = (first.display().to_string(), file.display().to_string());
        let text = self.run(&[
            "template",
            "forebay",
            Self::chart(),
            "-n",
            "own",
            "--kube-version",
            "1.33",
            "-f",
            &first,
            "-f",
            &file,
        ])?;
        let mut objects = BTreeMap::new();
        for document in text.split("---\n").filter(|part| part.contains("\nkind: ")) {
            let object: Value = serde_saphyr::from_str(document)
                .unwrap_or_else(|error| panic!("{error}: {document}"));
            let part = |path| object.pointer(path).and_then(Value::as_str).expect("an object");
            let (kind, name) = (part("/kind"), part("/metadata/name"));
            let namespace =
                object["metadata"]["namespace"].as_str().filter(|other| *other != "own");
            let name = namespace.map_or_else(
                || format!("{kind}/{name}"),
                |namespace| format!("{kind}/{namespace}/{name}"),
            );
            let twice = objects.insert(name.clone(), object);
            assert!(twice.is_none(), "{name} occurs twice");
        }
        Ok(Rendered { text, objects, folder: self.folder.clone() })
    }
}

impl Drop for Helm {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Rendered {
    /// The configuration file.
    pub fn config(&self) -> Value {
        let map = self.objects.iter().find(|(name, object)| {
            name.starts_with("ConfigMap/") && object["data"]["forebay.yaml"].is_string()
        });
        let (_, map) = map.expect("a ConfigMap with the configuration");
        serde_saphyr::from_str(map["data"]["forebay.yaml"].as_str().expect("text")).expect("YAML")
    }

    /// Runs `forebay check` on the configuration.
    pub fn check_config(&self) {
        let file = self.folder.join("forebay.yaml");
        std::fs::write(&file, self.config().to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        let output = command.args(["check", "--config"]).arg(&file).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
