//! What can fail, and what the contract says to do then.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt;

/// Why a call failed or a point was rejected; documented at `ErrorReason` in
/// `protos/headrace/v1/error_reason.proto`.
pub use crate::v1::ErrorReason as Reason;

/// A failure of this library.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The gateway said no, or it was not reached.
    Gateway(Box<Failure>),
    /// `log` found the window full, and was told to fail then. Not logged.
    WindowFull,
    /// The writer was finished or closed by its user.
    WriterClosed,
    /// `flush` or `finish` did not get its acknowledgement in time; the writer goes on.
    DeadlineExceeded,
    /// An option has no possible value.
    Configuration(String),
    /// A local file.
    File(Arc<std::io::Error>),
}

/// A failed call.
#[derive(Clone, Debug)]
pub struct Failure {
    /// `Unspecified` when the failure carried none that this version knows.
    pub reason: Reason,
    /// The gRPC status.
    pub code: Code,
    /// For people.
    pub message: String,
    /// The offending `field`, `value` and `limit`, where they apply.
    pub metadata: HashMap<String, String>,
    pub(crate) retry_after: Duration,
}

impl Failure {
    /// The reason as the contract spells it without prefix, for example
    /// `RUN_NOT_FOUND`; empty when there is none.
    #[must_use]
    pub fn reason_name(&self) -> &'static str {
        match self.reason {
            Reason::Unspecified => "",
            reason => reason.as_str_name().trim_start_matches("ERROR_REASON_"),
        }
    }

    pub(crate) fn new(reason: Reason, code: Code, message: impl Into<String>) -> Self {
        Self {
            reason,
            code,
            message: message.into(),
            metadata: HashMap::new(),
            retry_after: Duration::ZERO,
        }
    }

    pub(crate) fn retry(&self) -> Retry {
        use Reason as R;
        match self.reason {
            R::SequenceGap
            | R::UnknownKeyIndex
            | R::TransferStalled
            | R::DigestMismatch
            | R::UploadNotFound
            | R::UploadIncomplete => Retry::Resume,
            R::Overloaded
            | R::StoreUnavailable
            | R::Draining
            | R::Internal
            | R::BlobStoreUnavailable => Retry::Later,
            R::Unspecified => match self.code {
                Code::Unavailable
                | Code::Unknown
                | Code::Internal
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Aborted
                | Code::Ok => Retry::Later,
                _ => Retry::Never,
            },
            _ => Retry::Never,
        }
    }
}

/// What a client does after a failure.
pub(crate) enum Retry {
    /// The same fails again.
    Never,
    /// Reopen and continue; a defect if it recurs without progress.
    Resume,
    /// Resume after a wait.
    Later,
}

impl Error {
    /// The reason, when the gateway gave one.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Gateway(failure) if failure.reason != Reason::Unspecified => Some(failure.reason),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(failure) if failure.reason == Reason::Unspecified => {
                write!(formatter, "{:?}: {}", failure.code, failure.message)
            }
            Self::Gateway(failure) => {
                write!(formatter, "{}: {}", failure.reason_name(), failure.message)
            }
            Self::WindowFull => formatter.write_str("the window of unacknowledged points is full"),
            Self::WriterClosed => formatter.write_str("the writer is closed"),
            Self::DeadlineExceeded => formatter.write_str("not acknowledged in time"),
            Self::Configuration(problem) => formatter.write_str(problem),
            Self::File(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for Error {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Gateway(Box::new(failure))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::File(Arc::new(error))
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Failure::from(status).into()
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let details = status.get_error_details();
        let mut failure = Self::new(Reason::Unspecified, status.code(), status.message());
        if let Some(info) = details.error_info() {
            failure.reason = Reason::from_str_name(&format!("ERROR_REASON_{}", info.reason))
                .unwrap_or(Reason::Unspecified);
            failure.metadata.clone_from(&info.metadata);
        }
        failure.retry_after =
            details.retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        failure
    }
}
