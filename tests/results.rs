//! `zipserv results` on files with made-up figures.

use std::{
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use predicates::{prelude::*, str::contains};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, report: &Value) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, report.to_string()).unwrap();
        path
    }
}

fn results(files: &[&Path]) -> Command {
    let mut command = Command::cargo_bin("zipserv").unwrap();
    command.arg("results").args(files);
    command
}

/// What `bench` would write if these were measurements.
fn report(rows: Vec<Value>) -> Value {
    json!({
        "device": "made up for a test",
        "driver": "none",
        "kernels": "sm_90a",
        "date": "2026-01-31T12:00:00Z",
        "commit": null,
        "seed": 1,
        "replays": 5,
        "ceilings": { "copy": 2.5, "read": 3.0 },
        "gemm": rows,
        "means": [],
        "decompress": [],
    })
}

/// 1000 x 500 takes cuBLAS 100 us, whatever the number of tokens, and twice as long without
/// dependent launch as with it.
fn row(model: &str, n: usize, dependent: f64, decoupled: Option<f64>) -> Value {
    let figure = |speedup: f64| json!({ "us": 100.0 / speedup, "tbs": 1.5, "of_read": 0.5, "tflops": 0.0, "speedup": speedup });
    json!({
        "layer": {
            "model": model,
            "name": "up",
            "rows": 1000,
            "cols": 500,
            "compressed_bytes": 700_000,
        },
        "n": n,
        "cublas_us": 100.0,
        "cublas_tflops": 0.0,
        "cublas_choice": "cublasGemmEx",
        "limit": 1.75,
        "decoupled": decoupled.map(|speedup| json!({
            "cublas_choice": "cublasGemmEx",
            "us": 100.0 / speedup,
            "tflops": 0.0,
            "speedup": speedup,
            "deviation": 0.0,
            "correct": true,
        })),
        "kernels": [{
            "kernel": "a kernel",
            "blocks": 132,
            "split": null,
            "planned": true,
            "plain": figure(dependent / 2.0),
            "dependent": figure(dependent),
            "deviation": 0.0,
            "correct": true,
        }],
    })
}

/// Two models, of which one has a number of tokens that the other lacks.
fn two_models() -> Value {
    report(vec![
        row("small", 8, 1.6, None),
        row("small", 128, 1.25, Some(0.4)),
        row("large", 8, 0.9, None),
        row("large", 16, 1.2, None),
        row("large", 128, 0.8, Some(0.9)),
    ])
}

#[test]
fn prints_tables_of_merged_files() {
    let folder = Folder::new();
    let old = folder.write("old.json", &two_models());
    let new = folder.write("new.json", &report(vec![row("large", 8, 2.5, None)]));
    let tables = "\
ZipGEMM, x cuBLAS, on made up for a test:

| layer (M x K) | N=8 | 16 | 128 | limit at N=8 | of the read ceiling at N=8 |
| --- | --- | --- | --- | --- | --- |
| small up 1000 x 500 | 1.60x |  | 1.25x | 1.75x | 50 % |
| large up 1000 x 500 | 2.50x | 1.20x | 0.80x | 1.75x | 50 % |
| **geometric mean** | **2.00x** |  | **1.00x** |  |  |
| without dependent launch | 1.00x |  | 0.50x |  |  |
| decompression, then cuBLAS |  |  | 0.60x |  |  |
| if compressed bytes moved at the read ceiling | 1.75x |  |  |  |  |

TFLOP/s of ZipGEMM / decompression, then cuBLAS / cuBLAS:

| layer (M x K) | N=128 |
| --- | --- |
| small up 1000 x 500 | 2 / 1 / 1 |
| large up 1000 x 500 | 1 / 1 / 1 |
";
    results(&[&old, &new]).assert().success().stdout(tables);
    let swapped = results(&[&new, &old]).assert().success();
    swapped.stdout(contains("| large up 1000 x 500 | 0.90x | 1.20x | 0.80x |"));
}

#[test]
fn reads_files_from_before_all_figures_were_told() {
    let folder = Folder::new();
    let mut old = two_models();
    for row in old["gemm"].as_array_mut().unwrap() {
        let row = row.as_object_mut().unwrap();
        row.remove("cublas_tflops");
        row.remove("decoupled");
        let kernel = row["kernels"][0].as_object_mut().unwrap();
        for how in ["plain", "dependent"] {
            kernel[how].as_object_mut().unwrap().remove("tflops");
        }
    }
    let old = folder.write("old.json", &old);
    results(&[&old])
        .assert()
        .success()
        .stdout(contains("2 / - / 1").and(contains("then cuBLAS |").not()));
}

