//! Work on many bytes, which would keep a thread that serves from serving others.

use crate::flight::Lost;

/// What is not more than this is done before another thread has even begun.
pub(crate) const LITTLE: usize = 64 << 10;

/// Does `work`, which goes over so many bytes: here, or on a thread for such work if they are many.
///
/// Cancel safe: what was begun there goes on.
///
/// # Errors
/// [`Lost`] if the work panicked.
pub(crate) async fn work<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Lost> {
    if bytes <= LITTLE {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| Lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[tokio::test]
    async fn only_what_is_much_is_handed_on() {
        let here = thread::current().id();
        let at = |bytes| work(bytes, || thread::current().id());
        assert_eq!(at(LITTLE).await, Ok(here));
        assert_ne!(at(LITTLE + 1).await.unwrap(), here);
        assert_eq!(work(LITTLE + 1, || panic!("as planned")).await, Err::<(), _>(Lost));
    }
}
