//! Inputs that change while they are read, outputs that others put in the way, and file systems that cannot do all.
//!
//! File systems are played by filters of system calls, for one thread and those that it starts.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rustix::{
    process::{Uid, geteuid},
    thread::set_thread_res_uid,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use tempfile::{TempDir, tempdir};
use zipserv::checkpoint::{
    Error, ErrorKind, Options, Progress, compress, decompress, inspect, open, verify,
};

mod support;
use support::*;

/// Does something once, at a call that says how far the job is.
struct Once<F> {
    calls: AtomicU64,
    at: u64,
    action: Mutex<Option<F>>,
}

impl<F: FnOnce() + Send> Once<F> {
    fn new(at: u64, action: F) -> Self {
        Self {
            calls: AtomicU64::new(0),
            at,
            action: Mutex::new(Some(action)),
        }
    }
}

impl<F: FnOnce() + Send> Progress for Once<F> {
    fn advance(&self, _: u64) {
        if self.calls.fetch_add(1, Ordering::Relaxed) == self.at {
            (self.action.lock().unwrap().take().unwrap())();
        }
    }
}

/// Calls in the whole of a job.
fn calls(job: impl FnOnce(&Options) -> Result<(), Error>) -> u64 {
    let count = Once::new(u64::MAX, || ());
    job(&options().progress(&count)).unwrap();
    count.calls.into_inner()
}

/// A folder with `original`, of matrices, wide and high, and others, and `compressed`.
fn model() -> TempDir {
    let folder = tempdir().unwrap();
    let tensor =
        |name, dtype, shape: &[u64], count, seed| tensor(name, dtype, shape, weights(count, seed));
    let tensors = [
        tensor("high", "BF16", &[1024, 2048], 1 << 21, 1),
        tensor("wide", "BF16", &[8, 64 * 2100], 8 * 64 * 2100, 2),
        tensor("other", "F32", &[1 << 20], 1 << 21, 3),
    ];
    let at = |name| folder.path().join(name);
    fs::write(at("original"), checkpoint(&tensors)).unwrap();
    compress(at("original"), at("compressed"), &options()).unwrap();
    folder
}

/// Each job is given an input that is cut off in the middle, 20 times: it must say so, and leave nothing.
#[test]
fn what_is_cut_off_while_it_is_read_is_an_error() {
    let folder = model();
    let at = |name: &str| folder.path().join(name);
    let mut rng = SmallRng::seed_from_u64(1);
    type Job<'a> = &'a dyn Fn(&Options) -> Result<(), Error>;
    let jobs: [(&str, Job); 6] = [
        ("original", &|options| {
            compress(at("input"), at("output"), options).map(drop)
        }),
        ("compressed", &|options| {
            decompress(at("input"), at("output"), options).map(drop)
        }),
        ("compressed", &|options| {
            verify(at("input"), at("original"), options).map(drop)
        }),
        ("original", &|options| {
            verify(at("compressed"), at("input"), options).map(drop)
        }),
        ("original", &|options| {
            inspect(at("input"), options).map(drop)
        }),
        ("compressed", &|options| {
            inspect(at("input"), options).map(drop)
        }),
    ];
    for (index, (name, job)) in jobs.into_iter().enumerate() {
        fs::copy(at(name), at("input")).unwrap();
        // The last call of jobs with an output comes when all has been read.
        let is_writer = index < 2;
        let last = calls(job) - u64::from(is_writer);
        let _ = fs::remove_file(at("output"));
        let before = names(folder.path());
        for _ in 0..20 {
            fs::copy(at(name), at("input")).unwrap();
            let input = OpenOptions::new().write(true).open(at("input")).unwrap();
            let len = rng.random_range(0..input.metadata().unwrap().len());
            let moment = rng.random_range(0..last);
            let cut = Once::new(moment, || input.set_len(len).unwrap());
            let error = job(&options().progress(&cut)).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::Changed),
                "job {index}, at call {moment} of {last}, to {len} bytes: {}",
                text(&error)
            );
            assert_eq!(error.path(), at("input"));
            assert_eq!(text(&error), "changed while it was being read");
            assert_eq!(names(folder.path()), before);
        }
    }
}

