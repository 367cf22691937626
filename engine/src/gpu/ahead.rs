//! Weights are read before they are asked for: several at a time, in the order in which a model has them, while a device
//! packs those before.

use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use crate::{
    Result,
    models::Weight,
    weights::{Stored, Weights},
};

/// Bytes that wait to be asked for, at most, but for one weight.
const MOST_BYTES: u64 = 2 << 30;
/// Weights that are read at a time, at most.
const MOST_READERS: usize = 8;

/// What is read of a checkpoint's weights.
pub struct Ahead<'a> {
    weights: &'a Weights,
    order: &'a [Weight],
    numbers: HashMap<&'a str, usize>,
    most_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Of each weight.
    readings: Vec<Reading>,
    /// The first that no reader has looked at.
    next: usize,
    /// Of all that is read or being read.
    bytes: u64,
    is_over: bool,
}

enum Reading {
    NotYet,
    Now,
    Done(Result<Stored>),
    /// It has been given away, or whoever asks reads it.
    Gone,
}

impl<'a> Ahead<'a> {
    /// Reads weights in `order`, with a share of the readers where there are `others`, while `work` takes them.
    pub fn while_taken<T>(
        weights: &'a Weights,
        order: &'a [Weight],
        others: usize,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let readers = cores.min(MOST_READERS) / others.max(1);
        let this = Self::new(weights, order, MOST_BYTES);
        thread::scope(|scope| {
            for _ in 0..readers.max(1) {
                scope.spawn(|| this.read());
            }
            // Also if it panics, for the readers are waited for.
            let _end = End(&this);
            work(&this)
        })
    }

    fn new(weights: &'a Weights, order: &'a [Weight], most_bytes: u64) -> Self {
        let numbers = order.iter().enumerate();
        let readings = order.iter().map(|_| Reading::NotYet);
        Self {
            weights,
            order,
            numbers: numbers.map(|(n, weight)| (&*weight.name, n)).collect(),
            most_bytes,
            state: Mutex::new(State {
                readings: readings.collect(),
                next: 0,
                bytes: 0,
                is_over: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// A weight, as it is stored. One that was taken before is read again.
    pub fn take(&self, weight: &Weight) -> Result<Stored> {
        let Some(&number) = self.numbers.get(&*weight.name) else {
            return self.weights.stored(weight);
        };
        let mut state = self.state();
        loop {
            let reading = &mut state.readings[number];
            if let Reading::Now = reading {
                state = self.wait(state);
                continue;
            }
            let Reading::Done(stored) = std::mem::replace(reading, Reading::Gone) else {
                drop(state);
                return self.weights.stored(weight);
            };
            state.bytes -= bytes(weight);
            self.changed.notify_all();
            return stored;
        }
    }

    /// What a reader does.
    fn read(&self) {
        while let Some(number) = self.next() {
            // Nothing that is left in this state is waited for.
            let mut reading = Unread { of: self, number };
            let stored = self.weights.stored(&self.order[number]);
            reading.done(stored);
        }
    }

    /// The next weight to read, when there is room for it.
    fn next(&self) -> Option<usize> {
        let mut state = self.state();
        loop {
            let number = state.next;
            if state.is_over || number == self.order.len() {
                return None;
            }
            let more = bytes(&self.order[number]);
            if let Reading::NotYet = state.readings[number] {
                if state.bytes > 0 && state.bytes + more > self.most_bytes {
                    state = self.wait(state);
                    continue;
                }
                state.readings[number] = Reading::Now;
                state.bytes += more;
                state.next += 1;
                return Some(number);
            }
            state.next += 1;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'b>(&self, state: MutexGuard<'b, State>) -> MutexGuard<'b, State> {
        let state = self.changed.wait(state);
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of BF16.
fn bytes(weight: &Weight) -> u64 {
    2 * weight.shape.iter().product::<u64>()
}

/// Has the readers come to an end.
struct End<'a, 'b>(&'a Ahead<'b>);

impl Drop for End<'_, '_> {
    fn drop(&mut self) {
        self.0.state().is_over = true;
        self.0.changed.notify_all();
    }
}

/// A weight that is being read. Unless that is done, whoever asks for it reads it.
struct Unread<'a, 'b> {
    of: &'a Ahead<'b>,
    number: usize,
}

impl Unread<'_, '_> {
    fn done(&mut self, stored: Result<Stored>) {
        self.of.state().readings[self.number] = Reading::Done(stored);
    }
}

impl Drop for Unread<'_, '_> {
    fn drop(&mut self) {
        let mut state = self.of.state();
        if let Reading::Now = state.readings[self.number] {
            state.readings[self.number] = Reading::Gone;
            state.bytes -= bytes(&self.of.order[self.number]);
        }
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{gpu::piece::tests::folder, models::Model};

    #[test]
    fn weights_are_what_the_checkpoint_has_in_whatever_order_they_are_asked_for() {
        let (config, values, folder) = folder();
        let weights = Weights::open(folder.path(), &config).unwrap();
        let mut order = Vec::new();
        let model = |order: &mut Vec<Weight>| {
            Model::new(&config, &mut |weight: Weight| {
                order.push(weight);
                Ok(())
            })
        };
        model(&mut order).unwrap();
        let check = |ahead: &Ahead, weight: &Weight| {
            let stored = ahead.take(weight).unwrap();
            assert_eq!(*stored.values(), values[&weight.name], "{}", weight.name);
        };
        let backwards: Vec<_> = order.iter().rev().collect();
        let forwards: Vec<_> = order.iter().collect();
        // Room for one weight, for a few, and for all.
        for most_bytes in [0, 100_000, u64::MAX] {
            for asked in [&forwards, &backwards] {
                let ahead = Ahead::new(&weights, &order, most_bytes);
                thread::scope(|scope| {
                    for _ in 0..3 {
                        scope.spawn(|| ahead.read());
                    }
                    let _end = End(&ahead);
                    // Some are asked for again.
                    asked.iter().for_each(|weight| check(&ahead, weight));
                    check(&ahead, asked[1]);
                });
                assert_eq!(ahead.state().bytes, 0);
            }
        }
        // Work may end before all is taken.
        Ahead::while_taken(&weights, &order, 1, |ahead| {
            check(ahead, &order[2]);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn errors_reach_who_asks() {
        let (config, _, folder) = folder();
        let weights = Weights::open(folder.path(), &config).unwrap();
        let mut order = Vec::new();
        let all = |weight: Weight| {
            order.push(weight);
            Ok(())
        };
        Model::new(&config, &mut { all }).unwrap();
        let path = folder.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let taken = Ahead::while_taken(&weights, &order, 1, |ahead| {
            order
                .iter()
                .try_for_each(|weight| ahead.take(weight).map(drop))
        });
        let error = taken.unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{error}");
    }
}
