//! What devices that reach one another's memory add up without NCCL: parts of few tokens' states, in the norm behind the
//! product that makes them (see `norm_parts` of the kernels).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use zipserv::gpu::{Buffer, Device, GpuError, Stream, ViewMut};
use zipserv_engine_kernels::norm_parts::{MOST_ROWS, Peer, fours_at_a_time};

use crate::{Error, Result};

/// One rank's part in it.
pub struct Exchange {
    rank: usize,
    /// The rank's, which is waited for before memory goes that peers use.
    stream: Stream,
    /// What its kernels see of all ranks at each turn, as [`Peer`] has it.
    peers: [Buffer<u64>; 2],
    all: Arc<All>,
}

/// All ranks' memory, which goes with the last of them.
pub struct All {
    memories: Vec<Memory>,
    is_aborted: AtomicBool,
}

/// The memory of a rank that peers use, and what goes with it.
struct Memory {
    /// Rows of FP32, of each turn.
    parts: [Buffer<f32>; 2],
    /// Of each rank, and of each row.
    flags: Buffer<u32>,
    /// Of each row.
    counts: Buffer<u32>,
    /// One word.
    aborted: Buffer<u32>,
    /// Waits for nothing that runs.
    aborts: Stream,
}

/// Whose parts are added up. The two take turns, so each has its own place.
#[derive(Clone, Copy)]
pub enum Turn {
    Attention,
    FeedForward,
}

/// What a launch of the kernel wants to know.
#[derive(Clone, Copy)]
pub struct Parts {
    /// [`Peer`] of each rank.
    pub peers: u64,
    pub counts: u64,
    pub aborted: u64,
    pub ranks: usize,
    pub rank: usize,
}

impl Exchange {
    /// One for each of these streams' devices, for states of `hidden` features; nothing where there is one device, where
    /// two of them do not reach one another, and where so many parts have no room.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    pub fn all(streams: &[Stream], hidden: usize) -> Result<Option<Vec<Self>>> {
        let ranks = streams.len();
        if ranks < 2 || fours_at_a_time(hidden, ranks) == 0 {
            return Ok(None);
        }
        for (index, stream) in streams.iter().enumerate() {
            for (other, peer) in streams.iter().enumerate() {
                if index != other && !stream.device().reach(peer.device())? {
                    return Ok(None);
                }
            }
        }
        let memories = streams
            .iter()
            .map(|stream| Memory::new(stream.device(), hidden, ranks));
        let all = Arc::new(All {
            memories: memories.collect::<Result<_>>()?,
            is_aborted: AtomicBool::new(false),
        });
        let exchanges = streams.iter().enumerate().map(|(rank, stream)| {
            let peers = [0, 1].map(|turn| {
                let addresses = all.memories.iter().flat_map(|memory| memory.peer(turn));
                Buffer::from_slice(stream.device(), &addresses.collect::<Vec<_>>())
            });
            let [first, second] = peers;
            Ok(Self {
                rank,
                stream: stream.clone(),
                peers: [first?, second?],
                all: all.clone(),
            })
        });
        exchanges.collect::<Result<_>>().map(Some)
    }

    /// Tokens that it is for, at most.
    pub const MOST_TOKENS: usize = MOST_ROWS;

    /// Where this rank's product puts its parts.
    pub fn own(&self, turn: Turn) -> u64 {
        self.all.memories[self.rank].parts[turn as usize].address()
    }

    /// What adds up all ranks' parts.
    ///
    /// # Errors
    /// [`Error::OtherDevice`] after an [abort](All::abort).
    pub fn parts(&self, turn: Turn) -> Result<Parts> {
        if self.all.is_aborted.load(Ordering::Relaxed) {
            return Err(Error::OtherDevice);
        }
        let memory = &self.all.memories[self.rank];
        Ok(Parts {
            peers: self.peers[turn as usize].address(),
            counts: memory.counts.address(),
            aborted: memory.aborted.address(),
            ranks: self.all.memories.len(),
            rank: self.rank,
        })
    }

    /// What all of them have in common.
    pub fn shared(&self) -> Arc<All> {
        self.all.clone()
    }
}

impl Drop for Exchange {
    /// No kernel of this rank uses peers' memory any more when it goes, nor waits for a peer that has gone.
    fn drop(&mut self) {
        // Nothing can be done about an error.
        let _ = self.all.memories[self.rank].abort();
        let _ = self.stream.synchronize();
    }
}

impl All {
    /// Ends kernels that wait for a rank which has failed.
    pub fn abort(&self) {
        self.is_aborted.store(true, Ordering::Relaxed);
        for memory in &self.memories {
            // That of a device which has failed may be out of reach.
            let _ = memory.abort();
        }
    }
}

impl Memory {
    fn new(device: &Device, hidden: usize, ranks: usize) -> Result<Self> {
        let parts = || Buffer::zeroed(device, MOST_ROWS * hidden);
        Ok(Self {
            parts: [parts()?, parts()?],
            flags: Buffer::zeroed(device, ranks * MOST_ROWS)?,
            counts: Buffer::zeroed(device, MOST_ROWS)?,
            aborted: Buffer::zeroed(device, 1)?,
            aborts: Stream::new(device)?,
        })
    }

    /// The two words of a [`Peer`].
    fn peer(&self, turn: usize) -> [u64; 2] {
        const { assert!(size_of::<Peer>() == size_of::<[u64; 2]>()) };
        [self.parts[turn].address(), self.flags.address()]
    }

    fn abort(&self) -> std::result::Result<(), GpuError> {
        let (device, address) = (self.aborts.device(), self.aborted.address());
        // SAFETY: a word, which kernels read as it changes.
        unsafe { ViewMut::from_raw(device, address, 1) }.copy_from_slice(&self.aborts, &[1])
    }
}