/// Nor is the rest of a folder copied as far as it goes.
#[test]
fn a_copied_file_that_is_cut_off_is_an_error() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("model")).unwrap();
    let tensors = [tensor("w", "BF16", &[64, 128], weights(64 * 128, 1))];
    fs::write(at("model/a.safetensors"), checkpoint(&tensors)).unwrap();
    let other = File::create(at("model/other.bin")).unwrap();
    let job = |options: &Options| compress(at("model"), at("small"), options).map(drop);
    // More than is copied at a time, of zeros that take no room.
    other.set_len(150 << 20).unwrap();
    let count = calls(job);
    let mut errors = 0;
    for moment in 0..count {
        let _ = fs::remove_dir_all(at("small"));
        other.set_len(150 << 20).unwrap();
        let cut = Once::new(moment, || other.set_len(1 << 20).unwrap());
        if let Err(error) = job(&options().progress(&cut)) {
            assert!(matches!(error.kind(), ErrorKind::Changed), "{error}");
            assert_eq!(names(folder.path()), ["model"]);
            errors += 1;
        }
    }
    assert!(errors > 0);
}

/// Patch offsets change after they were checked.
#[test]
fn what_was_checked_does_not_change() {
    let folder = model();
    let at = |name: &str| folder.path().join(name);
    let stored = fs::read(at("compressed")).unwrap();
    let start = (0..stored.len()).find(|&at| stored[at..].starts_with(b"ZIPSERV\0"));
    let offsets = start.unwrap() + 128 + 32 * 32 * 2816;
    let input = OpenOptions::new()
        .write(true)
        .open(at("compressed"))
        .unwrap();
    let change = Once::new(0, || {
        input
            .write_all_at(&[0xFF; 4 * 1024], offsets as u64)
            .unwrap();
    });
    let error =
        decompress(at("compressed"), at("output"), &options().progress(&change)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Changed), "{error}");
    let error = open(at("compressed")).unwrap().matrix("high").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Tensor { .. }), "{error}");
    assert_eq!(names(folder.path()), ["compressed", "original"]);
}

/// Others write to inputs all the time: jobs fail or not, but none panics, and none leaves an output that failed.
#[test]
fn concurrent_writers_cause_errors_at_most() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensors = (0..40).map(|i| {
        let name = format!("tensor é {i}");
        tensor(&name, "BF16", &[64, 256], weights(64 * 256, i))
    });
    fs::write(at("original"), checkpoint(&tensors.collect::<Vec<_>>())).unwrap();
    compress(at("original"), at("compressed"), &options()).unwrap();
    let whole = ["original", "compressed"].map(|name| fs::read(at(name)).unwrap());
    let stop = AtomicBool::new(false);
    let mut outcomes = [0, 0];
    thread::scope(|scope| {
        for (name, whole) in ["original", "compressed"].into_iter().zip(&whole) {
            let (path, stop) = (at(name), &stop);
            scope.spawn(move || {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                let mut rng = SmallRng::seed_from_u64(2);
                while !stop.load(Ordering::Relaxed) {
                    // Much in the header, of which little of the file is.
                    let end = if rng.random() { whole.len() } else { 4096 };
                    let place = rng.random_range(0..end);
                    let byte = [rng.random()];
                    file.write_all_at(&byte, place as u64).unwrap();
                    thread::sleep(Duration::from_micros(rng.random_range(0..300)));
                    file.write_all_at(whole, 0).unwrap();
                    thread::sleep(Duration::from_micros(rng.random_range(0..300)));
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let force = options().force(true);
            let results = [
                compress(at("original"), at("small"), &force).map(drop),
                decompress(at("compressed"), at("restored"), &force).map(drop),
                verify(at("compressed"), at("original"), &options()).map(drop),
                inspect(at("original"), &options()).map(drop),
                inspect(at("compressed"), &options()).map(drop),
                open(at("compressed")).and_then(|opened| {
                    let mut tensors = opened.tensors();
                    tensors.try_for_each(|tensor| tensor.decoded().map(drop))
                }),
            ];
            // What decompression has checked is right, whatever the file was meanwhile.
            if results[1].is_ok() {
                assert!(fs::read(at("restored")).unwrap() == whole[0]);
            }
            for result in results {
                outcomes[usize::from(result.is_ok())] += 1;
            }
            assert!(
                names(folder.path())
                    .iter()
                    .all(|name| !name.starts_with('.'))
            );
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(outcomes[0] > 0, "{outcomes:?}");
}

/// System calls that are refused with an error, where conditions on their arguments are met.
type Refused = (i64, i32, Vec<SeccompCondition>);

fn refuse(calls: Vec<Refused>) {
    let arch = TargetArch::try_from(env::consts::ARCH).unwrap();
    for (call, error, conditions) in calls {
        let rules = match conditions.is_empty() {
            true => vec![],
            false => vec![SeccompRule::new(conditions).unwrap()],
        };
        let filter = SeccompFilter::new(
            BTreeMap::from([(call, rules)]),
            SeccompAction::Allow,
            SeccompAction::Errno(error as u32),
            arch,
        );
        let program = BpfProgram::try_from(filter.unwrap()).unwrap();
        apply_filter(&program).unwrap();
    }
}

fn is(argument: u8, operator: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).unwrap()
}

/// Runs a job where some calls are refused, with threads for which they are, too.
fn without(calls: Vec<Refused>, job: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            refuse(calls);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
            // In this thread: only what is parallel goes to the pool.
            let pool = pool.unwrap();
            pool.install(job);
        });
        worker.join().unwrap();
    });
}

