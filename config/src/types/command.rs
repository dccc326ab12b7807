//! The model names that a server will answer to, read from the command that starts it.
//!
//! Understands vLLM's own command line (`vllm serve`, its module, wrappers in front of them). In
//! doubt it returns no name: a pool without names takes any until its first replica reports its
//! own, and a wrong name would make the gateway refuse every request.

use serde_json::Value;

/// Names that the server started by `argv` will answer to, its LoRA adapters' included; empty if
/// the command doesn't name them.
///
/// As in vLLM, `--served-model-name` wins over the model itself, the model of `vllm serve MODEL`
/// over `--model`, and a flag's last occurrence over earlier ones. A `--config FILE` may name
/// others, so with one only `--served-model-name` is certain.
#[must_use]
pub fn served_names(argv: &[String]) -> Vec<String> {
    let mut names = values(argv, "served-model-name");
    if names.is_empty() && values(argv, "config").is_empty() {
        let model = positional(argv).or_else(|| values(argv, "model").into_iter().next());
        names.extend(model);
    }
    // Without the base model's name the adapters' alone would shut it out.
    if !names.is_empty() {
        names.extend(values(argv, "lora-modules").iter().flat_map(|text| adapters(text)));
    }
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
    // A name that differs between replicas can't be the pool's.
    if names.iter().any(|name| name.contains("{port}") || name.contains("{gpu}")) {
        names.clear();
    }
    names
}

/// The words of a command that was given as one word, as in `"vllm serve X --port {port}"`, which no
/// shell splits. `None` for any other command: a program's path may contain spaces.
#[must_use]
pub fn unsplit(argv: &[String]) -> Option<Vec<&str>> {
    let [command] = argv else { return None };
    let words: Vec<_> = command.split_whitespace().collect();
    let has_arguments = words
        .iter()
        .skip(1)
        .any(|word| word.starts_with('-') || word.contains("{port}") || word.contains("{gpu}"));
    has_arguments.then_some(words)
}

/// The values of `--name A B` up to the next flag, or of `--name=A`; those of its last occurrence.
/// vLLM takes `_` for `-`.
fn values(argv: &[String], name: &str) -> Vec<String> {
    let mut values = Vec::new();
    for (at, argument) in argv.iter().enumerate() {
        let Some(flag) = argument.strip_prefix("--") else { continue };
        match flag.split_once('=') {
            Some((flag, value)) if flag.replace('_', "-") == name => {
                values = vec![value.to_owned()];
            }
            None if flag.replace('_', "-") == name => {
                let own = argv.iter().skip(at + 1).take_while(|next| !is_flag(next));
                values = own.cloned().collect();
            }
            _ => {}
        }
    }
    values
}

/// MODEL of `vllm serve … MODEL …`.
fn positional(argv: &[String]) -> Option<String> {
    let vllm = |argument: &str| {
        let program = argument.rsplit('/').next().unwrap_or(argument);
        program == "vllm" || program == "vllm.entrypoints.cli.main"
    };
    let serve = argv.windows(2).position(|two| vllm(&two[0]) && two[1] == "serve")?;
    let mut arguments = argv.iter().skip(serve + 2).peekable();
    while let Some(argument) = arguments.next() {
        if !is_flag(argument) {
            return Some(argument.clone());
        }
        match takes(argument) {
            Takes::Nothing => {}
            Takes::One => {
                arguments.next_if(|next| !is_flag(next));
            }
            Takes::Many => while arguments.next_if(|next| !is_flag(next)).is_some() {},
        }
    }
    None
}

fn is_flag(argument: &str) -> bool {
    // A negative number is a value.
    let number = argument.parse::<f64>().is_ok();
    argument.len() > 1 && argument.starts_with('-') && !number
}

/// The number of arguments that follow a flag of vLLM 0.32, so that none is taken for the model.
enum Takes {
    Nothing,
    One,
    Many,
}

fn takes(flag: &str) -> Takes {
    /// Beginnings that vLLM gives to switches alone.
    const SWITCHES: [&str; 6] =
        ["--enable-", "--disable-", "--no-", "--skip-", "--trust-", "--use-"];
    /// Other switches, the ones in common use.
    const OTHERS: [&str; 7] = [
        "--enforce-eager",
        "--async-scheduling",
        "--language-model-only",
        "--fully-sharded-loras",
        "--return-tokens-as-token-ids",
        "--kv-cache-metrics",
        "-ep",
    ];
    const LISTS: [&str; 9] = [
        "--served-model-name",
        "--lora-modules",
        "--allowed-media-domains",
        "--logits-processors",
        "--ignore-patterns",
        "--kv-cache-dtype-skip-layers",
        "--lora-target-modules",
        "--collect-detailed-traces",
        "--cudagraph-capture-sizes",
    ];
    // `--flag=value`, and the short `-O3`.
    let short = flag.strip_prefix("-O").is_some_and(|level| !level.is_empty());
    if flag.contains('=') || short {
        return Takes::Nothing;
    }
    let flag = flag.replace('_', "-");
    if SWITCHES.iter().any(|start| flag.starts_with(start)) || OTHERS.contains(&flag.as_str()) {
        Takes::Nothing
    } else if LISTS.contains(&flag.as_str()) {
        Takes::Many
    } else {
        Takes::One
    }
}

