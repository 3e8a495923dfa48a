//! Those who try out passwords: they are slowed down, and nobody else is.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use larder::clock::Clock;
use tokio::time::{Instant, sleep};

use super::{ALICES, BOBS, COST, World, assert_challenged, before, line};
use crate::support::{Client, StoppedMirror, basic, get_with};

/// The least of many tries is what the work takes; the rest is what else the machine had to do.
#[tokio::test]
async fn unknown_users_and_those_with_a_weak_hash_cost_the_time_of_the_others() {
    let with_carol = |mirror: StoppedMirror| {
        let users = mirror.dir().join("users");
        let text = fs::read_to_string(&users).unwrap() + &line("carol", "canary-of-carol", 6);
        fs::write(users, text).unwrap();
        mirror
    };
    let world = before("", 10, |mirror| with_carol(mirror).clock(Clock::still())).await;
    let names = ["alice", "carol", "mallory"];
    let mut took = [Duration::MAX; 3];
    for n in 0..10 {
        for (user, took) in names.iter().zip(&mut took) {
            let begun = Instant::now();
            assert_challenged(&world.as_user("/v2/", user, &format!("canary-{n}")).await);
            *took = (*took).min(begun.elapsed());
        }
    }
    assert!(took[0] > Duration::from_millis(5), "it is hashed: {took:?}");
    for other in &took[1..] {
        let ratio = other.as_secs_f64() / took[0].as_secs_f64();
        assert!((0.6..1.6).contains(&ratio), "{took:?} for {names:?}");
    }
    // What is right is so at once, and at no other time either.
    world.mirror.clock().advance(Duration::from_mins(2));
    world.as_user("/v2/", "carol", "canary-of-carol").await.expect(200);
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
}

#[tokio::test]
async fn who_tries_out_passwords_is_slowed_down_and_nobody_else_is() {
    let world = before("", COST, |mirror| mirror.clock(Clock::still())).await;
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    let mut said = Vec::new();
    for n in 0..40 {
        said.push(world.as_user("/v2/", "alice", &format!("canary-{n}")).await);
    }
    let count = |status| said.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(401), count(429)), (30, 10));
    let refused = said.last().unwrap();
    assert_eq!((refused.header("retry-after"), refused.error_code().as_deref()), (Some("2"), Some("TOOMANYREQUESTS")));
    // Not even the right password is tried now, as the guesser would learn it.
    assert_eq!(world.as_user("/v2/", "bob", BOBS).await.status, 429);
    // Who is known goes on.
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    world.mirror.clock().advance(Duration::from_secs(2));
    world.as_user("/v2/", "bob", BOBS).await.expect(200);
    // However long ago that was.
    world.mirror.clock().advance(Duration::from_hours(24));
    for n in 40..80 {
        world.as_user("/v2/", "alice", &format!("canary-{n}")).await;
    }
    assert_eq!(world.as_user("/v2/", "bob", &format!("{BOBS}x")).await.status, 429);
    world.as_user("/v2/", "alice", ALICES).await.expect(200);
    world.as_user("/v2/", "bob", BOBS).await.expect(200);
}

/// A job with an old password kept all who came from its address from logging in.
#[tokio::test]
async fn the_same_wrong_password_again_is_no_further_guess_and_costs_nothing() {
    let world = before("", 12, |mirror| mirror.clock(Clock::still())).await;
    let begun = Instant::now();
    for user in ["alice", "mallory"] {
        assert_challenged(&world.as_user("/v2/", user, "canary-of-old").await);
    }
    let two = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..50 {
        for user in ["alice", "mallory"] {
            assert_challenged(&world.as_user("/v2/", user, "canary-of-old").await);
        }
    }
    assert!(begun.elapsed() < two * 5, "{two:?}, and then a hundred in {:?}", begun.elapsed());
    world.as_user("/v2/", "bob", BOBS).await.expect(200);
}

/// A login from an address that a trusted proxy tells of.
async fn login_from(world: &World, from: &str, user: &str, password: &str) -> u16 {
    let (shown, url) = (basic(user, password), format!("{}/v2/", world.url));
    get_with(url, &[("authorization", &shown), ("x-forwarded-for", from)]).await.status
}