/// As NFS and CephFS do.
fn no_rename_flags() -> Refused {
    let flags = is(4, SeccompCmpOp::Ne, 0);
    (libc::SYS_renameat2, libc::EINVAL, vec![flags])
}

fn no_links() -> Refused {
    (libc::SYS_linkat, libc::EPERM, vec![])
}

/// No file can be mapped, as on some FUSE and 9p file systems.
#[test]
fn files_need_not_be_mapped() {
    let folder = model();
    let at = |name: &str| folder.path().join(name);
    let file = is(4, SeccompCmpOp::Ne, u64::from(u32::MAX));
    without(vec![(libc::SYS_mmap, libc::ENODEV, vec![file])], || {
        compress(at("original"), at("small"), &options()).unwrap();
        decompress(at("small"), at("restored"), &options()).unwrap();
        let verdict = verify(at("small"), at("original"), &options()).unwrap();
        assert_eq!(verdict.difference, None);
        inspect(at("small"), &options()).unwrap();
        open(at("small")).unwrap().matrix("high").unwrap();
    });
    assert_eq!(sha256(at("restored")), sha256(at("original")));
}

const FOLDER: &str = "ZIPSERV_CHANGING_FOLDER";

/// Not a test, but what runs with little memory.
#[test]
#[ignore = "run by another test in a process of its own"]
fn child() {
    if let Ok(folder) = env::var(FOLDER) {
        let at = |name: &str| Path::new(&folder).join(name);
        compress(at("original"), at("small"), &options()).unwrap();
        let verdict = verify(at("small"), at("original"), &options()).unwrap();
        assert_eq!(verdict.difference, None);
    }
}

/// The input has 512 MB, the process addresses for 256.
#[test]
fn address_space_need_not_hold_the_file() {
    let folder = tempdir().unwrap();
    let bytes = 512u64 << 20;
    let json =
        format!(r#"{{"w":{{"dtype":"BF16","shape":[16384,16384],"data_offsets":[0,{bytes}]}}}}"#);
    let start = file(&json, b"");
    // Zeros that take no room.
    let original = File::create(folder.path().join("original")).unwrap();
    original.write_all_at(&start, 0).unwrap();
    original.set_len(start.len() as u64 + bytes).unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 262144 && exec \"$0\" \"$@\""])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--test-threads=1"])
        .envs([("RAYON_NUM_THREADS", "2"), ("MALLOC_ARENA_MAX", "1")])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(names(folder.path()), ["original", "small"]);
}

/// Where names cannot be exchanged, nor given only if they are free, in one step; and where there are no links either.
#[test]
fn rename_flags_are_not_needed() {
    for links in [true, false] {
        let calls = || {
            let mut calls = vec![no_rename_flags()];
            calls.extend((!links).then(no_links));
            calls
        };
        without(calls(), outputs_are_placed);
        without(calls(), outputs_of_others_stay);
    }
}

#[test]
fn outputs_of_others_are_not_replaced() {
    outputs_are_placed();
    outputs_of_others_stay();
}

fn small_model() -> TempDir {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("model")).unwrap();
    let tensors = [tensor("w", "BF16", &[64, 128], weights(64 * 128, 1))];
    fs::write(at("model/a.safetensors"), checkpoint(&tensors)).unwrap();
    fs::write(at("model/b.txt"), b"b").unwrap();
    folder
}

/// Files and folders get their names, also those of older ones.
fn outputs_are_placed() {
    let folder = small_model();
    let at = |name: &str| folder.path().join(name);
    let force = options().force(true);
    for (input, output) in [("model", "small"), ("model/a.safetensors", "one")] {
        compress(at(input), at(output), &options()).unwrap();
        compress(at(input), at(output), &force).unwrap();
        decompress(at(output), at("restored"), &force).unwrap();
        let verdict = verify(at(output), at(input), &options()).unwrap();
        assert_eq!(verdict.difference, None);
        let error = compress(at(input), at(output), &options()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OutputExists), "{error}");
        if at("restored").is_dir() {
            fs::remove_dir_all(at("restored")).unwrap();
        }
    }
    assert_eq!(names(folder.path()), ["model", "one", "restored", "small"]);
}

