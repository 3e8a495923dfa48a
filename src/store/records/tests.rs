use std::sync::mpsc;
use std::time::Duration;

use super::super::Options;
use super::super::pool::THREADS;
use super::*;
use crate::metrics::Metrics;

/// Who waited did so on a thread of the pool, and where all had one, none was left for what they waited for.
#[tokio::test]
async fn however_many_wait_until_all_is_written_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { dir: dir.path().join("cache"), ..Options::default() };
    let disk = Disk::open(&options, Metrics::new()).unwrap().disk;
    let pool = Pool::new("test", Duration::from_secs(10)).unwrap();
    let records = Arc::new(Records::open(Arc::new(disk), pool.clone(), false, Metrics::new()));
    // No thread is free until they have come, and something is recorded after that.
    let (free, busy): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<()>()).unzip();
    busy.into_iter().for_each(|busy| pool.start(move || _ = busy.recv()));
    let waiting = [(); THREADS].map(|()| {
        let records = Arc::clone(&records);
        tokio::spawn(async move { records.flush().await })
    });
    tokio::task::yield_now().await;
    records.set_tally("pulls", Tally { since: Timestamp::from_unix_millis(1), amount: 2 });
    drop(free);
    let all = async {
        for one in waiting {
            one.await.unwrap();
        }
        records.flush().await;
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), all).await.is_ok(), "they wait for each other");
    assert_eq!(records.disk.read(NAME).unwrap(), format!("{HEADER}tally pulls 1 2\n").as_bytes());
}
