//! Waiting for conditions.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what happens at once, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// The pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
///
/// # Panics
/// After `timeout`, naming `what`.
#[track_caller]
pub fn wait_until(timeout: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(timeout, what, || if condition() { Ok(()) } else { Err(String::new()) });
}

/// Waits until `attempt` succeeds and returns its value.
///
/// # Panics
/// After `timeout`, naming `what` and the last attempt's error.
#[track_caller]
pub fn wait_for<T>(
    timeout: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        let error = match attempt() {
            Ok(value) => return value,
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            panic!("waited {timeout:?} in vain for {what}. {error}");
        }
        thread::sleep(POLL);
    }
}
