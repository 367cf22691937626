//! Where producers and consumers are in a ring of stages.
//!
//! A producer *pushes*: it waits until a stage is empty, fills it, and arrives at its *full* barrier. A
//! consumer *pops*: it waits until the stage is full, uses it, and arrives at its *empty* barrier. A wait
//! is for a phase of the barrier, by its parity. Each of the three states below does with the fewest
//! registers what its loop needs.

/// A stage of a ring of `STAGES`, and the parity of the phase that a wait for it is about.
#[derive(Clone, Copy, Debug)]
pub struct PipelineState<const STAGES: usize> {
    /// The stage.
    pub stage: u32,
    /// The parity.
    pub parity: u32,
}

impl<const STAGES: usize> PipelineState<STAGES> {
    /// Where a consumer begins.
    pub const CONSUMER: Self = Self {
        stage: 0,
        parity: 0,
    };
    /// Where a producer begins: all stages are empty.
    pub const PRODUCER: Self = Self {
        stage: 0,
        parity: 1,
    };

    /// Goes to the next stage.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.skip(1);
    }

    /// Goes on by some stages, at most all of them.
    #[inline(always)]
    pub fn skip(&mut self, stages: usize) {
        self.stage += stages as u32;
        if self.stage >= STAGES as u32 {
            self.stage -= STAGES as u32;
            self.parity ^= 1;
        }
    }
}

/// A stage of a ring of `STAGES`, and for each stage the parity of the phase that a wait is about.
///
/// Every work tile begins with stage 0, so that stages are known at compile time where it matters. So
/// stages may be passed over, and each has a parity of its own.
#[derive(Clone, Copy, Debug)]
pub struct RestartingState<const STAGES: usize> {
    /// The stage.
    pub stage: u32,
    parities: u32,
}

impl<const STAGES: usize> RestartingState<STAGES> {
    /// Where a consumer begins.
    pub const CONSUMER: Self = Self {
        stage: 0,
        parities: 0,
    };
    /// Where a producer begins: all stages are empty.
    pub const PRODUCER: Self = Self {
        stage: 0,
        parities: u32::MAX,
    };

    /// The parity of the stage's phase.
    #[inline(always)]
    pub fn parity(&self) -> u32 {
        self.parity_of(self.stage)
    }

    /// The parity of a stage's phase.
    #[inline(always)]
    pub fn parity_of(&self, stage: u32) -> u32 {
        self.parities >> stage & 1
    }

    /// Goes to the next stage.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.advance_from(self.stage);
    }

    /// Goes to the stage after `stage`, which is the state's.
    #[inline(always)]
    pub fn advance_from(&mut self, stage: u32) {
        self.parities ^= 1 << stage;
        self.stage = if stage + 1 == STAGES as u32 {
            0
        } else {
            stage + 1
        };
    }

    /// Goes to the first stage.
    #[inline(always)]
    pub fn restart(&mut self) {
        self.stage = 0;
    }
}

/// A place in a ring of `SLOTS`, a power of two: so many have been before. A count, so that the place
/// after this one takes no register of its own.
#[derive(Clone, Copy, Debug)]
pub struct CountingState<const SLOTS: usize>(u32);

impl<const SLOTS: usize> CountingState<SLOTS> {
    /// The first.
    pub const FIRST: Self = Self(0);

    /// Its slot.
    #[inline(always)]
    pub fn slot(self) -> u32 {
        self.0 % SLOTS as u32
    }

    /// The parity of the slot's phase for a consumer; a producer's is the other one.
    #[inline(always)]
    pub fn parity(self) -> u32 {
        self.0 / SLOTS as u32 % 2
    }

    /// The next.
    #[inline(always)]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parity that a wait names for the `pass`-th use of a stage: a consumer waits for the phase that
    /// the fill completes; a producer for the one that the pop before completed.
    fn parity(pass: u32, producer: bool) -> u32 {
        (pass + u32::from(producer)) % 2
    }

    fn states_of<const STAGES: usize>() {
        for step in 1..=STAGES {
            let mut consumer = PipelineState::<STAGES>::CONSUMER;
            let mut producer = PipelineState::<STAGES>::PRODUCER;
            for at in (0..9 * STAGES).step_by(step) {
                let (stage, pass) = ((at % STAGES) as u32, (at / STAGES) as u32);
                assert_eq!(
                    (consumer.stage, consumer.parity),
                    (stage, parity(pass, false))
                );
                assert_eq!(
                    (producer.stage, producer.parity),
                    (stage, parity(pass, true))
                );
                consumer.skip(step);
                producer.skip(step);
            }
        }
        // All sequences of four work tiles of up to twice the ring.
        let most = 2 * STAGES + 1;
        for sequence in 0..most.pow(4) {
            let mut consumer = RestartingState::<STAGES>::CONSUMER;
            let mut producer = RestartingState::<STAGES>::PRODUCER;
            let mut passes = [0; STAGES];
            for tile in 0..4 {
                for at in 0..sequence / most.pow(tile) % most {
                    let stage = at % STAGES;
                    assert_eq!(
                        (consumer.stage, producer.stage),
                        (stage as u32, stage as u32)
                    );
                    assert_eq!(consumer.parity(), parity(passes[stage], false));
                    assert_eq!(producer.parity(), parity(passes[stage], true));
                    passes[stage] += 1;
                    consumer.advance_from(stage as u32);
                    producer.advance();
                }
                consumer.restart();
                producer.restart();
            }
        }
    }

    #[test]
    fn every_wait_is_for_the_phase_that_is_due() {
        states_of::<1>();
        states_of::<2>();
        states_of::<3>();
        states_of::<4>();
    }

    #[test]
    fn counts_go_round() {
        let mut place = CountingState::<4>::FIRST;
        for at in 0..64 {
            assert_eq!(
                (place.slot(), place.parity()),
                (at % 4, parity(at / 4, false))
            );
            place = place.next();
        }
    }
}
