//! Signals that end the program: the job is cancelled, so that what it has written so far goes.

use std::{
    fs,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

/// Those that people, terminals and services end programs with.
const SIGNALS: [(i32, &str); 3] = [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM"), (SIGHUP, "SIGHUP")];

static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// From now on the first of them is [`received`], and the next ends the program at once. One that is ignored, as `nohup`
/// has it, stays so.
pub fn catch() {
    RECEIVED.get_or_init(|| {
        let received = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        let ignored = ignored();
        for (signal, _) in SIGNALS {
            if ignored & 1 << (signal - 1) != 0 {
                continue;
            }
            // In this order: the first finds that there was none before. Where it cannot be caught, it ends the program.
            let _ = flag::register_conditional_default(signal, again.clone());
            let _ = flag::register(signal, again.clone());
            let _ = flag::register_usize(signal, received.clone(), signal as usize);
        }
        received
    });
}

/// The signal that has come, if one has: its number and name.
pub fn received() -> Option<(u8, &'static str)> {
    let number = RECEIVED.get()?.load(Ordering::Relaxed);
    let (signal, name) = SIGNALS
        .iter()
        .find(|(signal, _)| *signal as usize == number)?;
    Some((*signal as u8, name))
}

/// Signals that are ignored, a bit each.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
