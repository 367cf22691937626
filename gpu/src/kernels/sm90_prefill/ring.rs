/// A stage of a ring of `STAGES`, and for each stage the parity of the phase that a wait is about.
///
/// Every share of an output tile begins with stage 0, so that stages are known at compile time where
/// it matters. So stages may be passed over, and each has a parity of its own.
#[derive(Clone, Copy)]
pub struct Ring<const STAGES: usize> {
    pub stage: u32,
    parities: u32,
}

impl<const STAGES: usize> Ring<STAGES> {
    /// Where whoever empties stages begins.
    pub const EMPTYING: Self = Self {
        stage: 0,
        parities: 0,
    };
    /// Where whoever fills stages begins: all are empty.
    pub const FILLING: Self = Self {
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

    /// Goes to the stage after `stage`, which is the ring's.
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

/// Whose turn it is in a ring of `SLOTS`, a power of two: so many have been before. A count, so that the turn
/// after this one takes no register of its own.
#[derive(Clone, Copy)]
pub struct Turn<const SLOTS: usize>(u32);

impl<const SLOTS: usize> Turn<SLOTS> {
    /// The first.
    pub const FIRST: Self = Self(0);

    /// Its slot.
    #[inline(always)]
    pub fn slot(self) -> u32 {
        self.0 % SLOTS as u32
    }

    /// The parity of the slot's phase, for whoever empties it.
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
