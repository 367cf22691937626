//! `zipserv-bench gemm` and `steps` as their users run them; without a device, what they say then.

use std::{fs, io::Write};

use assert_cmd::Command;
use predicates::{prelude::*, str::contains};
use serde_json::Value;
use tempfile::TempDir;
use zipserv::gpu::{
    Device, Family, Plan, Tuning,
    tuning::{TunedLaunch, TunedRow, TuningTable},
};
use zipserv_bench::results::ReportFile;

fn program() -> Command {
    Command::cargo_bin("zipserv-bench").unwrap()
}

/// A quick run on one small layer.
fn gemm() -> Command {
    let mut command = program();
    command.args(["gemm", "--quick", "--layers", "500x600", "--seed", "1"]);
    command
}

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
fn finds_out_before_it_measures() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("report.json");
    fs::write(&path, "precious").unwrap();
    let mut command = gemm();
    command.arg("--json").arg(&path);
    without_device(command)
        .code(2)
        .stderr(contains("already exists; --force replaces it"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    for arguments in [
        &["--shapes", "llama-0b"][..],
        &["--layers", "4096"],
        &["--n", "0"],
        &["--n", "8,16385"],
        &["--json"],
        &["--ptx", "a", "--ptx", "b", "--ptx", "c"],
    ] {
        let mut command = program();
        command.arg("gemm").args(arguments);
        without_device(command)
            .code(2)
            .stdout("")
            .stderr(contains("error: ").and(contains("NVIDIA").or(contains("CUDA")).not()));
    }
}

#[test]
fn measures() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("report.json");
    let mut command = gemm();
    command.args(["--n", "8,100,3000", "--commit", "c0ffee", "--json"]);
    command.arg(&path);
    let Some(table) = output(command) else { return };
    assert!(table.contains("geometric means"));
    let report: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(report["commit"], "c0ffee");
    assert_eq!(report["gemm"][0]["layer"]["rows"], 500);
    assert_eq!(report["gemm"][0]["decoupled"], Value::Null);
    assert_eq!(report["gemm"][1]["n"], 100);
    assert_eq!(report["gemm"][1]["decoupled"]["correct"], true);
    assert_eq!(report["gemm"][0]["dispatch"], Value::Null);
    for row in 1..3 {
        assert_eq!(report["gemm"][row]["dispatch"]["correct"], true);
    }
    assert_eq!(report["decompress"][0]["exact"], true);

    let mut command = gemm();
    command.args(["--n", "8", "--decoupled", "--json", "-"]);
    let Some(document) = output(command) else {
        return;
    };
    let report: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(report["gemm"][0]["decoupled"]["correct"], true);

    if report["kernels"] == "sm_90a" {
        let mut command = gemm();
        command.args(["--n", "300,1,65", "--invariant", "--json", "-"]);
        let document = output(command).unwrap();
        let report: Value = serde_json::from_str(&document).unwrap();
        for row in report["gemm"].as_array().unwrap() {
            assert_eq!(row["invariant"]["correct"], true);
            assert_eq!(row["invariant"]["same_bits"], true);
        }
        assert!(report["gemm"][0]["invariant"]["plain_us"].is_number());
    }

    let mut command = gemm();
    command.args(["--no-gemm", "--json", "-"]);
    let Some(document) = output(command) else {
        return;
    };
    let report: Value = serde_json::from_str(&document).unwrap();
    assert!(report["gemm"].as_array().unwrap().is_empty());
}

#[test]
fn looks_for_steps() {
    let mut command = program();
    command.args(["steps", "--layers", "500x600", "--json", "-"]);
    let Some(document) = output(command) else {
        return;
    };
    let steps: Value = serde_json::from_str(&document).unwrap();
    let layer = &steps["layers"][0];
    assert_eq!(layer["layer"]["cols"], 600);

    let points = layer["points"].as_array().unwrap();
    assert_eq!(points[71]["n"], 72);
    assert_eq!(points.last().unwrap()["n"], 1024);
}

#[test]
fn says_that_there_is_no_device() {
    let folder = TempDir::new().unwrap();
    let mut with_file = gemm();
    with_file
        .arg("--json")
        .arg(folder.path().join("report.json"));
    let mut steps = program();
    steps.arg("steps");
    for command in [gemm(), with_file, steps] {
        without_device(command).code(2).stdout("").stderr(
            contains("error: no NVIDIA driver found\n")
                .or(contains("error: there is no CUDA device 0")),
        );
    }
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
}

#[test]
fn takes_plans_from_a_table() {
    // Other tests say that there is no device.
    let Ok(device) = Device::new(0) else { return };
    let (kernel, _) = Plan::kernels(&device).next().unwrap();
    let launch = TunedLaunch {
        kernel: kernel.to_owned(),
        blocks: 3,
        shared_tiles: None,
    };
    let mut table = TuningTable::new(Tuning::key(&device).unwrap());
    table.insert(TunedRow {
        rows: 500,
        cols: 600,
        n: 8,
        default: launch.clone(),
        launch,
        before_us: 1.0,
        after_us: 1.0,
    });
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tuned.json");
    let file = ReportFile::create(&path, false).unwrap();
    file.write(&table).unwrap();
    let mut command = gemm();
    command.args(["--n", "8", "--json", "-"]);
    command.arg(format!("--tuned={}", path.display()));
    let Some(document) = output(command) else {
        return;
    };
    let report: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(report["tuned"], true);
    let first = &report["gemm"][0]["kernels"][0];
    assert_eq!(
        (&first["kernel"], &first["blocks"]),
        (&kernel.into(), &3.into())
    );
}

#[test]
fn compares_two_files() {
    let Ok(device) = Device::new(0) else { return };
    let name = match device.family() {
        Family::Hopper => "zipserv_sm_90a.ptx",
        Family::Portable => "zipserv_sm_80.ptx",
    };
    let ptx = format!("{}/../gpu/ptx/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut command = gemm();
    command.args(["--n", "8,100", "--ptx", &ptx, "--ptx", &ptx, "--json", "-"]);
    let Some(document) = output(command) else {
        return;
    };
    let comparison: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(comparison["ptx_crc32"][0], comparison["ptx_crc32"][1]);
    let rows = comparison["comparisons"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row["correct"], serde_json::json!([true, true]));
        assert_eq!(row["us"][0].as_array().unwrap().len(), 5);
    }
}
