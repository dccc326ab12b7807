//! The files that packages install: each is valid as it stands.

use std::process::Command;

fn read(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn assert_valid(name: &str, text: &str) {
    let (config, warnings) =
        forebay_config::inspect(text, name).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(warnings.is_empty(), "{warnings}");
    assert!(!config.pools.is_empty());
}

#[test]
fn the_services_configuration_is_valid() {
    assert_valid("deploy/debian/forebay.yaml", &read("deploy/debian/forebay.yaml"));
}

#[test]
fn the_configuration_within_compose_is_valid() {
    let compose = read("compose.yaml");
    let (_, rest) = compose.split_once("    content: |\n").expect("the configuration");
    let lines = rest.lines().map_while(|line| line.strip_prefix("      "));
    assert_valid("compose.yaml", &lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn systemd_accepts_the_unit_if_it_is_here() {
    let folder = std::env::temp_dir().join(format!("forebay-unit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let unit = folder.join("forebay.service");
    // The check wants the program and the page to exist.
    let text = read("deploy/debian/forebay.service")
        .replace("/usr/bin/forebay", env!("CARGO_BIN_EXE_forebay"))
        .replace("Documentation=man:forebay(1)\n", "");
    std::fs::write(&unit, text).expect("written");
    let verified = Command::new("systemd-analyze").arg("verify").arg(&unit).output();
    let Ok(output) = verified else {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let about_it: Vec<_> = said.lines().filter(|line| line.contains("forebay.service")).collect();
    assert!(output.status.success() && about_it.is_empty(), "{said}");
}
