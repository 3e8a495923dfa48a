//! Who says nothing, or half of something, or nothing more.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Attacked, CROWD, KIB, MIB, OTHERS, crowd, crowd_by_tls, times};
use crate::support::{Client, Registry};

/// As many as may be under way.
const HANDSHAKES: usize = 1_024;

#[tokio::test]
async fn five_thousand_who_say_nothing_or_never_end_cost_little_and_are_closed() {
    let attacked = Attacked::with(Registry::start().await, &[]).await;
    let before = attacked.others_wait().await;
    let mut clients = crowd(attacked.address(), CROWD).await;
    for (n, client) in clients.iter_mut().enumerate() {
        match n % 5 {
            0 => {}
            1 => client.send("G").await,
            2 => client.send("GET /v2/ HTTP/1.1\r\nhost: mirror\r\nx-slow: ").await,
            3 => client.send("PRI * HTTP/2.0\r\n\r\n").await,
            // And nothing after its answer.
            _ => client.send("GET /v2/ HTTP/1.1\r\nhost: mirror\r\n\r\n").await,
        }
    }
    attacked.larder.until("larder_connections", |open| open >= CROWD as u64).await;
    attacked.tells("5,000 who say nothing", before).await;
    assert!(attacked.grown() < 40 * KIB * CROWD as u64, "{}", attacked.grown());
    assert!(attacked.larder.descriptors() < CROWD + OTHERS);
    // A byte now and then does not keep them, and it is larder that closes them all.
    let mut dripping = JoinSet::new();
    for n in (2..502).step_by(5).rev() {
        let mut client = clients.swap_remove(n);
        dripping.spawn(async move {
            while client.try_send("x").await.is_ok() {
                sleep(Duration::from_millis(200)).await;
            }
        });
    }
    drop(dripping.join_all().await);
    attacked.larder.until("larder_connections", |open| open <= 1).await;
    drop(clients);
    assert!(attacked.larder.descriptors() < OTHERS);
}

/// Half a `ClientHello`, whose rest never comes.
#[tokio::test]
async fn five_thousand_who_stall_in_a_handshake_cost_little_and_keep_nobody_out() {
    let (attacked, tls, authority) = Attacked::behind_tls(Registry::start().await, &[]).await;
    let before = attacked.others_wait().await;
    let mut clients = crowd(tls, CROWD).await;
    for client in &mut clients {
        // Those that have made room for others hear no more.
        let _ = client.try_send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    }
    let handshakes = Client::tls(authority.believed(rustls::ALL_VERSIONS, &["h2"]));
    let begun = Instant::now();
    handshakes.get(format!("https://{tls}/v2/")).await.expect(200);
    eprintln!("a handshake among them takes {:?}", begun.elapsed());
    attacked.tells("5,000 who stall in a handshake", before).await;
    assert!(attacked.grown() < 40 * KIB * CROWD as u64, "{}", attacked.grown());
    assert!(attacked.larder.descriptors() < HANDSHAKES + OTHERS);
    attacked.larder.until("larder_connections", |open| open <= 2).await;
    drop(clients);
}

/// By HTTP/2 a client may keep its connection for hours, if it answers when it is asked whether it is there. `ATTACKS=9`: 9,000,
/// as for more there are too few descriptors.
#[tokio::test]
async fn a_thousand_who_have_asked_by_tls_and_stay_cost_little() {
    let (attacked, tls, authority) = Attacked::behind_tls(Registry::start().await, &["server.max_connections=10100"]).await;
    let number = 1_000 * times().min(9);
    let before = attacked.others_wait().await;
    let (mut clients, mut connections) = (Vec::new(), JoinSet::new());
    let believes = authority.believed(rustls::ALL_VERSIONS, &["h2"]);
    // Some at a time, so that each asks before it has been silent for too long.
    while clients.len() < number {
        for stream in crowd_by_tls(tls, 200, believes.clone()).await {
            let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
            connections.spawn(async move { drop(connection.await) });
            let request = http::Request::get(format!("https://{tls}/v2/")).body(()).unwrap();
            assert_eq!(requests.send_request(request, true).unwrap().0.await.unwrap().status(), 200);
            clients.push(requests);
        }
    }
    attacked.tells(&format!("{number} who have asked by TLS and stay"), before).await;
    let open = attacked.larder.metric("larder_connections").await;
    assert!(open >= number as u64, "{open} are left");
    let grown = attacked.grown();
    eprintln!("{} KiB each", grown / number as u64 / KIB);
    // 350 MiB for 10,000; and some that a thousand take as well.
    assert!(grown < 35 * KIB * number as u64 + 8 * MIB, "{grown}");
    assert!(attacked.larder.descriptors() < number + OTHERS);
    drop(clients);
    connections.abort_all();
    attacked.larder.until("larder_connections", |open| open <= 1).await;
}
