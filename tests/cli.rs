//! The program as its users run it: exit codes, output, files.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
};

use assert_cmd::Command;
use predicates::{prelude::*, str::contains};
use serde_json::Value;
use tempfile::TempDir;

mod support;

/// A folder with a small generated checkpoint.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(TempDir::new().unwrap());
        zipserv()
            .args(["synth", "--size", "1MB"])
            .arg(folder.original())
            .assert()
            .success();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn original(&self) -> PathBuf {
        self.path("original.safetensors")
    }

    fn compressed(&self) -> PathBuf {
        let path = self.path("compressed.safetensors");
        compress(&self.original(), &path).assert().success();
        path
    }
}

fn zipserv() -> Command {
    Command::cargo_bin("zipserv").unwrap()
}

fn compress(input: &Path, output: &Path) -> Command {
    let mut command = zipserv();
    command.arg("compress").arg(input).arg("-o").arg(output);
    command
}

fn decompress(input: &Path, output: &Path) -> Command {
    let mut command = zipserv();
    command.arg("decompress").arg(input).arg("-o").arg(output);
    command
}

fn verify(compressed: &Path, original: &Path) -> Command {
    let mut command = zipserv();
    command.arg("verify").arg(compressed).arg(original);
    command
}

fn inspect(path: &Path) -> Command {
    let mut command = zipserv();
    command.arg("inspect").arg(path);
    command
}

