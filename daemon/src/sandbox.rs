//! A network namespace for a test, gone with it.

use std::future::Future;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a network namespace of its own, with `lo` down; skips it, loudly, when not root.
///
/// The namespace belongs to a thread that ends here: a Tokio worker must never change its namespace.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root for a network namespace");
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(test());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
