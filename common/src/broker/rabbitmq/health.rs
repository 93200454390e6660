//! How both connections are, told as one.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::broker::Health;

/// One of the two connections: publishing must be able to stand still while acknowledgements go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Publish,
    Consume,
}

impl Side {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
        }
    }
}

/// Keeps the health of each side and tells the worse.
#[derive(Debug)]
pub(super) struct HealthBoard {
    sides: Mutex<[Health; 2]>,
    told: watch::Sender<Health>,
}

impl HealthBoard {
    pub(super) fn new() -> Self {
        let sides = Mutex::new([Health::Connected, Health::Connected]);
        Self { sides, told: watch::Sender::new(Health::Connected) }
    }

    pub(super) fn set(&self, side: Side, health: Health) {
        let mut sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
        if sides[0] == Health::Closed {
            return;
        }
        sides[side as usize] = health;
        let worse = if rank(&sides[0]) >= rank(&sides[1]) { &sides[0] } else { &sides[1] };
        self.tell(worse.clone());
    }

    pub(super) fn close(&self) {
        let mut sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
        *sides = [Health::Closed, Health::Closed];
        self.tell(Health::Closed);
    }

    pub(super) fn watch(&self) -> watch::Receiver<Health> {
        self.told.subscribe()
    }

    fn tell(&self, health: Health) {
        self.told.send_if_modified(|told| {
            let changed = *told != health;
            *told = health;
            changed
        });
    }
}

fn rank(health: &Health) -> u8 {
    match health {
        Health::Connected => 0,
        Health::Blocked(_) => 1,
        Health::Disconnected(_) => 2,
        Health::Closed => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_of_both_sides_is_told() {
        let board = HealthBoard::new();
        let told = board.watch();
        board.set(Side::Publish, Health::Blocked("memory".into()));
        assert_eq!(*told.borrow(), Health::Blocked("memory".into()));
        board.set(Side::Consume, Health::Disconnected("gone".into()));
        assert_eq!(*told.borrow(), Health::Disconnected("gone".into()));
        board.set(Side::Consume, Health::Connected);
        board.set(Side::Publish, Health::Connected);
        assert_eq!(*told.borrow(), Health::Connected);
        board.close();
        assert_eq!(*told.borrow(), Health::Closed);
    }
}