/// What appears under the name of an output, or changes there, while a job runs is nobody's to remove.
fn outputs_of_others_stay() {
    let folder = small_model();
    let at = |name: &str| folder.path().join(name);
    let precious = || assert_eq!(fs::read(at("out/thesis.txt")).unwrap(), b"thesis");
    let thesis = || {
        fs::create_dir_all(at("out")).unwrap();
        fs::write(at("out/thesis.txt"), b"thesis").unwrap();
    };
    // A folder: new, replaced, with something new in it.
    for (replaced, force) in [
        (None, false),
        (None, true),
        (Some(true), true),
        (Some(false), true),
    ] {
        let _ = fs::remove_dir_all(at("out"));
        if replaced.is_some() {
            compress(at("model"), at("out"), &options()).unwrap();
        }
        let change = Once::new(0, || {
            if replaced == Some(true) {
                fs::remove_dir_all(at("out")).unwrap();
            }
            thesis();
        });
        let options = options().force(force).progress(&change);
        let error = compress(at("model"), at("out"), &options).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OutputChanged), "{error}");
        precious();
        assert_eq!(names(at("out")).len() > 1, replaced == Some(false));
        assert_eq!(names(folder.path()), ["model", "out"]);
    }
    // A file: new, replaced, written to.
    for (there, force) in [(false, false), (false, true), (true, true)] {
        for replaced in [false, true] {
            let _ = fs::remove_file(at("one"));
            if there {
                fs::write(at("one"), b"old").unwrap();
            }
            let change = Once::new(0, || {
                if replaced {
                    fs::write(at("new"), b"thesis").unwrap();
                    fs::rename(at("new"), at("one")).unwrap();
                } else {
                    fs::write(at("one"), b"thesis").unwrap();
                }
            });
            let options = options().force(force).progress(&change);
            let error = compress(at("model/a.safetensors"), at("one"), &options).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::OutputChanged), "{error}");
            assert_eq!(fs::read(at("one")).unwrap(), b"thesis");
            assert_eq!(names(folder.path()), ["model", "one", "out"]);
        }
    }
    // What was to be replaced may go by itself.
    for (input, output) in [("model", "out"), ("model/a.safetensors", "one")] {
        let _ = fs::remove_dir_all(at("out"));
        fs::write(at("one"), b"old").unwrap();
        compress(at("model"), at("out"), &options()).unwrap();
        let gone = Once::new(0, || {
            fs::remove_dir_all(at("out")).unwrap();
            fs::remove_file(at("one")).unwrap();
        });
        let options = options().force(true).progress(&gone);
        compress(at(input), at(output), &options).unwrap();
        assert_eq!(names(folder.path()), ["model", output]);
    }
}

/// A folder in which one may write, but not look: its names cannot be made to last.
#[test]
fn an_output_whose_folder_cannot_be_opened_is_there() {
    let folder = small_model();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("drop")).unwrap();
    let open_to_all = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    open_to_all(folder.path(), 0o755);
    open_to_all(&at("drop"), 0o333);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if geteuid().is_root() {
                // This thread alone, and nobody's.
                let nobody = Some(Uid::from_raw(65534));
                set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            for (input, output) in [("model", "drop/small"), ("model/a.safetensors", "drop/one")] {
                let report = compress(at(input), at(output), &options()).unwrap();
                let [warning] = &report.warnings[..] else {
                    panic!("{:?}", report.warnings);
                };
                assert!(warning.contains("is complete, but its folder cannot be synced"));
            }
        });
        worker.join().unwrap();
    });
    open_to_all(&at("drop"), 0o755);
    assert_eq!(names(at("drop")), ["one", "small"]);
}

/// A disk fails when all is done but the last step.
#[test]
fn an_error_after_the_end_says_that_the_output_is_there() {
    let folder = small_model();
    let at = |name: &str| folder.path().join(name);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // The last call comes in this thread. After it nothing but the folder is opened.
            let job = |options: &Options| {
                compress(at("model/a.safetensors"), at("one"), options).map(drop)
            };
            let last = calls(job) - 1;
            fs::remove_file(at("one")).unwrap();
            let fail = Once::new(last, || {
                refuse(vec![(libc::SYS_openat, libc::EIO, vec![])]);
            });
            job(&options().progress(&fail)).unwrap_err()
        });
        let error = worker.join().unwrap();
        assert!(matches!(error.kind(), ErrorKind::NotSynced(_)), "{error}");
        let said = text(&error);
        assert!(
            said.starts_with("the output is complete and in its place"),
            "{said}"
        );
    });
    let verdict = verify(at("one"), at("model/a.safetensors"), &options()).unwrap();
    assert_eq!(verdict.difference, None);
}
