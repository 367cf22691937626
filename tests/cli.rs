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
            contains("model.rotary_emb.inv_freq (128 B): F32, not BF16")
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
    assert_eq!(norm["entropy_bits_per_weight"], Value::Null);
    assert_eq!(norm["stored_bytes"], norm["original_bytes"]);
    assert_eq!(norm["reason"], "fewer than two dimensions");

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

#[test]
fn prints_a_table() {
    let folder = Folder::new();
    inspect(&folder.compressed())
        .assert()
        .success()
        .stdout(contains("entropy bound").and(contains("model.layers.0.mlp.up_proj.weight")));
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
fn bad_input_has_exit_code_2_and_a_cause() {
    let folder = TempDir::new().unwrap();
    let [missing, other, output] = ["missing", "other", "out"].map(|name| folder.path().join(name));
    compress(&missing, &output)
        .assert()
        .code(2)
        .stdout("")
        .stderr(
            contains("error: ")
                .and(contains("missing"))
                .and(contains("caused by: No such file or directory")),
        );
    fs::write(&other, "not a checkpoint").unwrap();
    for mut command in [
        compress(&other, &output),
        decompress(&other, &output),
        verify(&other, &other),
        inspect(&other),
    ] {
        command.assert().code(2).stderr(contains("error: "));
    }
    assert!(!output.exists());
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
        .args(["synth", "--size", "200MB"])
        .arg(&original)
        .assert()
        .success();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut child = Process::new(assert_cmd::cargo::cargo_bin("zipserv"))
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
