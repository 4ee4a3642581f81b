//! Core 0's part in spreading regions over the cores: by number at once, by load after a while, one move at a time.
//!
//! What the cores have to do is asked once a beat; [`Spread`](crate::core::spread::Spread) decides. What it wishes waits
//! for the move that is under way.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use base::{CoreId, ShardId};
use futures_util::FutureExt as _;

use super::core_zero::CoreZero;
use crate::core::directory::MoveTicket;
use crate::core::spread::{Spread, SpreadConfig, Wish};
use crate::core::{Control, RegionWork, reply};
use crate::engine::Engine;

/// How often the number of regions is looked at when nobody asks for it.
const BALANCE_PERIOD: Duration = Duration::from_secs(1);
/// A move of a node whose regions have members elsewhere is put off for up to so long, by chance.
const STAGGER_MS: u64 = 500;
/// The wait after a move that did not come about.
const FAILED_PAUSE: Duration = Duration::from_millis(100);

/// What is known of load, and what was done about it.
#[derive(Default)]
pub(super) struct Balancing {
    spread: RefCell<Spread>,
    wish: Cell<Option<Wish>>,
    /// Moves that were carried out because of load, and because of number.
    by_load_total: Cell<u64>,
    by_number_total: Cell<u64>,
}

impl Balancing {
    /// The shards that take part in moves, with their cores.
    pub(super) fn begin(&self, config: SpreadConfig, homes: impl IntoIterator<Item = (ShardId, CoreId)>) {
        *self.spread.borrow_mut() = Spread::new(config, homes);
    }

    pub(super) fn metrics_text(&self, out: &mut String) {
        for (why, counter) in [("load", &self.by_load_total), ("number", &self.by_number_total)] {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "basalt_region_moves_total{{core=\"0\",why=\"{why}\"}} {}", counter.get());
        }
    }
}

impl<E: Engine> CoreZero<E> {
    /// The move that is wished for because of load, else the next one that evens out numbers; and whether it is the first.
    fn next_move(&self) -> Option<(MoveTicket, bool)> {
        let mut directory = self.directory.borrow_mut();
        let wish = self.balancing.wish.take().filter(|wish| !self.is_pinned(wish.region));
        if let Some(ticket) = wish.and_then(|wish| directory.reserve(wish.region, wish.target)) {
            return Some((ticket, true));
        }
        let (spread, now) = (self.balancing.spread.borrow(), executor::now());
        let ticket = directory.next_balancing_move(|region, target| {
            if self.is_pinned(region) { None } else { spread.price(now, region, target) }
        });
        Some((ticket?, false))
    }

    /// Waits for a while of this node's own, if the region may have members elsewhere; nothing if it does not move then.
    ///
    /// A split makes all nodes of a region want the same move at the same moment, and a peer is deaf while it moves: so that
    /// they do not all do it at once, and leave the region without a quorum, each waits for a while of its own.
    async fn put_off(&self, ticket: MoveTicket) -> Option<MoveTicket> {
        if !self.replicates.get() {
            return Some(ticket);
        }
        self.directory.borrow_mut().release(&ticket);
        let store = self.host().map_or(0, |host| host.node.store.0);
        let draw = base::hash::fold(store, executor::with_rng(base::Prng::next_u64));
        executor::sleep(Duration::from_millis(draw % STAGGER_MS)).await;
        // It may have been moved, merged or removed meanwhile.
        if self.is_pinned(ticket.region) {
            return None;
        }
        self.directory.borrow_mut().reserve(ticket.region, ticket.target)
    }

    /// What all regions have cost since the last call; nothing if the node is closing.
    async fn take_work(&self) -> Option<Vec<RegionWork>> {
        let host = self.host().ok()?;
        let ask = |core| {
            let (reply, answer) = reply();
            host.control(CoreId(core), Control::TakeWork { reply });
            answer
        };
        let answers: Vec<_> = (0..host.node.mail.len()).map(|core| ask(core as u16)).collect();
        let mut counted = Vec::new();
        for answer in answers {
            counted.extend(answer.wait().await?);
        }
        Some(counted)
    }

    fn look_at_load(&self, counted: &[RegionWork]) {
        let may_move = |region| !self.is_pinned(region) && !self.directory.borrow().is_moving(region);
        let wish = self.balancing.spread.borrow_mut().beat(executor::now(), counted, may_move);
        if let Some(wish) = wish {
            tracing::info!(
                region = wish.region.0,
                shard = wish.target.0,
                "a region is to leave a core that has too much"
            );
            self.balancing.wish.set(Some(wish));
            self.wake_balancer.notify();
        }
    }
}

/// Asks the cores what they have to do, once a beat; never if that is zero, or if there is only one core.
pub(super) async fn watch_load<E: Engine>(zero: Rc<CoreZero<E>>, beat: Duration) {
    let cores = zero.host().map_or(0, |host| host.node.mail.len());
    if beat.is_zero() || cores < 2 {
        return;
    }
    loop {
        executor::sleep(beat).await;
        let Some(counted) = zero.take_work().await else { return };
        zero.look_at_load(&counted);
    }
}

/// Carries out moves, one at a time.
pub(super) async fn carry_out_moves<E: Engine>(zero: Rc<CoreZero<E>>) {
    loop {
        let Some((ticket, is_for_load)) = zero.next_move() else {
            futures_util::select_biased! {
                () = zero.wake_balancer.notified().fuse() => {}
                () = executor::sleep(BALANCE_PERIOD).fuse() => {}
            }
            continue;
        };
        let Some(ticket) = zero.put_off(ticket).await else { continue };
        match zero.carry_out(&ticket, false).await {
            Some(Ok(())) => {
                tracing::debug!(?ticket, is_for_load, "region moved");
                let balancing = &zero.balancing;
                let counter = if is_for_load { &balancing.by_load_total } else { &balancing.by_number_total };
                counter.set(counter.get() + 1);
                balancing.spread.borrow_mut().moves(executor::now(), ticket.region);
            }
            Some(Err(error)) => {
                tracing::debug!(?ticket, %error, "region stays");
                zero.balancing.spread.borrow_mut().stays(executor::now(), ticket.region);
                executor::sleep(FAILED_PAUSE).await;
            }
            None => return,
        }
    }
}
