//! `zipserv-bench results` and `report` on files with made-up figures, and on those of this repository.

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
    let mut command = Command::cargo_bin("zipserv-bench").unwrap();
    command.arg("results").args(files);
    command
}

fn page(files: &[&Path], output: &Path) -> Command {
    let mut command = Command::cargo_bin("zipserv-bench").unwrap();
    command.arg("report").args(files).arg("-o").arg(output);
    command
}

/// A page as text, with the slashes of its paths as they were.
fn read_page(path: &Path) -> String {
    fs::read_to_string(path).unwrap().replace("&#x2f;", "/")
}

/// What `gemm` would write if these were measurements.
fn report(rows: Vec<Value>) -> Value {
    json!({
        "device": "made up for a test",
        "driver": "none",
        "kernels": "sm_90a",
        "ptx_crc32": 7,
        "tuned": false,
        "date": "2026-01-31T12:00:00Z",
        "commit": null,
        "seed": 1,
        "replays": 5,
        // Where 700,000 bytes take so long that the limit is 1.75 x cuBLAS.
        "read_tbs": 0.01225,
        "gemm": rows,
        "decompress": [],
    })
}

/// 1000 x 500 takes cuBLAS 100 us, whatever the number of tokens, and twice as long without
/// programmatic dependent launch as with it.
fn row(model: &str, n: usize, pdl: f64, decoupled: Option<f64>) -> Value {
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
        "cublas_choice": "cublasGemmEx",
        "decoupled": decoupled.map(|speedup| json!({
            "cublas_choice": "cublasGemmEx",
            "us": 100.0 / speedup,
            "deviation": 0.0,
            "correct": true,
        })),
        "kernels": [{
            "kernel": "a kernel",
            "blocks": 132,
            "shared_tiles": null,
            "planned": true,
            "plain_us": 200.0 / pdl,
            "pdl_us": 100.0 / pdl,
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
| small up 1000 x 500 | 1.60x |  | 1.25x | 1.75x | 91 % |
| large up 1000 x 500 | 2.50x | 1.20x | 0.80x | 1.75x | 143 % |
| **geometric mean** | **2.00x** |  | **1.00x** |  |  |
| without programmatic dependent launch | 1.00x |  | 0.50x |  |  |
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

/// What `tune` would write.
fn tuned() -> Value {
    let launch = |blocks| json!({ "kernel": "zipgemm_n8", "blocks": blocks, "shared_tiles": null });
    let row = |rows, after_us, blocks| {
        json!({
            "rows": rows, "cols": 500, "n": 8, "before_us": 12.0, "after_us": after_us,
            "launch": launch(blocks), "default": launch(132),
        })
    };
    json!({
        "tuning_version": 1,
        "key": {
            "device": "made up for a test", "sms": 132, "driver": "none", "ptx_crc32": 7,
        },
        "rows": [row(1000, 12.0, 132), row(2000, 3.0, 128)],
    })
}

#[test]
fn prints_what_tuning_lifts() {
    let folder = Folder::new();
    let table = "\
Tuned launches on made up for a test:

| tokens | shapes | other launches | geometric mean before, us | tuned, us | lift |
| --- | --- | --- | --- | --- | --- |
| 8 | 2 | 1 | 12.00 | 6.00 | 2.000x |
";
    let file = folder.write("tuned.json", &tuned());
    results(&[&file]).assert().success().stdout(table);
    let report = folder.write("report.json", &two_models());
    let both = results(&[&file, &report]).assert().success();
    both.stdout(contains("ZipGEMM, x cuBLAS").and(predicates::str::ends_with(table)));
    let mut with_plans = two_models();
    with_plans["tuned"] = json!(true);
    let with_plans = folder.write("with-plans.json", &with_plans);
    let heading = results(&[&with_plans]).assert().success();
    heading.stdout(contains("ZipGEMM, tuned, x cuBLAS, on made up"));
    let mut alone = two_models();
    alone["sustained_s"] = json!(0.5);
    let alone = folder.write("alone.json", &alone);
    let heading = results(&[&alone]).assert().success();
    heading.stdout(contains("ZipGEMM, sustained, x cuBLAS, on made up"));
    let mut old = tuned();
    old["tuning_version"] = json!(0);
    let old = folder.write("old.json", &old);
    let refused = results(&[&old]).assert().code(2).stdout("");
    refused.stderr(contains("old.json: ").and(contains("has version 0")));
}

/// Restored from 1 MB, and 1.5 times as fast from our layout.
fn with_published(mut row: Value, us: f64) -> Value {
    row["published"] = json!({
        "kernel": "another kernel",
        "split_k": 4,
        "compressed_bytes": 687_500,
        "us": us,
        "deviation": 0.0,
        "correct": true,
    });
    row
}

#[test]
fn prints_a_table_beside_the_published_kernels() {
    let folder = Folder::new();
    let mut all = report(vec![
        // Ours takes 125 us plainly, and half as long with pdl.
        with_published(row("small", 8, 1.6, None), 250.0),
        with_published(row("large", 8, 1.6, None), 1000.0),
        with_published(row("large", 16, 1.6, None), 187.5),
    ]);
    all["decompress"] = json!([{
        "layer": all["gemm"][0]["layer"],
        "us": 1.0,
        "exact": true,
        "published": { "compressed_bytes": 687_500, "us": 1.5, "exact": true },
    }]);
    let file = folder.write("all.json", &all);
    let table = "
x ZipServ as published, launched plainly like it; decompression in GB/s of BF16, and bits a weight, of ours / as published:

| layer (M x K) | N=8 | 16 | decompression | bits a weight |
| --- | --- | --- | --- | --- |
| small up 1000 x 500 | 2.00x |  | 1000 / 667 | 11.20 / 11.00 |
| large up 1000 x 500 | 8.00x | 1.50x |  | 11.20 / 11.00 |
| geometric mean | 4.00x |  |  |  |
| with programmatic dependent launch | 8.00x |  |  |  |
| ZipServ as published, x cuBLAS | 0.20x |  |  |  |
";
    results(&[&file]).assert().success().stdout(contains(table));

    all["gemm"][1]["published"]["correct"] = json!(false);
    let wrong = folder.write("wrong.json", &all);
    results(&[&wrong]).assert().failure();
    all["gemm"][1]["published"]["correct"] = json!(true);
    all["decompress"][0]["published"]["exact"] = json!(false);
    let wrong = folder.write("not_exact.json", &all);
    results(&[&wrong]).assert().failure();
}

#[test]
fn prints_a_table_of_batch_invariant_plans() {
    let folder = Folder::new();
    let mut all = two_models();
    // All rows but that of 16 tokens.
    for (row, speedup) in [(0, 0.8), (1, 0.5), (2, 0.45), (4, 0.5)] {
        all["gemm"][row]["invariant"] = json!({
            "plan": "a plan",
            "plain_us": 200.0 / speedup,
            "pdl_us": 100.0 / speedup,
            "deviation": 0.0,
            "correct": true,
            "same_bits": true,
        });
    }
    let file = folder.write("all.json", &all);
    let table = "
Batch-invariant, x cuBLAS:

| layer (M x K) | N=8 | 128 |
| --- | --- | --- |
| small up 1000 x 500 | 0.80x | 0.50x |
| large up 1000 x 500 | 0.45x | 0.50x |
| geometric mean | 0.60x | 0.50x |
| without programmatic dependent launch | 0.30x | 0.25x |
| x the plan's own kernels | 0.50x | 0.50x |
";
    results(&[&file]).assert().success().stdout(contains(table));

    for wrong in ["correct", "same_bits"] {
        let mut all = all.clone();
        all["gemm"][2]["invariant"][wrong] = json!(false);
        let file = folder.write(&format!("{wrong}.json"), &all);
        let refused = results(&[&file]).assert().code(2);
        refused.stderr(contains("some outputs were wrong"));
    }
    all["gemm"][2]["invariant"]["pdl_us"] = json!(0.0);
    let file = folder.write("impossible.json", &all);
    let refused = results(&[&file]).assert().code(2);
    refused.stderr(contains("cannot be a measurement"));
}

#[test]
fn tells_how_far_the_dispatch_is_from_the_better_way() {
    let folder = Folder::new();
    let mut report = two_models();
    let dispatch = |row: &mut Value, decoupled: bool, us: f64| {
        row["dispatch"] = json!({
            "plan": "a plan",
            "decoupled": decoupled,
            "us": us,
            "deviation": 0.0,
            "correct": true,
        });
    };
    // The better way takes 80 us; then 111 us, for decoupled is faster there.
    dispatch(&mut report["gemm"][1], false, 80.0);
    dispatch(&mut report["gemm"][4], false, 125.0);
    let file = folder.write("results.json", &report);
    let worst = "the plan takes 1.125 times as long as the better of both ways at worst (large up \
                 1000 x 500, N=128).";
    results(&[&file]).assert().success().stdout(contains(worst));

    report["gemm"][4]["dispatch"]["correct"] = json!(false);
    let wrong = folder.write("wrong.json", &report);
    let wrong = results(&[&wrong]).assert().code(2);
    wrong.stderr(contains("some outputs were wrong"));
}

#[test]
fn two_files_beside_one_another() {
    let folder = Folder::new();
    let mut old = two_models();
    old["commit"] = json!("c0ffee");
    let old = folder.write("old.json", &old);
    // Half as long on one layer, a quarter longer on the other, at 0.8 of cuBLAS's time.
    let mut new = report(vec![
        row("small", 8, 3.2, None),
        row("large", 8, 0.72, None),
    ]);
    for row in new["gemm"].as_array_mut().unwrap() {
        row["cublas_us"] = json!(80.0);
    }
    let new = folder.write("new.json", &new);
    let mut command = results(&[Path::new("diff"), &old, &new]);
    let (old, new) = (old.display(), new.display());
    command.assert().success().stdout(format!(
        "\
How many times as fast {new} (PTX 00000007, commit not told) is as {old} (PTX 00000007, commit c0ffee):

| layer (M x K) | N=8 | 16 | 128 |
| --- | --- | --- | --- |
| small up 1000 x 500 | 2.000x |  |  |
| large up 1000 x 500 | 0.800x |  |  |
| **geometric mean** | 1.265x |  |  |
| geometric mean of cuBLAS | 1.250x |  |  |
"
    ));
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
fn page_of_merged_files() {
    let folder = Folder::new();
    let mut old = two_models();
    old["commit"] = json!("c0ffee");
    let old = folder.write("old.json", &old);
    let new = folder.write(
        "new.json",
        &report(vec![
            row("<large>", 8, 2.5, None),
            row("large", 8, 2.5, None),
        ]),
    );
    let output = folder.path("page.html");
    page(&[&old, &new], &output)
        .assert()
        .success()
        .stdout("")
        .stderr(format!("wrote {}\n", output.display()));
    let html = read_page(&output);
    let (old, new) = (old.display(), new.display());
    for text in [
        "ZipGEMM on made up for a test".to_owned(),
        "<td>c0ffee</td><td>not told</td>".to_owned(),
        "<td>0.012 TB/s</td>".to_owned(),
        format!(
            "up 1000 x 500, 8 tokens: 1.600x\nrow 1 of {old}, launched before the one ahead of it ends</title>"
        ),
        format!(
            "<td>up 1000 x 500</td><td>128</td><td>1.250x</td><td></td><td>row 2 of {old}</td>"
        ),
        format!(
            "<td>up 1000 x 500</td><td>16</td><td>1.200x</td><td>1.750x</td><td>row 4 of {old}</td>"
        ),
        format!("up 1000 x 500, 8 tokens: 2.500x\nrow 2 of {new}, launched"),
        format!("large, geometric mean, 8 tokens: 2.500x\nrow 2 of {new}</title>"),
        format!("large, byte limit, geometric mean, 16 tokens: 1.750x\nrow 4 of {old}</title>"),
        format!("16 tokens: 0.7 MB, 0.008 TB/s\nrow 4 of {old}, launched"),
        // Operations: 2 x 1000 x 500 x 128, in 80 us, for 0.7 MB.
        format!("128 tokens: 1.6 TFLOP/s, 182.86 FLOP/B\nrow 2 of {old}, launched"),
        "best cuBLAS measured, 1 TFLOP/s".to_owned(),
        format!(
            "<td>1.000</td><td>0.700</td><td>11.200</td><td>1.429</td><td>30.0 %</td><td>row 1 of {old}</td>"
        ),
        "&lt;large&gt;".to_owned(),
    ] {
        assert!(html.contains(&text), "{text}");
    }
    // The row that a later file has replaced.
    assert!(!html.contains("0.900x"));
    assert!(!html.contains("<large>"));

    let exists = page(&[&folder.path("old.json")], &output).assert().code(2);
    exists.stderr(contains("page.html: already exists; --force replaces it"));
    let replaced = page(&[&folder.path("old.json")], &output)
        .arg("--force")
        .assert();
    replaced.success();
    assert!(read_page(&output).contains("0.900x"));
    let nowhere = folder.path("missing/page.html");
    let nowhere = page(&[&folder.path("old.json")], &nowhere).assert().code(2);
    nowhere.stderr(contains("missing/page.html: "));
}

#[test]
fn points_of_a_page_lie_where_their_figures_are() {
    let folder = Folder::new();
    let rows = [(1, 1.0), (4, 2.0), (16, 0.5)].map(|(n, speedup)| row("only", n, speedup, None));
    let file = folder.write("results.json", &report(rows.to_vec()));
    let output = folder.path("page.html");
    page(&[&file], &output).assert().success();
    let html = read_page(&output);
    let number = |line: &str, name: &str| -> f64 {
        let from = line.split_once(&format!(" {name}=\"")).unwrap().1;
        from.split_once('"').unwrap().0.parse().unwrap()
    };
    let point = |figure: &str| {
        let line = html
            .lines()
            .find(|line| line.starts_with("<circle") && line.ends_with(figure));
        let line = line.unwrap_or_else(|| panic!("{figure}"));
        (number(line, "cx"), number(line, "cy"))
    };
    let [one, four, sixteen] = [
        "up 1000 x 500, 1 token: 1.000x",
        "up 1000 x 500, 4 tokens: 2.000x",
        "up 1000 x 500, 16 tokens: 0.500x",
    ]
    .map(point);
    assert!(
        (four.0 - one.0 - (sixteen.0 - four.0)).abs() < 0.3,
        "logarithmic"
    );
    assert!(one.0 < four.0);
    assert!(
        (one.1 - four.1 - 2.0 * (sixteen.1 - one.1)).abs() < 0.4,
        "linear"
    );
    assert!(four.1 < one.1, "the largest on top");
}

#[test]
fn page_of_real_files_has_every_row_and_loads_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    // The last file's row for a number of tokens is the one that counts.
    let names = ["gemm-many-tokens", "gemm"];
    let names = names.map(|name| format!("results/h200-2026-11-30-{name}.json"));
    // Before them, for their rows are the ones that count.
    let others = ["30-gemm-invariant", "29-tune", "29-steps"];
    let others = others.map(|name| format!("results/h200-2026-11-{name}.json"));
    let folder = Folder::new();
    let output = folder.path("page.html");
    let all: Vec<_> = others.iter().chain(&names).map(Path::new).collect();
    let mut command = page(&all, &output);
    command.current_dir(root).assert().success();
    assert!(fs::metadata(&output).unwrap().len() < 2_000_000);
    let html = read_page(&output);
    let counts = |name: &str, row: &Value| !name.contains("many") || row["n"] != 128;
    for name in &names {
        let report: Value = serde_json::from_slice(&fs::read(root.join(name)).unwrap()).unwrap();
        assert!(html.contains(report["commit"].as_str().unwrap()));
        for (i, row) in report["gemm"].as_array().unwrap().iter().enumerate() {
            if !counts(name, row) {
                continue;
            }
            let number = |value: &Value| value.as_f64().unwrap();
            let us = number(&row["kernels"][0]["pdl_us"]);
            let layer = |field: &str| number(&row["layer"][field]);
            let tail = format!(
                "\nrow {} of {name}, launched before the one ahead of it ends</title>",
                i + 1
            );
            let speedup = number(&row["cublas_us"]) / us;
            let speedup = format!(": {speedup:.3}x{tail}");
            assert!(html.contains(&speedup), "{speedup}");
            let tflops = 2.0 * layer("rows") * layer("cols") * number(&row["n"]) / us / 1e6;
            let tflops = format!(": {tflops:.1} TFLOP/s, ");
            let has_both = |point: &str| point.contains(&tflops) && point.contains(&tail);
            assert!(html.split("<circle").any(has_both), "{tflops} {i}");
            if number(&row["n"]) <= 64.0 {
                let tbs = layer("compressed_bytes") / us / 1e6;
                let tbs = format!(" MB, {tbs:.3} TB/s{tail}");
                assert!(html.contains(&tbs), "{tbs}");
            }
        }
    }
    for loads in ["http", "<script", "src=", "@import", "url("] {
        assert!(!html.contains(loads), "{loads}");
    }
}

/// What `steps --json` would write.
fn steps() -> Value {
    let point = |n, us| json!({ "n": n, "kernel": "a kernel", "us": us });
    json!({
        "device": "made up for a test",
        "driver": "none",
        "kernels": "sm_90a",
        "date": "2026-01-31T12:00:00Z",
        "commit": null,
        "seed": 1,
        "replays": 5,
        "layers": [{
            "layer": two_models()["gemm"][0]["layer"],
            "points": [point(8, 2.0), point(9, 3.0)],
        }],
    })
}

/// What the comparison with other codecs would write.
fn peers() -> Value {
    let row = |peer, us| {
        json!({
            "peer": peer, "shape": [1000, 500], "compressed_bytes": 700_000, "us": us, "exact": true,
        })
    };
    json!({
        "device": "made up for a test",
        "driver": "none",
        "date": "2026-01-31T12:00:00Z",
        "commit": "c0ffee",
        "rounds": 5,
        "rows": [row("ours", 2.0), row("<theirs>", 4.0)],
        "absent": [],
    })
}

#[test]
fn prints_steps_and_peers() {
    let folder = Folder::new();
    let tables = "\
Largest step in time on made up for a test:

| layer (M x K) | points | largest step | from N | to N |
| --- | --- | --- | --- | --- |
| small up 1000 x 500 | 2 | 1.500x | 8 | 9 |

Decompression beside other codecs on made up for a test:

| codec | weights | stored | us | GB/s of BF16 |
| --- | --- | --- | --- | --- |
| ours | 1000 x 500 | 70.00 % | 2.00 | 500 |
| <theirs> | 1000 x 500 | 70.00 % | 4.00 | 250 |
";
    let files = [
        folder.write("steps.json", &steps()),
        folder.write("peers.json", &peers()),
    ];
    let printed = results(&[&files[0], &files[1]]).assert().success();
    printed.stdout(tables);
}

#[test]
fn prints_tables_of_the_engine() {
    let folder = Folder::new();
    let mut engine = json!({
        "engine": "zipserv 0.1.0", "device": "a GPU", "driver": "1", "date": "2026-01-31T12:00:00Z",
        "model": {
            "architecture": "LlamaForCausalLM", "num_hidden_layers": 2, "hidden_size": 3, "intermediate_size": 4,
            "num_attention_heads": 6, "num_key_value_heads": 5, "head_dim": 7, "vocab_size": 8,
        },
        "fastest": false, "dense": true, "tensor_parallel_size": 1,
        "rows": [{"batch": 2, "context": 512, "prefill_ms": 10.0, "step_ms": 4.0, "stages": []}],
    });
    let file = folder.write("run.json", &engine);
    let printed = results(&[&file]).assert().success();
    printed.stdout(contains("| 2 | 512 | 4.000 | 500 | 10.0 |"));
    engine.as_object_mut().unwrap().remove("rows");
    let file = folder.write("broken.json", &engine);
    let why = "broken.json: not what `zipserv run --bench --json` writes: missing field `rows`";
    results(&[&file]).assert().failure().stderr(contains(why));
}

#[test]
fn page_has_the_tables_and_their_rows() {
    let folder = Folder::new();
    let mut published = report(vec![
        with_published(row("small", 8, 1.6, None), 250.0),
        with_published(row("large", 8, 1.6, None), 1000.0),
    ]);
    published["decompress"] = json!([{
        "layer": published["gemm"][0]["layer"], "us": 1.0, "exact": true,
        "published": { "compressed_bytes": 687_500, "us": 1.5, "exact": true },
    }]);
    let mut invariant = report(vec![row("small", 8, 1.6, None), row("large", 8, 1.6, None)]);
    for (row, speedup) in [(0, 0.9), (1, 0.4)] {
        invariant["gemm"][row]["invariant"] = json!({
            "plan": "a plan",
            "plain_us": 100.0 / speedup,
            "pdl_us": null,
            "deviation": 0.0,
            "correct": true,
            "same_bits": true,
        });
    }
    // The last file has the same layers and tokens, but neither of both.
    let files = [
        folder.write("published.json", &published),
        folder.write("invariant.json", &invariant),
        folder.write("tuned.json", &tuned()),
        folder.write("steps.json", &steps()),
        folder.write("peers.json", &peers()),
        folder.write("last.json", &two_models()),
    ];
    let output = folder.path("page.html");
    let paths = files.each_ref().map(PathBuf::as_path);
    page(&paths, &output).assert().success();
    let html = read_page(&output);
    let [published, invariant, _, steps, peers, last] = files.each_ref().map(|file| file.display());
    let line = |cells: &[&str]| format!("<tr><td>{}</td></tr>", cells.join("</td><td>"));
    let small = "small up 1000 x 500";
    for text in [
        line(&[
            small,
            "2.00x",
            "1000 / 667",
            "11.20 / 11.00",
            &format!("row 1 of {published}; decompression 1 of {published}"),
        ]),
        line(&["geometric mean", "4.00x", "", "", "the rows above"]),
        line(&[
            "with programmatic dependent launch",
            "8.00x",
            "",
            "",
            "the rows above",
        ]),
        line(&[small, "0.90x", &format!("row 1 of {invariant}")]),
        line(&["geometric mean", "0.60x", "the rows above"]),
        line(&[small, "2 / 1 / 1", &format!("row 2 of {last}")]),
        line(&["8", "2", "1", "12.00", "6.00", "2.000x"]),
        line(&[
            "2000 x 500",
            "8",
            "a kernel, 132 blocks",
            "12.00",
            "a kernel, 128 blocks",
            "3.00",
            "4.000x",
        ])
        .replace("a kernel", "zipgemm_n8"),
        line(&[
            small,
            "2",
            "1.500x",
            "8",
            "9",
            &format!("layer 1 of {steps}"),
        ]),
        line(&[
            "&lt;theirs&gt;",
            "1000 x 500",
            "70.00 %",
            "4.00",
            "250",
            &format!("row 2 of {peers}"),
        ]),
    ] {
        assert!(html.contains(&text), "{text}");
    }
    // A launch that stayed what it was.
    assert!(!html.contains("<td>1000 x 500</td><td>8</td><td>zipgemm_n8"));
    // The charts are of the last file.
    assert!(html.contains(&format!("8 tokens: 1.600x\nrow 1 of {last}, ")));
}

/// A folder as a laboratory has it.
#[test]
fn a_folder_is_taken_as_it_is() {
    let folder = Folder::new();
    let mut tuned_plans = two_models();
    tuned_plans["tuned"] = json!(true);
    let mut other_kernels = two_models();
    other_kernels["ptx_crc32"] = Value::Null;
    let mut wrong = two_models();
    wrong["gemm"][0]["kernels"][0]["correct"] = json!(false);
    let mut elsewhere = steps();
    elsewhere["device"] = json!("another device");
    let unlike = format!("unlike {}", folder.path("b.json").display());
    let files = [
        ("a.json", two_models(), ""),
        ("b.json", report(vec![row("large", 8, 2.5, None)]), ""),
        (
            "c.json",
            tuned_plans,
            &*format!("of made up for a test (sm_90a, tuned), {unlike}"),
        ),
        ("d.json", other_kernels, "of other kernels than "),
        (
            "e.json",
            wrong,
            "some outputs were wrong, so its times mean nothing",
        ),
        (
            "codec.json",
            json!({ "zipserv": {} }),
            "of the codec, without a table of its own",
        ),
        (
            "notes.json",
            json!(["mine"]),
            "not what `gemm --json` writes: ",
        ),
        ("peers.json", peers(), ""),
        (
            "steps-elsewhere.json",
            elsewhere,
            "of another device, unlike made up for a test",
        ),
        ("tune.json", tuned(), ""),
    ];
    for (name, file, _) in &files {
        folder.write(name, file);
    }
    fs::write(folder.path("cut.json"), "{").unwrap();
    fs::write(folder.path("plot.svg"), "<svg/>").unwrap();
    let output = folder.path("page.html");
    let said = page(&[folder.0.path()], &output)
        .assert()
        .success()
        .stdout("");
    let said = String::from_utf8(said.get_output().stderr.clone()).unwrap();
    for (name, _, why) in &files {
        let line = format!("skipped {}: {why}", folder.path(name).display());
        assert_eq!(said.contains(&line), !why.is_empty(), "{line}\n{said}");
    }
    assert!(
        said.contains("cut.json: not what `gemm --json` writes: EOF"),
        "{said}"
    );
    assert!(
        said.ends_with(&format!("wrote {}\n", output.display())),
        "{said}"
    );
    assert_eq!(said.lines().count(), 8, "{said}");
    let html = read_page(&output);
    assert!(
        html.contains("2.500x") && !html.contains("0.900x"),
        "the last row counts"
    );
    assert!(html.contains("Tuned launches on made up for a test"));

    let tables = results(&[folder.0.path()]).assert().success();
    tables.stdout(
        contains("| large up 1000 x 500 | 2.50x | 1.20x | 0.80x |")
            .and(contains("&lt;theirs").not()),
    );
    // What is named has to fit.
    let named = folder.path("c.json");
    let refused = page(
        &[&folder.path("a.json"), &named],
        &folder.path("other.html"),
    )
    .assert()
    .code(2);
    refused.stderr(contains(
        "c.json: of made up for a test (sm_90a, tuned), unlike",
    ));
    let mut document = results(&[folder.0.path()]);
    let written = folder.path("BENCHMARKS.md");
    let said = document
        .arg("--write")
        .arg(&written)
        .assert()
        .success()
        .stdout("");
    said.stderr(predicates::str::ends_with(format!(
        "wrote {}\n",
        written.display()
    )));

    let empty = Folder::new();
    results(&[empty.0.path()])
        .assert()
        .code(2)
        .stderr(contains("no results are in these files"));
    let nothing = page(&[empty.0.path()], &output)
        .arg("--force")
        .assert()
        .code(2);
    nothing.stderr(contains("no file that `gemm --json` wrote"));
}

/// Shadows, a bar that stays, and names that do.
#[test]
fn tables_scroll_visibly() {
    let folder = Folder::new();
    let file = folder.write("results.json", &two_models());
    let output = folder.path("page.html");
    page(&[&file], &output).assert().success();
    let html = read_page(&output);
    let tables = html.matches("<table>").count();
    let regions = r#"<div class="scroll" tabindex="0" role="region" aria-label="table"><table>"#;
    assert_eq!(html.matches(regions).count(), tables);
    for style in [
        "no-repeat local,",
        "var(--shade), transparent) right / 16px 100% no-repeat scroll;",
        ".scroll::-webkit-scrollbar { height: 8px;",
        "td):first-child { position: sticky; left: 0;",
        r#"<meta name="viewport" content="width=device-width, initial-scale=1">"#,
    ] {
        assert!(html.contains(style), "{style}");
    }
}

#[test]
fn page_refuses_other_files() {
    let folder = Folder::new();
    let report = folder.write("report.json", &two_models());
    let elsewhere = |mut file: Value, at: &str| {
        *file.pointer_mut(at).unwrap() = json!("another device");
        file
    };
    let mut inexact = peers();
    inexact["rows"][1]["exact"] = json!(false);
    let unlike = "of another device, unlike made up for a test";
    for (bad, what) in [
        (elsewhere(tuned(), "/key/device"), unlike),
        (elsewhere(steps(), "/device"), unlike),
        (elsewhere(peers(), "/device"), unlike),
        (inexact, "<theirs>: its output was wrong"),
        (json!({ "layers": 1 }), "not what `steps` writes"),
        (
            json!({ "absent": [] }),
            "not what `benches/peers/compare.py` writes",
        ),
    ] {
        let bad = folder.write("bad.json", &bad);
        let output = folder.path("page.html");
        let refused = page(&[&report, &bad], &output).assert().code(2).stdout("");
        refused.stderr(contains("bad.json: ").and(contains(what)));
        assert!(!output.exists());
    }
    let alone = folder.write("peers.json", &peers());
    let refused = page(&[&alone], &folder.path("page.html")).assert().code(2);
    refused.stderr(contains("no file that `gemm --json` wrote"));
}

#[test]
fn says_what_is_wrong_with_which_file() {
    /// Makes a good report a bad one.
    type Spoil = fn(&mut Value);
    let folder = Folder::new();
    let good = folder.write("good.json", &two_models());
    let cases: [(&str, Spoil); 15] = [
        ("not what `gemm --json` writes", |r| *r = json!({})),
        ("not what `gemm --json` writes", |r| {
            r["gemm"][1]["cublas_us"] = Value::Null;
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
            r["gemm"][1]["kernels"][0]["pdl_us"] = json!(-1);
        }),
        ("cannot be a measurement", |r| {
            r["gemm"][1]["decoupled"]["us"] = json!(1e300);
        }),
        ("128 tokens: 0 cannot be", |r| {
            r["gemm"][1]["layer"]["compressed_bytes"] = json!(0);
        }),
        ("128 tokens: 0 cannot be", |r| {
            r["gemm"][1]["kernels"][0]["plain_us"] = json!(0.0);
        }),
        ("the read ceiling: -3 cannot be", |r| {
            r["read_tbs"] = json!(-3.0);
        }),
        ("small up, decompression: 0 cannot be", |r| {
            r["decompress"] = json!([{
                "layer": r["gemm"][0]["layer"], "us": 0.0, "exact": true,
            }]);
        }),
        ("of made up for a test (sm_90a, tuned), unlike", |r| {
            r["tuned"] = json!(true);
        }),
        ("of made up for a test (sm_90a, sustained), unlike", |r| {
            r["sustained_s"] = json!(0.5);
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

        let output = folder.path("page.html");
        let refused = page(&[&good, &bad], &output).assert().code(2).stdout("");
        refused.stderr(contains("bad.json: ").and(contains(what)));
        assert!(!output.exists());
    }
    let cut = folder.path("cut.json");
    fs::write(&cut, "{\"device\": ").unwrap();
    let cut = results(&[&cut]).assert().code(2).stdout("");
    cut.stderr(contains("cut.json: not what `gemm --json` writes: EOF"));
    let missing = results(&[&folder.path("missing.json")]).assert();
    missing
        .code(2)
        .stderr(contains("missing.json: No such file"));
    results(&[]).assert().code(2);
}
