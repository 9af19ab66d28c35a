//! How long to wait before the next attempt.

use std::time::Duration;

use crate::error::{Failure, Retry};

const FIRST: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(5);
/// So many failures in a row that resuming should have cured, without progress, are
/// a defect that no further attempt will cure.
const RESUMES_MAX: u32 = 5;

#[derive(Default)]
pub(crate) struct Backoff {
    failures: u32,
    resumes: u32,
}

impl Backoff {
    /// Forgets the failures.
    pub(crate) fn progress(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn failed_before(&self) -> bool {
        self.failures > 0
    }

    /// Counts a failure and returns the wait; `None` when there is to be no further
    /// attempt. Half of the wait is random, so that those who failed together do not
    /// return together.
    pub(crate) fn next(&mut self, failure: &Failure) -> Option<Duration> {
        match failure.retry() {
            Retry::Never => return None,
            Retry::Resume => {
                self.resumes += 1;
                if self.resumes > RESUMES_MAX {
                    return None;
                }
            }
            Retry::Later => {}
        }
        let wait = (FIRST * 2u32.pow(self.failures.min(10))).min(MAX);
        self.failures += 1;
        Some(wait.mul_f64(rand::random_range(0.5..=1.0)).max(failure.retry_after))
    }
}
