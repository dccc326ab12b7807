//! kubeconform, with schemas made from Kubernetes' own OpenAPI documents and from CRDs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::helm::program;

/// The program, and where the documents are.
pub struct Kubeconform {
    program: PathBuf,
    /// One document for each version of Kubernetes: `v1.30.14.json`.
    documents: PathBuf,
    crds: Vec<PathBuf>,
}

impl Kubeconform {
    /// `None`, with a note, where there is none.
    pub fn find() -> Option<Self> {
        let (conform, documents) = (program("kubeconform")?, program("openapi")?);
        let (crds, keda) = (program("crds")?, program("keda-crds")?);
        let of = |folder: PathBuf| {
            let entries =
                fs::read_dir(folder).expect("a folder").map(|entry| entry.unwrap().path());
            entries.filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        };
        let crds = of(crds).chain(of(keda)).collect();
        Some(Self { program: conform, documents, crds })
    }

    /// The versions of Kubernetes, such as `1.30.14`.
    pub fn versions(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.documents).expect("a folder");
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let version = |name: String| {
            name.strip_prefix('v').and_then(|name| name.strip_suffix(".json")).map(str::to_owned)
        };
        let mut versions: Vec<_> = names.filter_map(version).collect();
        versions.sort();
        versions
    }

    /// The problems of these files, a line each.
    pub fn run(&self, folder: &Path, version: &str, files: &[PathBuf]) -> Vec<String> {
        let schemas = folder.join(format!("v{version}"));
        if !schemas.exists() {
            self.write_schemas(&schemas, version);
        }
        let location =
            format!("{}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", schemas.display());
        let output = Command::new(&self.program)
            .args(["-strict", "-summary", "-output", "json", "-kubernetes-version", version])
            .args(["-schema-location", &location])
            .args(files)
            .output()
            .expect("kubeconform runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{error}"));
        assert_eq!(report["summary"]["skipped"], 0, "{report}");
        let valid = report["summary"]["valid"].as_u64().unwrap_or(0);
        let resources = report["resources"].as_array().expect("a list");
        assert!(valid > 10 || !resources.is_empty(), "{report}");
        resources.iter().map(Value::to_string).collect()
    }

    fn write_schemas(&self, folder: &Path, version: &str) {
        fs::create_dir_all(folder).unwrap();
        let write = |name: &str, schema: &Value| {
            fs::write(folder.join(format!("{name}.json")), schema.to_string()).unwrap();
        };
        let file = self.documents.join(format!("v{version}.json"));
        let text = fs::read_to_string(file).unwrap();
        let mut document: Value = serde_json::from_str(&text).expect("JSON");
        let definitions = document["definitions"].as_object_mut().expect("definitions");
        for (name, definition) in definitions.iter_mut() {
            if name.ends_with("IntOrString") {
                *definition = json!({"type": ["string", "integer"]});
            } else if name.ends_with("resource.Quantity") {
                *definition = json!({"type": ["string", "number"]});
            }
            close(definition);
            for kind in
                definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten()
            {
                let reference = format!("definitions.json#/definitions/{name}");
                write(
                    &schema_name(&kind["group"], &kind["version"], &kind["kind"]),
                    &json!({"$ref": reference}),
                );
            }
        }
        write("definitions", &json!({"definitions": document["definitions"].take()}));
        for crd in &self.crds {
            let text = fs::read_to_string(crd).unwrap();
            let mut crd: Value = serde_saphyr::from_str(&text).expect("a CRD");
            let (group, kind) =
                (crd["spec"]["group"].clone(), crd["spec"]["names"]["kind"].clone());
            for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten() {
                let schema = &mut version["schema"]["openAPIV3Schema"];
                close(schema);
                write(
                    &schema_name(&group, &version["name"].clone(), &kind),
                    &version["schema"]["openAPIV3Schema"],
                );
            }
        }
    }
}

/// The name of a schema, as kubeconform's `{{.ResourceKind}}{{.KindSuffix}}` has it.
fn schema_name(group: &Value, version: &Value, kind: &Value) -> String {
    let text = |value: &Value| value.as_str().expect("text").to_lowercase();
    let (group, version, kind) = (text(group), text(version), text(kind));
    match group.split('.').next() {
        Some(group) if !group.is_empty() => format!("{kind}-{group}-{version}"),
        _ => format!("{kind}-{version}"),
    }
}

/// Refuses fields that a schema does not have.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let open = fields.contains_key("additionalProperties")
                || fields.contains_key("x-kubernetes-preserve-unknown-fields");
            if fields.get("properties").is_some_and(Value::is_object) && !open {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

#[test]
fn schemas_are_named_as_kubeconform_looks_for_them() {
    for (group, version, kind, name) in [
        ("", "v1", "Service", "service-v1"),
        ("apps", "v1", "Deployment", "deployment-apps-v1"),
        ("rbac.authorization.k8s.io", "v1", "Role", "role-rbac-v1"),
    ] {
        assert_eq!(schema_name(&json!(group), &json!(version), &json!(kind)), name);
    }
}
