//! What to do while the disk is full: say so once, and try again each second. Whatever is not written is not
//! sent either, so nothing is lost by waiting.

use std::io;
use std::thread;
use std::time::Duration;

use crate::error::ProducerError;

/// The pause between tries.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// Whether writing has been failing for want of space.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    is_told: bool,
}

impl Trouble {
    /// The result, or none when it is worth trying again: the disk is full, which a person may change.
    pub(crate) fn sift<T>(&mut self, result: Result<T, ProducerError>) -> Option<Result<T, ProducerError>> {
        match &result {
            Err(ProducerError::State { path, error }) if is_full(error) => {
                if !std::mem::replace(&mut self.is_told, true) {
                    tracing::error!(
                        "{} cannot be written: {error}; free space there: nothing is lost, and the run then goes on",
                        path.display()
                    );
                }
                None
            }
            _ => {
                if std::mem::take(&mut self.is_told) {
                    tracing::info!("writing goes on");
                }
                Some(result)
            }
        }
    }
}

/// Does `act` until the disk is not too full for it, or until it `is_wanted` no more. For threads that may wait.
pub(crate) fn insist<T>(
    is_wanted: impl Fn() -> bool,
    mut act: impl FnMut() -> Result<T, ProducerError>,
) -> Result<T, ProducerError> {
    let mut trouble = Trouble::default();
    loop {
        let result = act();
        if !is_wanted() {
            return result;
        }
        match trouble.sift(result) {
            Some(result) => return result,
            None => thread::sleep(PAUSE),
        }
    }
}

/// Whether freeing space would help.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn fails_with(kind: io::ErrorKind) -> Result<(), ProducerError> {
        Err(ProducerError::state(Path::new("journal"))(kind.into()))
    }

    #[test]
    fn a_full_disk_is_waited_for_and_nothing_else_is() {
        let mut tries = 0;
        let done = insist(
            || true,
            || {
                tries += 1;
                if tries == 1 { fails_with(io::ErrorKind::StorageFull) } else { Ok(()) }
            },
        );
        assert!(done.is_ok() && tries == 2);
        assert!(insist(|| true, || fails_with(io::ErrorKind::PermissionDenied)).is_err());
    }

    #[test]
    fn nobody_waits_for_what_is_not_wanted_any_more() {
        assert!(insist(|| false, || fails_with(io::ErrorKind::StorageFull)).is_err());
    }
}
