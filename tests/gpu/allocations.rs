//! Once its plan is there, a layer's forward allocates nothing on the host.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use half::bf16;
use zipserv::gpu::{Buffer, Linear};

use crate::{data::Kind, lab::Lab};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what this thread asks for.
struct Counting;

// SAFETY: all is the system's; a counter without a destructor needs no allocation itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn counts() {
    let before = ALLOCATIONS.get();
    drop(Box::new(1));
    assert!(ALLOCATIONS.get() > before);
}

#[test]
fn forward_allocates_nothing() {
    for mut lab in Lab::each() {
        let (m, k) = (200, 328);
        let layer = Linear::from(lab.upload(m, k, &Kind::Gaussian.weights(m, k)));
        for n in [1, 8, 16, 64, 300] {
            let x = Buffer::from_slice(lab.device, &vec![bf16::ONE; n * k]).unwrap();
            let mut y = Buffer::<bf16>::zeroed(lab.device, n * m).unwrap();
            let (stream, workspace) = (&lab.stream, &mut lab.workspace);
            // Makes the plan, and binds the workspace.
            layer.forward(stream, &x, n, &mut y, workspace).unwrap();
            let before = ALLOCATIONS.get();
            layer.forward(stream, &x, n, &mut y, workspace).unwrap();
            assert_eq!(ALLOCATIONS.get(), before, "{n} tokens");
            stream.synchronize().unwrap();
        }
    }
}
