//! Whenever the process is killed, there is never a file under the target's name that is not whole.
//!
//! `ZIPSERV_KILLS` says how often each job is killed, three times if it is not set.

use std::{
    env, fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::tempdir;
use zipserv::checkpoint::{compress, decompress, verify};

mod support;
use support::*;

const JOB: &str = "ZIPSERV_KILL_JOB";
/// 64 MB: long enough to be killed in the middle.
const SHAPE: [u64; 2] = [4096, 8192];

/// Not a test, but what the child processes run.
#[test]
#[ignore = "run by the other test in a process of its own"]
fn child() {
    let Ok(job) = env::var(JOB) else {
        return;
    };
    let options = options().force(true);
    match job.as_str() {
        "compress" => compress("original", "target", &options).unwrap(),
        _ => decompress("compressed", "target", &options).unwrap(),
    };
}

fn start(job: &str, folder: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored"])
        .env(JOB, job)
        .current_dir(folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn leftovers(folder: &Path) -> usize {
    let partial = |name: &&String| name.ends_with(".partial");
    names(folder).iter().filter(partial).count()
}

#[test]
fn a_killed_process_leaves_nothing_that_looks_whole() {
    let kills = env::var("ZIPSERV_KILLS").map_or(3, |kills| kills.parse().unwrap());
    let folder = tempdir().unwrap();
    let at = |name| folder.path().join(name);
    let count = (SHAPE[0] * SHAPE[1]) as usize;
    let original = checkpoint(&[tensor("w", "BF16", &SHAPE, weights(count, 1))]);
    fs::write(at("original"), &original).unwrap();
    compress(at("original"), at("compressed"), &options()).unwrap();
    let verdict = verify(at("compressed"), at("original"), &options()).unwrap();
    assert_eq!(verdict.difference, None);
    let compressed = fs::read(at("compressed")).unwrap();

    for (job, whole) in [("compress", &compressed), ("decompress", &original)] {
        let begin = Instant::now();
        assert!(start(job, folder.path()).wait().unwrap().success());
        let duration = begin.elapsed();
        assert!(fs::read(at("target")).unwrap() == *whole);

        let (mut middle, mut absent, mut done) = (0, 0, 0);
        for round in 0..kills {
            // Every other time there is something to replace.
            let old = (round % 2 == 1).then(|| b"what was there before".to_vec());
            match &old {
                Some(old) => fs::write(at("target"), old).unwrap(),
                None => fs::remove_file(at("target")).unwrap_or_default(),
            }
            let before = leftovers(folder.path());
            let mut child = start(job, folder.path());
            thread::sleep(Duration::from_secs_f64(
                duration.as_secs_f64() * rand::random::<f64>(),
            ));
            // SIGKILL; an error says that it has ended already.
            child.kill().unwrap_or_default();
            child.wait().unwrap();
            let found = fs::read(at("target")).ok();
            if found.as_ref() == Some(whole) {
                done += 1;
            } else {
                assert!(found == old, "{job}: the target is not whole");
                absent += 1;
            }
            middle += leftovers(folder.path()) - before;
        }
        // Leftovers do not stop the next run, and are no part of it.
        assert!(start(job, folder.path()).wait().unwrap().success());
        assert!(fs::read(at("target")).unwrap() == *whole);
        fs::remove_file(at("target")).unwrap();
        println!(
            "{job}: killed {kills} times within {duration:.2?}: {absent} times without a new \
             target, {middle} of these while the output was being written, {done} times after it was whole"
        );
    }
}
