//! Waiting before something is tried again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(if cfg!(fuzzing) { 0 } else { 5 });

/// Waits before a further try: longer each time, and not as long as everyone else. `tries`: how many were in vain already.
///
/// Cancel safe.
pub async fn pause(tries: u32) {
    let longest = (SHORTEST * (1 << tries.min(8))).min(LONGEST);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    tokio::time::sleep(longest / 2 + longest / 2 * (nanos % 1000) / 1000).await;
}