/// What a command prints with `--json`, which must be one document and nothing else.
fn json(mut command: Command) -> Value {
    let output = command.arg("--json").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn restores_what_it_compressed() {
    let folder = Folder::new();
    let restored = folder.path("restored.safetensors");
    let compressed = folder.path("compressed.safetensors");
    compress(&folder.original(), &compressed)
        .assert()
        .success()
        .stdout(contains("bits a weight"))
        .stderr(
            contains("model.rotary_emb.inv_freq (128 B): would not shrink")
                .and(contains("more (").and(contains("fewer than two dimensions"))),
        );
    verify(&compressed, &folder.original())
        .assert()
        .success()
        .stdout(contains("equal"));
    decompress(&compressed, &restored).assert().success();
    assert!(fs::read(restored).unwrap() == fs::read(folder.original()).unwrap());
}

#[test]
fn compresses_a_folder_and_says_what_it_could_not_mark() {
    let folder = Folder::new();
    let [model, small, restored] = ["model", "small", "restored"].map(|name| folder.path(name));
    fs::create_dir(&model).unwrap();
    fs::rename(folder.original(), model.join("model.safetensors")).unwrap();
    let config = model.join("config.json");
    let warning = "config.json is left as it is: it has a quantization_config";

    fs::write(&config, r#"{"quantization_config": {}}"#).unwrap();
    let said = contains(format!("warning: {warning}\n"));
    compress(&model, &small).assert().success().stderr(said);
    let mut command = compress(&model, &small);
    command.arg("--force");
    assert_eq!(json(command)["warnings"][0], warning);

    fs::write(&config, "{}").unwrap();
    let mut command = compress(&model, &small);
    command.arg("--force");
    command.assert().success().stderr(contains("warning").not());
    assert!(small.join("model.zipserv.safetensors").is_file());
    assert_eq!(json(verify(&small, &model))["equal"], true);
    decompress(&small, &restored).assert().success();
    for name in ["config.json", "model.safetensors"] {
        let [before, after] = [&model, &restored].map(|folder| fs::read(folder.join(name)));
        assert!(before.unwrap() == after.unwrap(), "{name}");
    }
    assert_eq!(fs::read_dir(restored).unwrap().count(), 2);
}

#[test]
fn threads_do_not_matter() {
    let folder = Folder::new();
    let [one, many] = ["one", "many"].map(|name| folder.path(name));
    for (path, threads) in [(&one, "1"), (&many, "3")] {
        compress(&folder.original(), path)
            .args(["--threads", threads])
            .assert()
            .success();
    }
    assert!(fs::read(one).unwrap() == fs::read(many).unwrap());
}

#[test]
fn replaces_files_only_with_force() {
    let folder = Folder::new();
    let compressed = folder.compressed();
    let restored = folder.path("restored.safetensors");
    fs::write(&restored, "precious").unwrap();
    decompress(&compressed, &restored)
        .assert()
        .code(2)
        .stdout("")
        .stderr(contains("error: ").and(contains("already exists; --force replaces it")));
    assert_eq!(fs::read(&restored).unwrap(), b"precious");
    decompress(&compressed, &restored)
        .arg("--force")
        .assert()
        .success();
    assert!(fs::read(restored).unwrap() == fs::read(folder.original()).unwrap());
}

#[test]
fn names_the_first_difference() {
    let folder = Folder::new();
    let compressed = folder.compressed();
    // The last four bytes are the last F32 of the last tensor.
    let mut original = fs::OpenOptions::new()
        .write(true)
        .open(folder.original())
        .unwrap();
    original.seek(SeekFrom::End(-4)).unwrap();
    original.write_all(b"oops").unwrap();
    let command = || verify(&compressed, &folder.original());
    command().assert().code(1).stdout(contains(
        "tensor `model.rotary_emb.inv_freq` differs at index 31",
    ));
    let verdict = json(command());
    assert_eq!(verdict["equal"], false);
    assert_eq!(verdict["difference"]["tensor"], "model.rotary_emb.inv_freq");
    assert_eq!(verdict["difference"]["index"], 31);
}

#[test]
fn inspects_in_json() {
    let folder = Folder::new();
    let document = json(inspect(&folder.compressed()));
    let tensors = document["tensors"].as_array().unwrap();
    let tensor = |name: &str| tensors.iter().find(|t| t["name"] == name).unwrap();

    let embedding = tensor("model.embed_tokens.weight");
    assert_eq!(embedding["dtype"], "BF16");
    assert_eq!(embedding["shape"].as_array().unwrap().len(), 2);
    let bits = embedding["bits_per_weight"].as_f64().unwrap();
    let bound = embedding["entropy_bits_per_weight"].as_f64().unwrap();
    assert!(10.0 < bound && bound < bits && bits < 11.5);
    let bytes = |field: &str| embedding[field].as_u64().unwrap();
    assert!(bytes("stored_bytes") < bytes("original_bytes"));

    let norm = tensor("model.norm.weight");
    assert_eq!(norm["window"], Value::Null);
    assert_eq!(norm["storage"], "planes");
    assert_eq!(norm["reason"], "fewer than two dimensions");
    let frequencies = tensor("model.rotary_emb.inv_freq");
    assert_eq!(frequencies["stored_bytes"], frequencies["original_bytes"]);
    assert_eq!(frequencies["reason"], "would not shrink");

    let total = &document["total"];
    let original = fs::metadata(folder.original()).unwrap().len();
    assert_eq!(total["original_bytes"], original);
    let ratio = total["stored_bytes"].as_f64().unwrap() / original as f64;
    assert_eq!(total["ratio"], ratio);
    assert!(total["bits_per_weight"].as_f64().unwrap() < 11.5);

    // An original file tells what compressing it would give.
    let before = json(inspect(&folder.original()));
    assert_eq!(before["total"], document["total"]);
}

#[test]
fn archives_are_smaller_and_become_the_form_for_gpus() {
    let folder = Folder::new();
    let compressed = folder.compressed();
    let [archive, again] = ["archive", "again"].map(|name| folder.path(name));
    let document = json({
        let mut command = compress(&folder.original(), &archive);
        command.arg("--archive");
        command
    });
    assert!(document["total"]["bits_per_weight"].as_f64().unwrap() < 10.7);
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(size(&archive) < size(&compressed));
    verify(&archive, &folder.original()).assert().success();
    let convert = |from: &Path, to: &Path| {
        let mut command = zipserv();
        command.arg("convert").arg(from).arg("-o").arg(to);
        command
    };
    convert(&archive, &again)
        .assert()
        .success()
        .stdout(contains("converted"));
    assert!(fs::read(&again).unwrap() == fs::read(&compressed).unwrap());
    convert(&compressed, &again)
        .args(["--archive", "--force"])
        .assert()
        .success();
    assert!(fs::read(&again).unwrap() == fs::read(&archive).unwrap());
    convert(&folder.original(), &again)
        .arg("--force")
        .assert()
        .code(2)
        .stderr(contains("not compressed by zipserv"));
}

#[test]
fn jobs_report_in_json() {
    let folder = Folder::new();
    let compressed = folder.path("compressed.safetensors");
    let document = json(compress(&folder.original(), &compressed));
    assert!(document["total"]["ratio"].as_f64().unwrap() < 0.8);
    assert!(document["bytes_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(json(verify(&compressed, &folder.original()))["equal"], true);
    let restored = folder.path("restored.safetensors");
    let document = json(decompress(&compressed, &restored));
    assert_eq!(
        document["total"]["original_bytes"],
        fs::metadata(restored).unwrap().len()
    );
}

/// What `inspect` prints with so many columns.
fn table(path: &Path, columns: usize, arguments: &[&str]) -> String {
    let mut command = inspect(path);
    command.args(arguments).env("COLUMNS", columns.to_string());
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

#[test]
fn prints_a_table() {
    let folder = Folder::new();
    let path = folder.compressed();
    inspect(&path)
        .assert()
        .success()
        .stdout(contains("entropy bound").and(contains("model.layers.{0..1}.mlp.up_proj.weight")));
    let narrow = table(&path, 60, &[]);
    assert!(
        !narrow.contains("outliers") && narrow.contains("model.layers.{0..1}."),
        "{narrow}"
    );
    let mut command = inspect(&path);
    command.args(["--filter", "*.mlp.*", "--sort", "size", "--all"]);
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let rows: Vec<_> = text
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .collect();
    assert!(
        rows.len() > 1 && rows.iter().all(|row| row.contains(".mlp.")),
        "{text}"
    );

    let mut command = inspect(&path);
    command.args(["--filter", "*.mlp.*", "--sort", "name"]);
    let document = json(command);
    let tensors = document["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), rows.len());
    let name = |tensor: &Value| tensor["name"].as_str().unwrap().to_owned();
    assert!(tensors.is_sorted_by_key(name));
    assert_eq!(document["total"], json(inspect(&path))["total"]);

    let mut none = inspect(&path);
    none.args(["--filter", "nothing*"]);
    none.assert()
        .code(2)
        .stderr(contains("no tensor has a name like nothing*"));
    let mut bad = inspect(&path);
    bad.args(["--filter", "[a"]);
    bad.assert().code(2).stderr(contains("--filter"));
}

/// The table has a column for experts where there are some, and JSON says what each tensor holds.
#[test]
fn inspects_stacks_of_experts() {
    let folder = Folder::new();
    let path = folder.path("experts");
    let shapes = [("a", [4, 60, 128]), ("b", [5, 40, 128])];
    let (mut entries, mut end) = (Vec::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        entries.push(format!(
            r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
    }
    let json_text = format!("{{{}}}", entries.join(","));
    let mut file = (json_text.len() as u64).to_le_bytes().to_vec();
    file.extend(json_text.bytes());
    file.extend([0x3C; 2].repeat(end / 2));
    fs::write(&path, file).unwrap();

    let text = table(&path, 200, &[]);
    assert!(text.lines().next().unwrap().ends_with("experts"), "{text}");
    let row = |name| text.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(row("a ").ends_with("4 of 60 rows"), "{text}");
    assert!(row("b ").ends_with("5 of 40 rows, not aligned"), "{text}");
    let without = folder.compressed();
    let others = table(&without, 200, &[]);
    assert!(!others.contains("experts"), "{others}");

    let document = json(inspect(&path));
    let stack = |index: usize| document["tensors"][index]["stack"].clone();
    let expected = |experts, rows, aligned| serde_json::json!({"experts": experts, "rows": rows, "aligned": aligned});
    assert_eq!(stack(0), expected(4, 60, true));
    assert_eq!(stack(1), expected(5, 40, false));
    assert!(
        json(inspect(&without))["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .all(|tensor| tensor["stack"].is_null())
    );
}

/// Whether the layers have names as models have them, or none that are alike.
#[test]
fn inspects_5000_tensors_in_less_than_100_lines() {
    let folder = TempDir::new().unwrap();
    let vector = |name: String| support::tensor(&name, "BF16", &[2], vec![0; 4]);
    let layer = |n: usize| {
        let experts = (0..7).flat_map(|expert| {
            let names = ["gate_proj", "up_proj", "down_proj"];
            names.map(|name| format!("mlp.experts.{expert}.{name}.weight"))
        });
        let names =
            ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| format!("self_attn.{name}.weight"));
        let names: Vec<_> = experts.chain(names).collect();
        names
            .into_iter()
            .map(move |name| format!("model.layers.{n}.{name}"))
    };
    let layers = (0..200).flat_map(layer).map(vector);
    // Of any length, and each of another dtype or none.
    let odd = (0..5000).map(|n| {
        let name = format!("{}{n:x}x{}", "a".repeat(n % 150), ".weight".repeat(n % 9));
        match n % 40 {
            dtype if dtype < 30 => {
                let dtype: &str = format!("D{dtype}").leak();
                support::tensor(&name, dtype, &[n as u64 + 1, 12345], vec![0; 3])
            }
            _ => vector(name),
        }
    });
    for (name, tensors, rows) in [
        ("model", layers.collect::<Vec<_>>(), 7),
        ("odd", odd.collect(), 40),
    ] {
        assert_eq!(tensors.len(), 5000);
        let path = folder.path().join(name);
        fs::write(&path, support::checkpoint(&tensors)).unwrap();
        let text = table(&path, 80, &[]);
        assert!(text.lines().count() < 100, "{text}");
        let is_short = |line: &str| line.chars().count() <= 80;
        assert!(text.lines().all(is_short), "{text}");
        let wide = table(&path, 300, &[]);
        let shown = wide
            .lines()
            .skip(1)
            .take_while(|line| !line.is_empty() && !line.starts_with("..."));
        assert_eq!(shown.count(), rows, "{wide}");
        let all = table(&path, 300, &["--all"]);
        assert!(all.lines().count() > 5000);
        assert!(!all.contains("--all"));
    }
    let text = table(&folder.path().join("model"), 120, &[]);
    assert!(
        text.contains("model.layers.{0..199}.mlp.experts.{0..6}.up_proj.weight    1400  5.60 kB "),
        "{text}"
    );
    let text = table(&folder.path().join("odd"), 120, &[]);
    assert!(text.contains("... and 4960 more tensors, "), "{text}");
}

#[test]
fn colours_stay_out_of_pipes() {
    let folder = Folder::new();
    for arguments in [&["-vv", "inspect"][..], &["--help"], &["unknown"]] {
        let mut command = zipserv();
        command.args(arguments).env("CLICOLOR", "1");
        if arguments.contains(&"inspect") {
            command.arg(folder.original());
        }
        let output = command.output().unwrap();
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b));
    }
}

#[test]
fn quiet_jobs_say_nothing() {
    let folder = Folder::new();
    let [small, restored, tiny] = ["small", "restored", "tiny"].map(|name| folder.path(name));
    let quietly = |mut command: Command| command.arg("--quiet").assert().success();
    quietly(compress(&folder.original(), &small))
        .stdout("")
        .stderr("");
    quietly(verify(&small, &folder.original()))
        .stdout("")
        .stderr("");
    quietly(decompress(&small, &restored)).stdout("").stderr("");
    // What was asked for, and warnings.
    quietly(inspect(&small)).stdout(contains("bits a weight"));
    let mut different = verify(&small, &tiny);
    fs::write(
        &tiny,
        support::checkpoint(&[support::tensor("v", "U8", &[1], vec![1])]),
    )
    .unwrap();
    different
        .arg("-q")
        .assert()
        .code(1)
        .stdout(contains("different: "));
    let larger = quietly(compress(&tiny, &folder.path("larger")));
    larger.stderr(contains(
        "warning: the output is larger than the input, by ",
    ));
    zipserv().args(["-q", "-v", "demo"]).assert().code(2);
}

#[test]
fn too_many_threads_are_told() {
    let folder = Folder::new();
    let mut command = inspect(&folder.original());
    command
        .args(["--threads", "1000000"])
        .assert()
        .success()
        .stderr(contains("threads, not 1000000: more than 4 for each of "));
    let mut command = inspect(&folder.original());
    command
        .args(["--threads", "1"])
        .assert()
        .success()
        .stderr("");
}

/// From a pipe, from a file, and to a pipe.
#[test]
fn standard_input_and_output() {
    let folder = Folder::new();
    let (dash, original) = (Path::new("-"), fs::read(folder.original()).unwrap());
    let small = folder.compressed();
    let [piped, redirected] = ["piped", "redirected"].map(|name| folder.path(name));
    let said = compress(dash, &piped)
        .write_stdin(original.clone())
        .assert()
        .success();
    said.stdout(contains("compressed "));
    assert!(fs::read(&piped).unwrap() == fs::read(&small).unwrap());
    let mut command = Process::new(assert_cmd::cargo::cargo_bin("zipserv"));
    command.args(["compress", "-", "-q", "-o"]).arg(&redirected);
    command.stdin(fs::File::open(folder.original()).unwrap());
    assert!(command.status().unwrap().success());
    assert!(fs::read(&redirected).unwrap() == fs::read(&small).unwrap());

    let output = decompress(&small, dash)
        .assert()
        .success()
        .stderr(contains("restored "));
    assert!(output.get_output().stdout == original);
    let mut both = decompress(dash, dash);
    both.write_stdin(fs::read(&small).unwrap());
    assert!(both.assert().success().get_output().stdout == original);
    let mut verify = verify(&small, dash);
    verify.write_stdin(original.clone()).assert().success();
    let mut piped = inspect(dash);
    let document = piped
        .arg("--json")
        .write_stdin(original.clone())
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&document.stdout).unwrap();
    assert_eq!(document["tensors"][0]["file"], "-");
    // Nothing is left.
    let names = [
        "compressed.safetensors",
        "original.safetensors",
        "piped",
        "redirected",
    ];
    assert_eq!(support::names(folder.0.path()), names);

    let mut damaged = original.clone();
    damaged.truncate(original.len() - 1);
    let mut command = compress(dash, &folder.path("none"));
    let refused = command.write_stdin(damaged).assert().code(2).stdout("");
    refused.stderr(contains("error: standard input: the data is truncated"));
    for (input, output, said) in [
        (
            folder.0.path(),
            dash,
            "a folder cannot go to standard output",
        ),
        (&*small, dash, "--json prints where the output goes"),
    ] {
        let mut command = decompress(input, output);
        if input == small {
            command.arg("--json");
        }
        command.assert().code(2).stdout("").stderr(contains(said));
    }
    let mut command = zipserv();
    command.args(["verify", "-", "-"]).assert().code(2);
    let mut synth = zipserv();
    let output = synth
        .args(["synth", "-", "--size", "1MB"])
        .assert()
        .success();
    assert!(output.get_output().stdout == original);
}

#[test]
fn several_files_go_to_a_folder() {
    let folder = Folder::new();
    let [small, restored, broken] =
        ["small", "restored", "broken.safetensors"].map(|name| folder.path(name));
    let other = folder.path("other.safetensors");
    fs::copy(folder.original(), &other).unwrap();
    fs::write(&broken, "PK\x03\x04 and more").unwrap();
    let run = |name: &str, inputs: &[&Path], output: &Path| {
        let mut command = zipserv();
        command.arg(name).args(inputs).arg("-o").arg(output);
        command
    };
    let original = folder.original();
    // One is no checkpoint, the others are compressed all the same.
    let mut all = run("compress", &[&broken, &original, &other], &small);
    let said = all
        .assert()
        .code(2)
        .stdout(contains("original.safetensors: compressed "));
    said.stderr(contains("broken.safetensors: a zip archive"));
    let names = ["original.zipserv.safetensors", "other.zipserv.safetensors"];
    assert_eq!(support::names(&small), names);
    let [first, second] = names.map(|name| small.join(name));
    let mut all = run("decompress", &[&first, &second], &restored);
    let document = all.arg("--json").output().unwrap();
    let document: Value = serde_json::from_slice(&document.stdout).unwrap();
    assert_eq!(
        document[1]["output"],
        *restored.join("other.safetensors").to_str().unwrap()
    );
    assert_eq!(
        support::names(&restored),
        ["original.safetensors", "other.safetensors"]
    );
    for name in support::names(&restored) {
        assert!(
            fs::read(restored.join(&name)).unwrap() == fs::read(&original).unwrap(),
            "{name}"
        );
    }
    // A folder that is there takes one file too; what is there stays.
    run("compress", &[&original], &small)
        .assert()
        .code(2)
        .stderr(contains("already exists"));
    run("compress", &[&original], &small)
        .arg("--force")
        .assert()
        .success();
    let both = run("compress", &[&original, &original], &small)
        .assert()
        .code(2);
    both.stderr(contains("would both become"));
}

#[test]
fn version_completions_and_manual() {
    let mut command = zipserv();
    let version = command.arg("--version").assert().success();
    let version = String::from_utf8(version.get_output().stdout.clone()).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap();
    let git = Process::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(root)
        .output();
    let commit = git.ok().filter(|output| output.status.success());
    let commit = commit.map(|output| String::from_utf8(output.stdout).unwrap());
    let commit = commit.map_or(String::new(), |commit| format!(" ({})", &commit[..9]));
    assert_eq!(
        version,
        format!("zipserv {}{commit}\n", env!("CARGO_PKG_VERSION"))
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let mut command = zipserv();
        command
            .args(["completions", shell])
            .assert()
            .success()
            .stdout(contains("decompress"));
    }
    let mut command = zipserv();
    command
        .arg("man")
        .assert()
        .success()
        .stdout(contains(".TH zipserv 1"));
    let folder = TempDir::new().unwrap();
    let mut command = zipserv();
    command
        .arg("man")
        .arg(folder.path())
        .assert()
        .success()
        .stdout("");
    assert!(folder.path().join("zipserv-compress.1").is_file());
    let mut command = zipserv();
    let nowhere = command
        .arg("man")
        .arg(folder.path().join("none"))
        .assert()
        .code(2);
    nowhere.stderr(contains("error: no such file: "));
}

#[test]
fn plots() {
    let folder = Folder::new();
    let plot = folder.path("exponents.png");
    let command = || {
        let mut command = inspect(&folder.original());
        command.arg("--plot").arg(&plot);
        command
    };
    command().assert().success();
    assert!(fs::read(&plot).unwrap().starts_with(b"\x89PNG"));
    command().assert().code(2);
    command().arg("--force").assert().success();
}

#[test]
fn demonstrates() {
    zipserv()
        .args(["demo", "--size", "2MB"])
        .assert()
        .success()
        .stdout(contains("SHA-256").and(contains("\nequal\n")));

    let folder = TempDir::new().unwrap();
    let mut command = zipserv();
    command.args(["demo", "--size", "2MB", "--keep"]);
    command.arg(folder.path());
    let document = json(command);
    assert_eq!(document["equal"], true);
    assert_eq!(document["original_sha256"], document["restored_sha256"]);
    for name in ["original", "compressed", "restored"] {
        let path = folder.path().join(name).with_extension("safetensors");
        assert!(path.is_file());
    }
}

#[test]
fn bad_input_has_exit_code_2_and_a_sentence() {
    let folder = TempDir::new().unwrap();
    let [missing, other, output] = ["missing", "other", "out"].map(|name| folder.path().join(name));
    let said = format!("error: no such file: {}\n", missing.display());
    for mut command in [
        compress(&missing, &output),
        decompress(&missing, &output),
        verify(&missing, &other),
        inspect(&missing),
    ] {
        command.assert().code(2).stdout("").stderr(said.clone());
    }
    fs::write(&other, "not a checkpoint").unwrap();
    for mut command in [
        compress(&other, &output),
        decompress(&other, &output),
        verify(&other, &other),
        inspect(&other),
    ] {
        let one_line = predicates::function::function(|text: &str| text.lines().count() == 1);
        command
            .assert()
            .code(2)
            .stderr(contains("error: ").and(one_line));
    }
    assert!(!output.exists());
    let nowhere = folder.path().join("no").join("out");
    let said = format!(
        "error: no such folder: {}\n",
        folder.path().join("no").display()
    );
    fs::write(&other, support::checkpoint(&[])).unwrap();
    compress(&other, &nowhere).assert().code(2).stderr(said);

    fs::write(
        &other,
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
    )
    .unwrap();
    let said = "other: a pointer of Git LFS, not the file itself; `git lfs pull` downloads that\n";
    compress(&other, &output)
        .assert()
        .code(2)
        .stderr(contains(said));
}

#[test]
fn bad_usage_has_exit_code_2() {
    for arguments in [
        &[][..],
        &["compress"],
        &["inspect", "x", "--threads", "0"],
        &["demo", "--size", "big"],
        &["unknown"],
    ] {
        zipserv().args(arguments).assert().code(2).stdout("");
    }
}

#[test]
fn survives_a_reader_that_stops() {
    let folder = Folder::new();
    let mut child = Process::new(assert_cmd::cargo::cargo_bin("zipserv"))
        .arg("inspect")
        .arg(folder.original())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "");
}

mod gpu {
    use super::*;

    fn without_device(mut command: Command) -> assert_cmd::assert::Assert {
        command.env("CUDA_VISIBLE_DEVICES", "-1").assert()
    }

    /// What a command prints, unless it lacks something that tests do without.
    fn output(mut command: Command) -> Option<String> {
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let missing = [
            "no NVIDIA driver found",
            "there is no CUDA device",
            "libcublas",
        ];
        if missing.iter().any(|what| said.contains(what)) {
            assert_eq!(output.status.code(), Some(2));
            // The macros that print would be captured.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {said}");
            return None;
        }
        assert!(output.status.success(), "{said}");
        Some(String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn says_that_there_is_no_device() {
        let folder = TempDir::new().unwrap();
        let mut gpu = zipserv();
        gpu.arg("gpu");
        let mut tune = zipserv();
        tune.args(["tune", "--output"])
            .arg(folder.path().join("tuned.json"));
        for command in [gpu, tune] {
            without_device(command).code(2).stdout("").stderr(
                contains("error: no NVIDIA driver found\n")
                    .or(contains("error: there is no CUDA device 0")),
            );
        }
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    }

    #[test]
    fn says_what_it_would_try() {
        let mut command = zipserv();
        command.args(["tune", "--dry-run", "--layers", "4096x4096", "--n", "1,64"]);
        without_device(command).success().stdout(
            contains("4096 x 4096, N=1:\n  zipgemm_n8_2x4x2, 132 blocks\n")
                .and(contains("4096 x 4096, N=64:\n"))
                .and(contains("  prefill_n64, 128 blocks, 16 tiles shared\n")),
        );
        for arguments in [
            &["--n", "0"][..],
            &["--layers", "0x1"],
            &["--dry-run", "--force"],
        ] {
            let mut command = zipserv();
            command.arg("tune").args(arguments);
            without_device(command).code(2).stdout("");
        }
    }

    #[test]
    fn tunes_and_goes_on() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("new folder").join("tuned.json");
        let tune = |tokens: &str| {
            let mut command = zipserv();
            command.args([
                "tune", "--quick", "--layers", "500x600", "--n", tokens, "--output",
            ]);
            command.arg(&path);
            output(command)
        };
        let Some(first) = tune("8") else { return };
        assert!(first.contains("500 x 600, N=8: ") && first.contains("lift"));
        let second = tune("8,64").unwrap();
        assert!(!second.contains("N=8: ") && second.contains("N=64: "));
        let table: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let rows = table["rows"].as_array().unwrap();
        assert_eq!((&rows[0]["n"], &rows[1]["n"]), (&8.into(), &64.into()));

        let other = fs::read_to_string(&path).unwrap();
        let other = other.replace("\"ptx_crc32\": ", "\"ptx_crc32\": 1");
        fs::write(&path, other).unwrap();
        let mut command = zipserv();
        command.arg("tune").arg("--output").arg(&path);
        let refused = command.assert().code(2).stdout("");
        refused.stderr(contains("error: ").and(contains("--force replaces it")));
    }

    #[test]
    fn kernels_pass_their_test() {
        let mut command = zipserv();
        command.args(["gpu", "--json"]);
        let Some(document) = output(command) else {
            return;
        };
        let document: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["passed"], true);
        assert!(document["memory_bytes"].as_u64().unwrap() > 0);
        let checks = document["checks"].as_array().unwrap();
        assert!(checks.iter().all(|check| check["error"] == Value::Null));
        assert!(checks.iter().any(|check| check["weights"] == "outliers"));
    }
}

/// Names of tensors and files that would set the terminal's title, clear the screen, or forge a line.
#[test]
fn names_do_not_reach_the_terminal_as_they_are() {
    let names = [
        "w\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[31m",
        "b\r\nequal: 0 B",
        "r\u{202e}txt.thgiew",
        "l\u{2028}line",
    ];
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut entries = Vec::new();
    let mut data: Vec<u8> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        // A matrix, which is compressed, and vectors of a dtype with an odd name.
        let (dtype, shape, bytes) = match index {
            0 => ("BF16", "[64,64]", vec![0x3F; 2 * 64 * 64]),
            1 => ("U8\u{1b}[1m", "[3]", vec![1; 3]),
            _ => ("U8", "[3]", vec![1; 3]),
        };
        let (name, dtype) = (
            serde_json::to_string(name).unwrap(),
            serde_json::to_string(dtype).unwrap(),
        );
        let (start, end) = (data.len(), data.len() + bytes.len());
        data.extend(bytes);
        entries.push(format!(
            r#"{name}:{{"dtype":{dtype},"shape":{shape},"data_offsets":[{start},{end}]}}"#
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    let original = path("o\u{1b}[5m\n.safetensors");
    let write = |data: &[u8]| {
        let file = [
            &(header.len() as u64).to_le_bytes(),
            header.as_bytes(),
            data,
        ]
        .concat();
        fs::write(&original, file).unwrap();
    };
    write(&data);
    let small = path("small\n.safetensors");
    let absent = path("absent\u{1b}[5m");
    let damaged = path("d\u{9b}1m.safetensors");
    fs::write(&damaged, b"not one").unwrap();
    let mut shown = String::new();
    let mut run = |mut command: Command| {
        let output = command.output().unwrap();
        for text in [&output.stdout, &output.stderr] {
            let text = String::from_utf8(text.clone()).unwrap();
            let is_odd = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2028}".contains(c));
            assert!(!text.contains(is_odd), "{text:?}");
            assert!(!text.lines().any(|line| line == "equal: 0 B"), "{text}");
            shown += &text;
        }
    };
    run(compress(&original, &small));
    run(compress(&original, &small));
    run(inspect(&small));
    run(inspect(&original));
    run(inspect(&absent));
    run(inspect(&damaged));
    run(verify(&small, &original));
    // Another weight, then other bytes of a vector.
    for at in [5, data.len() - 8] {
        let mut other = data.clone();
        other[at] ^= 1;
        write(&other);
        run(verify(&small, &original));
    }
    assert!(shown.contains(r"w\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[31m"));
    assert!(shown.contains(r"b\r\nequal: 0 B"));

    // For programs names are exact.
    let report = json(inspect(&small)).to_string();
    assert!(report.contains(&serde_json::to_string(names[1]).unwrap()));
}

/// The output that is being written goes, with one line and the exit code of the signal.
#[test]
fn signals_leave_nothing_behind() {
    let folder = Folder::new();
    let original = folder.path("large.safetensors");
    let mut synth = zipserv();
    synth
        .args(["synth", "--size", "800MB"])
        .arg(&original)
        .assert()
        .success();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        // Tests that run in the background have signals ignored, and so would the program.
        let mut child = Process::new("env")
            .arg("--default-signal=INT,TERM,HUP")
            .arg(assert_cmd::cargo::cargo_bin("zipserv"))
            .args(["--threads", "1", "compress"])
            .arg(&original)
            .arg("-o")
            .arg(folder.path("output"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let partial = || {
            let names = fs::read_dir(folder.0.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.ends_with(".partial")).count()
        };
        while partial() == 0 {
            assert!(
                child.try_wait().unwrap().is_none(),
                "it ended before it was interrupted"
            );
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let kill = format!("kill -{signal} {}", child.id());
        assert!(
            Process::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{signal}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, format!("interrupted by SIG{signal}\n"));
        assert_eq!(partial(), 0);
        assert!(!folder.path("output").exists());
    }
}

/// `nohup` has SIGHUP ignored.
#[test]
fn ignored_signals_stay_ignored() {
    let folder = Folder::new();
    let program = assert_cmd::cargo::cargo_bin("zipserv");
    let (program, original) = (program.display(), folder.original());
    let (original, output) = (original.display(), folder.path("output"));
    let script = format!(
        "trap '' HUP; {program} compress {original} -o {} & kill -HUP $!; wait $!",
        output.display()
    );
    let status = Process::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    assert!(output.exists());
}
