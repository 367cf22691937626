//! `zipserv run`, on a tiny model of random weights.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command as Process, Stdio},
};

use assert_cmd::Command;
use predicates::{prelude::*, str::contains};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "engine/bytes.rs"]
mod bytes;
mod support;

use bytes::VOCABULARY;
use support::{checkpoint, tensor, weights};

const HIDDEN: u64 = 64;
const INNER: u64 = 96;
/// Tokens that a sequence can have.
const CONTEXT: usize = 16_384;
/// A text that takes long, and whose first characters come soon.
const LONG: [&str; 8] = [
    "--prompt",
    "größe",
    "--max-tokens",
    "16000",
    "--temperature",
    "1.5",
    "--seed",
    "3",
];
const TEMPLATE: &str =
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ bos_token }}";

/// A folder with a Llama of one layer, whose tokens are bytes.
struct Model(TempDir);

impl Model {
    fn new() -> Self {
        let model = Self(bytes::folder());
        let matrix = |name: &str, rows: u64, cols: u64, seed| {
            tensor(
                name,
                "BF16",
                &[rows, cols],
                weights((rows * cols) as usize, seed),
            )
        };
        let ones = |name: &str| {
            tensor(
                name,
                "BF16",
                &[HIDDEN],
                [0x80, 0x3f].repeat(HIDDEN as usize),
            )
        };
        let layer = |name: &str| format!("model.layers.0.{name}.weight");
        let tensors = [
            matrix("model.embed_tokens.weight", VOCABULARY as u64, HIDDEN, 1),
            matrix("lm_head.weight", VOCABULARY as u64, HIDDEN, 2),
            ones("model.norm.weight"),
            ones(&layer("input_layernorm")),
            ones(&layer("post_attention_layernorm")),
            matrix(&layer("self_attn.q_proj"), HIDDEN, HIDDEN, 3),
            matrix(&layer("self_attn.k_proj"), HIDDEN / 2, HIDDEN, 4),
            matrix(&layer("self_attn.v_proj"), HIDDEN / 2, HIDDEN, 5),
            matrix(&layer("self_attn.o_proj"), HIDDEN, HIDDEN, 6),
            matrix(&layer("mlp.gate_proj"), INNER, HIDDEN, 7),
            matrix(&layer("mlp.up_proj"), INNER, HIDDEN, 8),
            matrix(&layer("mlp.down_proj"), HIDDEN, INNER, 9),
        ];
        fs::write(model.path("model.safetensors"), checkpoint(&tensors)).unwrap();
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
        });
        fs::write(model.path("config.json"), config.to_string()).unwrap();
        model
    }

    fn with_template(self) -> Self {
        let config = json!({"chat_template": TEMPLATE, "bos_token": "<other>"});
        fs::write(self.path("tokenizer_config.json"), config.to_string()).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Command {
        run(self.0.path(), arguments)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        json_of(&mut self.run(arguments))
    }
}

fn run(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("zipserv").unwrap();
    command.arg("run").arg(folder).args(arguments);
    command
}

fn json_of(command: &mut Command) -> Value {
    let output = command.arg("--json").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}"))
}