/// Sixty-four waiting guesses of whomever were enough that nobody else was heard who was not known yet.
#[tokio::test]
async fn guesses_from_many_addresses_keep_nobody_elsewhere_from_logging_in() {
    let world = before("proxies = ['127.0.0.1']", COST, |mirror| mirror.clock(Clock::still())).await;
    let addresses: Vec<String> = (0..100).map(|n| format!("198.51.100.{n}")).collect();
    let guesses = async {
        let guesses: Vec<(&String, String)> =
            addresses.iter().flat_map(|from| (0..3).map(move |n| (from, format!("canary-{from}-{n}")))).collect();
        let said = join_all(guesses.iter().map(|(from, guess)| login_from(&world, from, "bob", guess))).await;
        assert!(said.iter().all(|status| *status == 401), "{said:?}");
    };
    let others = async {
        sleep(Duration::from_millis(100)).await;
        assert_eq!(login_from(&world, "203.0.113.1", "alice", ALICES).await, 200);
        assert_eq!(login_from(&world, "203.0.113.2", "bob", BOBS).await, 200);
    };
    tokio::join!(guesses, others);
}

/// As after a restart: each was counted as a guess until it had been found right, and beyond sixty-four nobody was heard.
#[tokio::test]
async fn a_whole_fleet_logs_in_at_once_with_one_account_or_one_for_each() {
    const MACHINES: usize = 60;
    let names: Vec<String> = (0..MACHINES).map(|n| format!("robot-{n}")).collect();
    let robots = |mirror: StoppedMirror| {
        let lines: Vec<String> = names.iter().map(|name| line(name, &format!("canary-of-{name}"), COST)).collect();
        let users = mirror.dir().join("users");
        let text = fs::read_to_string(&users).unwrap() + &lines.join("\n");
        fs::write(users, text).unwrap();
        mirror.clock(Clock::still())
    };
    let world = before("proxies = ['127.0.0.1']", COST, robots).await;
    let passwords: Vec<String> = names.iter().map(|name| format!("canary-of-{name}")).collect();
    let each = names.iter().zip(&passwords).map(|(name, password)| login_from(&world, "198.51.100.1", name, password));
    assert_eq!(join_all(each).await, [200; MACHINES]);
    let from: Vec<String> = (0..200).map(|n| format!("203.0.113.{n}")).collect();
    let all = join_all(from.iter().map(|from| login_from(&world, from, "alice", ALICES)));
    assert_eq!(all.await, [200; 200]);
}

/// An address of its own for each guess would let one guess for ever.
#[tokio::test]
async fn an_address_that_no_trusted_proxy_tells_of_slows_down_the_one_who_says_it() {
    for (proxies, others) in [("proxies = ['127.0.0.1']", 401), ("", 429), ("proxies = ['10.0.0.0/8']", 429)] {
        let world = before(proxies, COST, |mirror| mirror.clock(Clock::still())).await;
        let guess = async |n: usize, from: &str| {
            let guess = basic("alice", &format!("canary-{n}"));
            let headers = [("authorization", &*guess), ("x-forwarded-for", from)];
            get_with(format!("{}/v2/", world.url), &headers).await.status
        };
        let invented = |n: usize| if others == 401 { format!("10.9.9.{n}, 198.51.100.1") } else { format!("198.51.100.{n}") };
        let mut heard = 0;
        for n in 0..40 {
            heard += usize::from(guess(n, &invented(n)).await == 401);
        }
        assert_eq!(heard, 30, "{proxies}");
        assert_eq!(guess(40, "203.0.113.1").await, others, "{proxies}");
    }
}

/// `ATTACKS=20` makes it 100,000.
#[tokio::test]
async fn a_storm_of_wrong_logins_slows_nobody_else_down() {
    let storm = 5_000 * std::env::var("ATTACKS").map_or(1, |times| times.parse::<usize>().unwrap());
    let world = before("", 8, |mirror| mirror.clock(Clock::still())).await;
    let blob = world.image.blob_path(&world.image.layers[0]);
    world.as_user(&blob, "alice", ALICES).await.expect(200);
    let client = Client::h1();
    let known = basic("alice", ALICES);
    let others = || async {
        let mut waited = Vec::new();
        for _ in 0..100 {
            let begun = Instant::now();
            client.get_with(format!("{}{blob}", world.url), &[("authorization", &known)]).await.expect(200);
            waited.push(begun.elapsed());
        }
        waited.sort();
        waited[95]
    };
    let before = others().await;
    let guesser = Client::h1();
    let guesses = async {
        let mut refused = 0;
        for n in 0..storm {
            let guess = basic("bob", &format!("canary-{n}"));
            let answer = guesser.get_with(format!("{}/v2/", world.url), &[("authorization", &guess)]).await;
            assert!(matches!(answer.status, 401 | 429), "{}", answer.status);
            refused += usize::from(answer.status == 429);
        }
        refused
    };
    let (refused, during) = tokio::join!(guesses, others());
    eprintln!("{storm} wrong logins, {refused} of them unheard; others wait {during:?}, {before:?} before");
    assert_eq!(refused, storm - 30);
    assert!(during < before * 5 + Duration::from_millis(100), "{during:?}, {before:?} before");
}
