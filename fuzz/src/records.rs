//! A cache directory whose books anything may have happened to.

use std::fs;

use larder::clock::{Clock, Timestamp};
use larder::metrics::Metrics;
use larder::oci::{Repository, Tag};
use larder::store::{OpenError, Options, Store, TagRecord};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// The records and, after a NUL, the index. Whatever they say, the store opens, takes what is new, and knows it at the next start.
pub(crate) fn records(bytes: &[u8]) {
    let (records, index) = match bytes.iter().position(|byte| *byte == 0) {
        Some(nul) => (&bytes[..nul], &bytes[nul + 1..]),
        None => (bytes, &b""[..]),
    };
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let cache = dir.path().join("cache");
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            // An empty one, as larder makes it.
            open(&cache).await.close(true).await;
            fs::write(cache.join("records"), records).expect("the records");
            fs::write(cache.join("index"), index).expect("the index");
            let readable = records.starts_with(b"larder records 1\n");
            let repository = Repository { upstream: "docker.io".into(), name: "library/new".parse().expect("a name") };
            let tag: Tag = "new".parse().expect("a tag");
            let digest = format!("sha256:{}", "ab".repeat(32)).parse().expect("a digest");
            let new = TagRecord { digest, checked: Timestamp::from_unix_millis(1_000) };
            for round in 0..2 {
                let store = open(&cache).await;
                if round == 0 {
                    store.remove_tag(&repository, &tag);
                    store.set_tag(&repository, &tag, &new);
                } else if readable {
                    assert_eq!(store.tag(&repository, &tag).as_ref(), Some(&new), "what was recorded is known");
                }
                store.close(true).await;
            }
        });
    });
}

async fn open(cache: &std::path::Path) -> Store {
    let options = Options { dir: cache.to_owned(), ..Options::default() };
    // The last one may have a thread that is just ending.
    let store = loop {
        match Store::open(&options, Clock::system(), Metrics::new()).await {
            Ok(store) => break store,
            Err(OpenError::Held { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    while store.usage().is_none() {
        tokio::task::yield_now().await;
    }
    store
}
