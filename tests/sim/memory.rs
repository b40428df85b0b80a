//! Counts the bytes that each thread has allocated and not freed, so that tests can show that something does not grow.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

/// Memory that is freed by another thread than its owner's makes the figures wrong; the simulator uses one thread.
fn count(bytes: usize, sign: isize) {
    // A thread that is ending has no counter any more.
    let _ = LIVE.try_with(|live| live.set(live.get().wrapping_add(sign * bytes as isize)));
}

// SAFETY: every call is passed on to the system's allocator unchanged, and its answer is passed back unchanged. The
// counter is a constant-initialised cell without a destructor, so counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promises about `layout` are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: `pointer` came from `alloc` above, and so from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread has allocated and not freed.
pub(crate) fn live() -> isize {
    LIVE.with(Cell::get)
}

#[test]
fn what_is_kept_is_counted_and_what_is_freed_is_not() {
    let before = live();
    let kept = vec![0u8; 100_000];
    drop(vec![0u8; 50_000]);
    assert_eq!(live() - before, 100_000);
    drop(kept);
    assert_eq!(live(), before);
}
