//! Being alone in a process: a chunk suspected of ending its process is run while nothing else is in there.
//!
//! Every stage's intake is in [`Company`] as long as it takes deliveries. Whoever has something to run alone becomes a
//! [`Seeker`]; all others see that, bring what they have to its end, and leave until the seeker is done.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};

/// What the consumers of one process share, so that a chunk can be alone in it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Solitude(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    room: Arc<RwLock<()>>,
    seekers: watch::Sender<usize>,
}

/// The right to hold deliveries beside others.
#[derive(Debug)]
pub(crate) struct Company {
    _room: OwnedRwLockReadGuard<()>,
}

/// The right to hold a delivery while nobody else in the process holds one.
#[derive(Debug)]
pub(crate) struct Alone {
    _room: OwnedRwLockWriteGuard<()>,
    _seeker: Seeker,
}

/// Somebody who wants to be alone, until dropped.
#[derive(Debug)]
pub(crate) struct Seeker(Arc<Shared>);

impl Solitude {
    /// Joins the others; waits while somebody is alone or wants to be.
    pub(crate) async fn company(&self) -> Company {
        // The sender lives as long as we do.
        drop(self.0.seekers.subscribe().wait_for(|seekers| *seekers == 0).await);
        Company { _room: Arc::clone(&self.0.room).read_owned().await }
    }

    /// Whether somebody wants to be alone.
    pub(crate) fn is_sought(&self) -> bool {
        *self.0.seekers.borrow() > 0
    }

    /// Waits until somebody wants to be alone.
    pub(crate) async fn sought(&self) {
        drop(self.0.seekers.subscribe().wait_for(|seekers| *seekers > 0).await);
    }

    /// Tells the others to leave.
    pub(crate) fn seek(&self) -> Seeker {
        self.0.seekers.send_modify(|seekers| *seekers += 1);
        Seeker(Arc::clone(&self.0))
    }
}

impl Seeker {
    /// Waits until all others have left. Whoever calls this must be in no company.
    pub(crate) async fn alone(self) -> Alone {
        Alone { _room: Arc::clone(&self.0.room).write_owned().await, _seeker: self }
    }
}

impl Drop for Seeker {
    fn drop(&mut self) {
        self.0.seekers.send_modify(|seekers| *seekers -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::pin;

    use super::*;

    #[tokio::test]
    async fn whoever_seeks_solitude_has_it_once_all_have_left_and_keeps_others_out() {
        let solitude = Solitude::default();
        let (first, second) = (solitude.company().await, solitude.company().await);
        assert!(!solitude.is_sought());
        let seeker = solitude.seek();
        solitude.sought().await;
        let (alone, company) = (seeker.alone(), solitude.company());
        pin!(alone, company);
        assert!(poll!(company.as_mut()).is_pending(), "nobody joins whom somebody wants to leave");
        drop(first);
        assert!(poll!(alone.as_mut()).is_pending());
        drop(second);
        let alone = alone.await;
        assert!(poll!(company.as_mut()).is_pending(), "somebody is alone");
        drop(alone);
        drop(company.await);
        assert!(!solitude.is_sought());
    }
}
