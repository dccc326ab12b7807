//! Typing errors of a new user: each is refused at once, with a text that names the remedy.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Runs `forebay` to its end. Returns its exit status, and all that it printed.
fn forebay(arguments: &[&str]) -> (Option<i32>, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_forebay")).args(arguments).output().expect("runs");
    let text = [run.stdout, run.stderr].concat();
    (run.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn scratch(name: &str) -> String {
    let folder = std::env::temp_dir().join("forebay-tests");
    std::fs::create_dir_all(&folder).expect("a folder");
    let name = format!("typing-{}-{name}", std::process::id());
    folder.join(name).to_str().expect("text").to_owned()
}

#[test]
fn a_mistake_on_the_command_line_is_answered_with_what_to_write() {
    for (line, remedy) in [
        ("run f.yaml", "forebay run --config f.yaml"),
        ("f.yaml", "forebay run --config f.yaml"),
        ("check forebay.yml", "check --config forebay.yml"),
        ("dev f.yaml", "dev --config f.yaml"),
        ("serve --config f.yaml", "forebay run --config FILE"),
        ("servr", "forebay run --config FILE"),
        ("strat --config f.yaml", "forebay run --config FILE"),
        ("vllm serve x --port {port}", "forebay dev -- vllm serve x --port {port}"),
        ("gatway --config f.yaml", "'gateway'"),
        ("run --confg f.yaml", "'--config'"),
        ("run --listen 1.2.3.4:80", "gateway.listen"),
        ("dev --port 9000", "--listen 127.0.0.1:9000"),
        ("dev --port=9000", "--listen 127.0.0.1:9000"),
        ("dev --listen 8080", "write 127.0.0.1:8080"),
        ("dev --listen :8081", "write 127.0.0.1:8081"),
        ("dev --listen localhost:8080", "write 127.0.0.1:8080"),
        ("dev --idle 10sec", "use d, h, m, s or ms"),
        ("dev --max-replicas 0", "0 is not in 1.."),
        ("dev --max-in-flight 0", "0 is not in 1.."),
        ("dev --ports 18100", "write 18100-18999"),
        ("dev --config f.yaml --max-replicas 2", "'--config <FILE>' cannot be used with"),
        ("dev -- vllm serve x --port 8000", "`--port {port}`"),
        ("dev --gpus 0 --max-replicas 2 -- x {port}", "--gpus names 1"),
        ("dev -- x {port} --gpu {gpu}", "`--gpus 0,1`"),
    ] {
        let (code, text) = forebay(&line.split(' ').collect::<Vec<_>>());
        assert!(code.is_some_and(|code| code != 0), "{line}: {text}");
        assert!(text.contains(remedy), "{line}: no `{remedy}` in:\n{text}");
    }
    let (code, text) = forebay(&["dev", "--", "vllm serve x --port {port}"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("forebay dev -- vllm serve x --port {port}"), "{text}");
}

#[test]
fn a_hidden_command_is_not_suggested() {
    let (_, text) = forebay(&["servr"]);
    assert!(!text.contains("supervise"), "{text}");
}

#[test]
fn a_mistake_in_the_file_is_answered_with_its_line_and_what_to_write() {
    let file = scratch("file.yaml");
    let pool = "pools:\n  - name: a\n    models: [m]\n    ";
    for (text, line, remedy) in [
        ("pool:\n  - name: a\n".to_owned(), 1, "did you mean pools?"),
        (format!("{pool}endpoint: [a:1]\n"), 4, "did you mean endpoints?"),
        (format!("{pool}endpoints: [127.0.0.1]\n"), 4, "write HOST:PORT"),
        (format!("{pool}endpoints: [https://127.0.0.1:1]\n"), 4, "only plain http"),
        (
            format!("gateway: {{listen: localhost:8080}}\n{pool}endpoints: [a:1]\n"),
            1,
            "127.0.0.1:8080",
        ),
        (format!("{pool}target: {{process: {{command: [x]}}}}\n"), 4, "did you mean processes?"),
        (
            format!("{pool}target: {{processes: {{command: vllm serve x}}}}\n"),
            4,
            "write [vllm, serve, x]",
        ),
        (format!("{pool}target: {{processes: {{command: [x, {{port}}]}}}}\n"), 4, "in quotes"),
        (format!("{pool}target: {{processes: {{command: [x]}}}}\n"), 4, "does not contain {port}"),
        (
            format!("{pool}endpoints: [a:1]\n    scaling: {{maxReplicas: 2}}\n"),
            5,
            "did you mean maxReplicaCount?",
        ),
        (
            format!(
                "{pool}target: {{kubernetes: {{name: a}}}}\n    scaling: {{cooldownPeriod: 5min}}\n"
            ),
            5,
            "use d, h, m, s or ms",
        ),
        (format!("{pool}endpoints: [a:1]\n  - name: a\n    endpoints: [b:1]\n"), 5, "already"),
        (format!("{pool}endpoints: [a:1]\n   models: [b]\n"), 5, "not valid YAML"),
    ] {
        std::fs::write(&file, &text).expect("written");
        let (code, answer) = forebay(&["check", "--config", &file]);
        assert_eq!(code, Some(1), "{text}\n{answer}");
        assert!(answer.contains(&format!("{file}:{line}: ")), "{text}\n{answer}");
        assert!(answer.contains(remedy), "{text}\nno `{remedy}` in:\n{answer}");
        let (code, same) = forebay(&["run", "--config", &file]);
        assert_eq!((code, same.contains(remedy)), (Some(1), true), "{text}\n{same}");
    }
    let (_, missing) = forebay(&["run", "--config", "/nowhere/f.yaml"]);
    assert_eq!(
        missing,
        "forebay: cannot read /nowhere/f.yaml: No such file or directory (os error 2)\n"
    );
}

#[test]
fn a_taken_port_is_reported_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for flags in [
        ["--listen", &address, "--admin", "127.0.0.1:0"],
        ["--listen", "127.0.0.1:0", "--admin", &address],
    ] {
        let (code, text) = forebay(&[&["dev"][..], &flags].concat());
        assert_eq!(code, Some(1), "{text}");
        assert_eq!(text.matches("Address already in use").count(), 1, "{text}");
    }
}

#[test]
fn a_reader_that_leaves_ends_a_command_quietly() {
    for line in ["schema", "completions bash", "--help", "init -"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(line.split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        drop(child.stdout.take());
        let run = child.wait_with_output().expect("its end");
        let text = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && text.is_empty(), "{line}: {text}");
    }
}

#[test]
fn init_writes_a_valid_file_and_replaces_none() {
    let file = scratch("init.yaml");
    let models = ["--vllm", "Qwen/Qwen3-0.6B", "--vllm", "BAAI/bge-m3"];
    for flags in [&[][..], &models, &["--kubernetes"], &["--endpoints", "10.0.0.1:8000,b:1"]] {
        let _ = std::fs::remove_file(&file);
        let (code, text) = forebay(&[&["init", &file], flags].concat());
        assert_eq!(code, Some(0), "{text}");
        let (code, text) = forebay(&["check", "--config", &file]);
        assert_eq!(code, Some(0), "{flags:?}: {text}");
    }
    let mut own = std::fs::OpenOptions::new().append(true).open(&file).expect("written");
    own.write_all(b"# my own\n").expect("written");
    let kept = || std::fs::read_to_string(&file).expect("there").ends_with("# my own\n");
    let (code, text) = forebay(&["init", &file]);
    assert!(code == Some(1) && text.contains("--force") && kept(), "{text}");
    let (code, _) = forebay(&["init", &file, "--force"]);
    assert!(code == Some(0) && !kept());

    let (code, text) = forebay(&["init", "-", "--endpoints", "nohost"]);
    assert!(code == Some(1) && text.contains("write HOST:PORT"), "{text}");
}

#[test]
fn the_version_names_the_commit() {
    let (_, text) = forebay(&["--version"]);
    let commit = env!("FOREBAY_COMMIT");
    assert_eq!(text, format!("forebay {}{commit}\n", env!("CARGO_PKG_VERSION")));
    let in_repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists();
    assert!(!in_repository || commit.len() > " (1234567 2026-01-01".len(), "{commit}");
}
