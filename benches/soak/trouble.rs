//! What goes wrong upstream, all the time and at random.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    rig,
    support::{Fault, Match, noise},
    world::{Dice, World, is_liar},
};

/// Until the world stops; then all is healed.
pub(crate) async fn make(world: Rc<World>) {
    let mut dice = world.dice(1_000);
    while !world.is_stopping() {
        sleep(Duration::from_millis(20 + dice.below(200))).await;
        match dice.below(100) {
            // Rules pile up, and so does what the registry remembers.
            0..3 => heal(&world),
            3..5 => outage(&world, Duration::from_millis(200 + dice.below(2_000))).await,
            5..15 => tags(&world, &mut dice),
            _ => blobs(&world, &mut dice),
        }
    }
    heal(&world);
}

fn heal(world: &World) {
    world.upstream.heal();
    world.upstream.release();
    world.upstream.forget_requests();
}

/// Connections are refused, and those that are open are closed.
async fn outage(world: &World, length: Duration) {
    world.count("outages of the upstream");
    let (dying, rising) = (Arc::clone(&world.upstream), Arc::clone(&world.upstream));
    rig::aside(async move { dying.stop().await }).await;
    sleep(length).await;
    rig::aside(async move { rising.restart().await }).await;
}

fn tags(world: &World, dice: &mut Dice) {
    let path = dice.pick(&world.images).tag_path("latest");
    let fault = match dice.below(4) {
        0 => slowly(),
        1 => Fault::Hang,
        2 => Fault::Latency(Duration::from_millis(dice.below(1_500))),
        _ => Fault::status(*dice.pick(&[500, 502, 503, 504])),
    };
    world.count("faults of manifests");
    world.upstream.on(Match::any(path).times(1 + dice.index(3)), fault);
}

fn blobs(world: &World, dice: &mut Dice) {
    let image = dice.pick_early(&world.images);
    let layer = dice.pick(&image.layers);
    let after = dice.index(layer.bytes.len());
    let fault = match dice.below(12) {
        0 | 1 => Fault::Cut { after },
        2 => Fault::Reset { after },
        3 => Fault::Stall { after },
        4 => Fault::Hang,
        5 => Fault::Latency(Duration::from_millis(dice.below(1_500))),
        6 => Fault::Bandwidth(200_000 + dice.below(4_000_000)),
        7 => Fault::NoLength,
        8 => Fault::IgnoreRange,
        9 => slowly(),
        10 if is_liar(image) => Fault::Corrupt { at: after },
        11 if is_liar(image) => Fault::WrongBody(noise(dice.below(1_000), layer.bytes.len())),
        _ => Fault::status(*dice.pick(&[500, 502, 503, 504])),
    };
    world.count("faults of blobs");
    world.upstream.on(Match::get(&layer.digest).times(1 + dice.index(2)), fault);
}

/// With a word on how long, or larder would keep away for longer than the soak waits at its end.
fn slowly() -> Fault {
    Fault::answer(429, &[("retry-after", "1")], "slowly")
}
