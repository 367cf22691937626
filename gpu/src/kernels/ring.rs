/// A stage of a ring of `STAGES`, and the parity of the phase that a wait for it is about.
#[derive(Clone, Copy)]
pub struct Ring<const STAGES: usize> {
    pub stage: u32,
    pub parity: u32,
}

impl<const STAGES: usize> Ring<STAGES> {
    /// Where whoever empties stages begins.
    pub const EMPTYING: Self = Self {
        stage: 0,
        parity: 0,
    };
    /// Where whoever fills stages begins: all are empty.
    pub const FILLING: Self = Self {
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