/// Names in one value of `--lora-modules`: `name=path`, or JSON of one adapter or a list of them.
fn adapters(text: &str) -> Vec<String> {
    let name = |adapter: &Value| adapter["name"].as_str().map(str::to_owned);
    match serde_json::from_str(text) {
        Ok(Value::Array(adapters)) => adapters.iter().filter_map(name).collect(),
        Ok(adapter @ Value::Object(_)) => name(&adapter).into_iter().collect(),
        _ => text.split_once('=').map(|(name, _)| name.to_owned()).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(argv: &[&str]) -> Vec<String> {
        served_names(&argv.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn names_are_read_from_vllms_command_line() {
        let cases: [(&str, &[&str]); 25] = [
            ("vllm serve Qwen/Qwen3-0.6B --host 127.0.0.1 --port {port}", &["Qwen/Qwen3-0.6B"]),
            ("/opt/venv/bin/vllm serve /models/qwen", &["/models/qwen"]),
            ("uv run vllm serve X", &["X"]),
            ("uv run --with vllm vllm serve X", &["X"]),
            ("env CUDA_VISIBLE_DEVICES={gpu} vllm serve X --port {port}", &["X"]),
            ("python -m vllm.entrypoints.cli.main serve X", &["X"]),
            ("python3 -m vllm.entrypoints.openai.api_server --model X --port {port}", &["X"]),
            ("python -m vllm.entrypoints.openai.api_server --model=X", &["X"]),
            ("docker run --rm --name v vllm/vllm-openai --model X", &["X"]),
            ("vllm serve X --served-model-name a b c --port {port}", &["a", "b", "c"]),
            ("vllm serve X --served-model-name=a --port {port}", &["a"]),
            ("vllm serve X --served_model_name a", &["a"]),
            ("vllm serve X --served-model-name a --served-model-name b", &["b"]),
            ("vllm serve X --served-model-name a a", &["a"]),
            ("vllm serve --port {port} -tp 2 X", &["X"]),
            ("vllm serve --enforce-eager --no-enable-log-requests -O3 X", &["X"]),
            ("vllm serve --uvicorn-log-level=info X", &["X"]),
            ("vllm serve --seed -1 X", &["X"]),
            ("vllm serve --model X --port {port}", &["X"]),
            ("vllm serve X --lora-modules sql=/l/sql chat=/l/chat", &["X", "sql", "chat"]),
            ("vllm serve X --lora-modules=sql=/l/sql", &["X", "sql"]),
            (r#"vllm serve X --lora-modules {"name":"sql","path":"/l"}"#, &["X", "sql"]),
            (r#"vllm serve X --lora-modules [{"name":"a"},{"name":"b"}]"#, &["X", "a", "b"]),
            ("vllm serve --config f.yaml --served-model-name a", &["a"]),
            ("./serve.sh {port} --served-model-name a", &["a"]),
        ];
        for (command, expected) in cases {
            assert_eq!(names(&command.split(' ').collect::<Vec<_>>()), expected, "{command}");
        }
    }

    #[test]
    fn a_command_that_names_no_model_gives_no_names() {
        for command in [
            "",
            "./serve.sh {port} 127.0.0.1 tiny",
            "vllm",
            "vllm serve",
            "vllm serve --port {port}",
            "vllm serve --lora-modules a=/l/a b=/l/b",
            "vllm serve --config serve.yaml",
            "vllm serve X --config serve.yaml",
            "vllm serve X --config=serve.yaml --lora-modules a=/l/a",
            "vllm serve X --served-model-name tiny-{port}",
            "vllm bench serve --dataset X",
            "python -m vllm.entrypoints.openai.api_server --port {port}",
            "vllm serve --model --port {port}",
        ] {
            assert_eq!(names(&command.split(' ').collect::<Vec<_>>()), [""; 0], "{command}");
        }
    }

    #[test]
    fn a_command_in_one_word_is_recognized() {
        let words = |command: &str| {
            unsplit(&[command.to_owned()]).map(|words| crate::yaml::flow_list(&words))
        };
        let split = r#"[vllm, serve, x, --port, "{port}"]"#;
        assert_eq!(words("vllm serve x --port {port}").as_deref(), Some(split));
        assert_eq!(words("./serve.sh {port}").as_deref(), Some(r#"[./serve.sh, "{port}"]"#));
        assert_eq!(words("/opt/my programs/serve"), None, "a path with a space");
        assert_eq!(words("vllm"), None);
        assert_eq!(unsplit(&["vllm serve".to_owned(), "--port={port}".to_owned()]), None);
    }

    proptest! {
        #[test]
        fn no_command_is_a_panic_and_no_name_is_empty_or_repeated(
            argv in proptest::collection::vec(
                "vllm|serve|--served-model-name=?|--model|--lora-modules|-O3?|--|-|=|a=b|\\PC{0,6}",
                0..12,
            )
        ) {
            let names = served_names(&argv);
            for (at, name) in names.iter().enumerate() {
                prop_assert!(!name.is_empty() && !names[..at].contains(name));
            }
        }
    }
}