#[test]
fn plots() {
    let folder = Folder::new();
    let file = folder.write("results.json", &two_models());
    let plot = |name: &str| {
        let mut command = results(&[&file]);
        command.arg("--plot").arg(folder.path(name));
        command
    };
    plot("plot.png").assert().success();
    let png = fs::read(folder.path("plot.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG"));

    plot("plot.svg").assert().success();
    let svg = fs::read_to_string(folder.path("plot.svg")).unwrap();
    for text in [
        "made up for a test",
        "small",
        "large",
        "lighter",
        "dashed",
        "1.0x",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    let number = |line: &str, name: &str| -> i32 {
        let from = line.split_once(&format!(" {name}=\"")).unwrap().1;
        from.split_once('"').unwrap().0.parse().unwrap()
    };
    let points: Vec<_> = svg
        .lines()
        .filter(|line| line.starts_with("<circle"))
        .map(|line| (number(line, "cx"), number(line, "cy")))
        .collect();
    // The small model's with 8 and 128 tokens, then the large one's with 16 between them.
    let [small_8, small_128, large_8, large_16, large_128] = points[..] else {
        panic!("five points: {points:?}")
    };
    assert_eq!((small_8.0, small_128.0), (large_8.0, large_128.0));
    let (octave, four) = (large_16.0 - large_8.0, large_128.0 - large_8.0);
    assert!((four - 4 * octave).abs() <= 4, "logarithmic: {points:?}");
    // Speedups of 1.6, 1.25, 1.2, 0.9 and 0.8, the largest on top.
    let heights = [small_8, small_128, large_16, large_8, large_128].map(|point| point.1);
    assert!(heights.is_sorted(), "{points:?}");
    let (drop, tenth) = (heights[3] - heights[0], heights[4] - heights[3]);
    assert!((drop - 7 * tenth).abs() <= 7, "linear: {points:?}");

    let exists = plot("plot.svg").assert().code(2).stdout("");
    exists.stderr(contains("plot.svg: already exists; --force replaces it"));
    plot("plot.svg").arg("--force").assert().success();
    let other = plot("plot.txt").assert().code(2).stdout("");
    other.stderr(contains("neither .svg nor .png"));
    let nowhere = plot("missing/plot.svg").assert().code(2).stdout("");
    nowhere.stderr(contains("missing/plot.svg: "));
}

#[test]
fn plots_one_point() {
    let folder = Folder::new();
    let file = folder.write("results.json", &report(vec![row("only", 1, 1.5, None)]));
    let mut command = results(&[&file]);
    command.arg("--plot").arg(folder.path("plot.svg"));
    command.assert().success();
}

#[test]
fn says_what_is_wrong_with_which_file() {
    /// Makes a good report a bad one.
    type Spoil = fn(&mut Value);
    let folder = Folder::new();
    let good = folder.write("good.json", &two_models());
    let cases: [(&str, Spoil); 9] = [
        ("not what `bench --json` writes", |r| *r = json!({})),
        ("not what `bench --json` writes", |r| {
            r["gemm"][1]["limit"] = Value::Null;
        }),
        ("no multiplication is in it", |r| r["gemm"] = json!([])),
        ("small up, 128 tokens: no kernel", |r| {
            r["gemm"][1]["kernels"] = json!([]);
        }),
        ("some outputs were wrong", |r| {
            r["gemm"][1]["decoupled"]["correct"] = json!(false);
        }),
        ("small up, 0 tokens: 0 cannot be", |r| {
            r["gemm"][1]["n"] = json!(0)
        }),
        ("128 tokens: -1 cannot be", |r| {
            r["gemm"][1]["kernels"][0]["dependent"]["speedup"] = json!(-1);
        }),
        ("cannot be a measurement", |r| {
            r["gemm"][1]["decoupled"]["us"] = json!(1e300);
        }),
        ("of another device (sm_90a), unlike", |r| {
            r["device"] = json!("another device");
        }),
    ];
    for (what, spoil) in cases {
        let mut report = two_models();
        spoil(&mut report);
        let bad = folder.write("bad.json", &report);
        let plot = folder.path("plot.svg");
        let mut command = results(&[&good, &bad]);
        command.arg("--plot").arg(&plot);
        command
            .assert()
            .code(2)
            .stdout("")
            .stderr(contains("bad.json: ").and(contains(what)));
        assert!(!plot.exists());
    }
    let cut = folder.path("cut.json");
    fs::write(&cut, "{\"device\": ").unwrap();
    let cut = results(&[&cut]).assert().code(2).stdout("");
    cut.stderr(contains("cut.json: not what `bench --json` writes: EOF"));
    let missing = results(&[&folder.path("missing.json")]).assert();
    missing
        .code(2)
        .stderr(contains("missing.json: No such file"));
    results(&[]).assert().code(2);
}