#[test]
fn text_goes_to_pipes_as_it_is() {
    let model = Model::new();
    let arguments = [
        "--prompt",
        "größe",
        "--max-tokens",
        "40",
        "--temperature",
        "1.5",
        "--seed",
        "3",
    ];
    let answer = model.json(&arguments);
    let text = answer["text"].as_str().unwrap();
    // Random bytes, of which many are no characters.
    assert!(
        text.chars().any(char::is_control) && text.len() > 20,
        "{text:?}"
    );
    assert_eq!(answer["prompt_tokens"], "größe".len());
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 40);
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(answer["seed"], 3);
    assert!(answer["first_token_seconds"].as_f64().unwrap() > 0.0);
    assert!(answer["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(answer.get("log_probabilities"), None);
    let said = contains("40 tokens, ").and(contains(" tokens a second; the first after "));
    model
        .run(&arguments)
        .assert()
        .success()
        .stdout(text.to_owned())
        .stderr(said);
    let quiet = model.run(&arguments).arg("--quiet").assert().success();
    quiet.stdout(text.to_owned()).stderr("");
    // From standard input, and with other threads.
    let mut piped = model.run(&["--prompt", "-", "--threads", "3"]);
    piped
        .args(&arguments[2..])
        .write_stdin("größe")
        .assert()
        .stdout(text.to_owned());
    let other = model.json(&[&arguments[..7], &["4"]].concat());
    assert_ne!(other["text"], text);
}

#[test]
fn compressed_folders_say_the_same() {
    let model = Model::new();
    let text = model.path("text.txt");
    fs::write(&text, "Größe und weiter. ".repeat(20)).unwrap();
    let arguments = ["--prompt", "abc", "--max-tokens", "30", "--logprobs", "2"];
    let scored = ["--perplexity", text.to_str().unwrap()];
    let (answer, score) = (model.json(&arguments), model.json(&scored));
    for archive in [false, true] {
        let small = TempDir::new().unwrap();
        let folder = small.path().join("small");
        let mut compress = Command::cargo_bin("zipserv").unwrap();
        compress
            .args(["compress", "--quiet"])
            .args(archive.then_some("--archive"));
        compress
            .arg(model.0.path())
            .arg("-o")
            .arg(&folder)
            .assert()
            .success();
        assert!(!folder.join("model.safetensors").exists());
        let other = json_of(&mut run(&folder, &arguments));
        for key in ["text", "tokens", "log_probabilities"] {
            assert_eq!(other[key], answer[key]);
        }
        assert_eq!(json_of(&mut run(&folder, &scored)), score);
    }
}

#[test]
fn perplexity_is_that_of_the_probabilities() {
    let model = Model::new();
    let score = json_of(model.run(&["--perplexity", "-"]).write_stdin("Some text."));
    let probabilities: Vec<f64> =
        serde_json::from_value(score["log_probabilities"].clone()).unwrap();
    assert_eq!(score["tokens"], 10);
    assert_eq!(probabilities.len(), 9);
    assert!(probabilities.iter().all(|&probability| probability < 0.0));
    let mean = probabilities.iter().sum::<f64>() / 9.0;
    let perplexity = score["perplexity"].as_f64().unwrap();
    assert!((perplexity - (-mean).exp()).abs() < 1e-9 * perplexity);
    let printed = format!("perplexity {perplexity:.4} of 10 tokens\n");
    let mut command = model.run(&["--perplexity", "-"]);
    command
        .write_stdin("Some text.")
        .assert()
        .success()
        .stdout(printed);
    // A generated token is as probable as the same one in a text.
    let answer = model.json(&[
        "--prompt",
        "Some text",
        "--max-tokens",
        "1",
        "--logprobs",
        "258",
    ]);
    let all = answer["log_probabilities"][0]["most_probable"]
        .as_array()
        .unwrap();
    let dot = all.iter().find(|token| token["token"] == ".").unwrap();
    let difference = dot["log_probability"].as_f64().unwrap() - probabilities[8];
    assert!(difference.abs() < 1e-6, "{difference}");
}

#[test]
fn probabilities_are_told_of_each_token() {
    let answer = Model::new().json(&["--prompt", "abc", "--max-tokens", "5", "--logprobs", "3"]);
    let told = answer["log_probabilities"].as_array().unwrap();
    assert_eq!(told.len(), 5);
    for (token, id) in told.iter().zip(answer["tokens"].as_array().unwrap()) {
        assert_eq!(&token["id"], id);
        let most = token["most_probable"].as_array().unwrap();
        assert_eq!(most.len(), 3);
        // The most probable one was taken.
        for key in ["id", "token", "log_probability"] {
            assert_eq!(most[0][key], token[key]);
        }
    }
}

#[test]
fn a_chat_template_is_used_where_there_is_one() {
    let model = Model::new().with_template();
    let tokens = |arguments: &[&str]| {
        let answer = model.json(&[&["--prompt", "Hi", "--max-tokens", "1"], arguments].concat());
        answer["prompt_tokens"].as_u64().unwrap() as usize
    };
    // `<other>` is one token.
    assert_eq!(tokens(&[]), "[user]Hi".len() + 1);
    assert_eq!(
        tokens(&["--chat", "--system", "Be."]),
        "[system]Be.[user]Hi".len() + 1
    );
    assert_eq!(tokens(&["--raw"]), "Hi".len());

    let without = Model::new();
    for arguments in [
        &["--prompt", "Hi", "--chat"][..],
        &["--prompt", "Hi", "--system", "Be."],
    ] {
        let said = contains("there is no chat template; --prompt TEXT --raw continues a text\n");
        without
            .run(arguments)
            .assert()
            .code(2)
            .stdout("")
            .stderr(said);
    }
}

#[test]
fn stop_strings_end_the_text() {
    let model = Model::new();
    let arguments = [
        "--prompt",
        "abc",
        "--max-tokens",
        "60",
        "--temperature",
        "1",
        "--seed",
        "1",
    ];
    let text = model.json(&arguments)["text"].as_str().unwrap().to_owned();
    let (start, _) = text.char_indices().nth(20).unwrap();
    let stop: String = text[start..].chars().take(2).collect();
    let stopped =
        model.json(&[&arguments[..], &["--stop", "never there", "--stop", &stop]].concat());
    assert_eq!(stopped["text"], text[..text.find(&stop).unwrap()]);
    assert_eq!(stopped["finish_reason"], "stop");
}

#[test]
fn what_cannot_be_is_said_before_weights_are_read() {
    let model = Model::new();
    fs::write(model.path("model.safetensors"), "no weights").unwrap();
    let said = |arguments: &[&str], text: &str| {
        let line = contains("error: ").and(contains(text.to_owned()));
        model
            .run(arguments)
            .assert()
            .code(2)
            .stdout("")
            .stderr(line);
    };
    said(
        &["--prompt", "a", "--temperature", "-1"],
        "unexpected argument '-1'",
    );
    said(
        &["--prompt", "a", "--temperature=-1"],
        "a temperature of -1 is none: 0 or more",
    );
    said(
        &["--prompt", "a", "--top-p", "0"],
        "top-p of 0 is no probability above 0",
    );
    said(
        &["--json"],
        "--json needs --prompt TEXT or --perplexity FILE",
    );
    said(&["--prompt", "a", "--logprobs", "2"], "--json");
    said(&["--prompt", "a", "--raw", "--chat"], "cannot be used with");
    let on_gpu = "--dense and --tensor-parallel-size need --device cuda";
    said(&["--prompt", "a", "--dense"], on_gpu);
    said(&["--prompt", "a", "--tensor-parallel-size", "2"], on_gpu);
    said(&["--bench", "--dense", "--fastest"], "cannot be used with");
    said(
        &["--bench", "--tensor-parallel-size", "7"],
        "which 7 devices cannot share equally",
    );
    said(&["--perplexity", "none.txt"], "no such file: none.txt");
    said(&["--prompt", "a"], "model.safetensors: ");
    let folder = TempDir::new().unwrap();
    let nothing = folder.path().join("nothing");
    let named = format!("no such folder: {}\n", nothing.display());
    run(&nothing, &["--prompt", "a"])
        .assert()
        .code(2)
        .stderr(contains(named));
    fs::remove_file(model.path("tokenizer.json")).unwrap();
    let named = format!("no such file: {}\n", model.path("tokenizer.json").display());
    said(&["--prompt", "a"], &named);
    fs::write(
        model.path("config.json"),
        r#"{"architectures": ["MambaForCausalLM"]}"#,
    )
    .unwrap();
    said(&["--prompt", "a"], "MambaForCausalLM");
}

#[test]
fn a_chat_wants_a_terminal() {
    let model = Model::new().with_template();
    let said = contains("error: there is no terminal to chat on");
    model
        .run(&[])
        .write_stdin("hi\n")
        .assert()
        .code(2)
        .stdout("")
        .stderr(said);
}

#[test]
fn more_tokens_than_there_is_room_for_are_refused() {
    let model = Model::new();
    let room = format!("{} tokens, but there is room for {CONTEXT}\n", CONTEXT + 3);
    let arguments = ["--prompt", "abc", "--max-tokens", &CONTEXT.to_string()];
    model
        .run(&arguments)
        .assert()
        .code(2)
        .stdout("")
        .stderr(contains(room));
    let long = "a".repeat(CONTEXT);
    let mut command = model.run(&["--prompt", "-"]);
    let room = format!("{} tokens, but there is room for {CONTEXT}\n", CONTEXT + 1);
    command
        .write_stdin(long)
        .assert()
        .code(2)
        .stdout("")
        .stderr(contains(room));
}

/// The program on a long text, with pipes to read. Tests that run in the background have signals ignored, and so would it.
fn begin_long(model: &Model) -> Child {
    Process::new("env")
        .arg("--default-signal=INT,TERM")
        .arg(assert_cmd::cargo::cargo_bin("zipserv"))
        .arg("run")
        .arg(model.0.path())
        .args(LONG)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_signal_ends_the_text() {
    let model = Model::new();
    for (signal, name, code) in [("INT", "SIGINT", 130), ("TERM", "SIGTERM", 143)] {
        let mut child = begin_long(&model);
        // The text has begun.
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        assert!(!stdout.fill_buf().unwrap().is_empty());
        let kill = format!("kill -{signal} {}", child.id());
        assert!(
            Process::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).unwrap();
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error, format!("interrupted by {name}\n"));
        assert_eq!(output.status.code(), Some(code));
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_text() {
    let model = Model::new();
    let mut child = begin_long(&model);
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && !error.contains("error"),
        "{error}"
    );
}
