//! Writes training metrics to a Headrace gateway, exactly once, reads them back as
//! columns, and moves artifacts.
//!
//! ```no_run
//! # async fn example() -> Result<(), headrace::Error> {
//! use headrace::{Client, RunOptions, WriterOptions};
//! use std::time::Duration;
//!
//! let client = Client::connect("127.0.0.1:7420")?;
//! let run = client.create_run(RunOptions::default()).await?;
//! let writer = client.open_writer(WriterOptions::new(&run.run_id))?;
//! for step in 0..100 {
//!     writer.log(step, [("loss", 0.5), ("accuracy", 0.9)]).await?;
//! }
//! writer.finish(Duration::from_secs(30)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Writer::log`] does not wait for the gateway: a task of the writer batches,
//! sends, and, when the connection or the gateway is gone, tries again for as long
//! as the writer lives. What [`Writer::flush`] and [`Writer::finish`] have
//! confirmed is committed.
//!
//! Everything runs on the tokio runtime in which [`Client::open_writer`] is called.

mod artifacts;
mod backlog;
mod backoff;
mod client;
mod error;
mod reading;
mod stream;
mod writer;

/// The generated code of the contract, for what this library does not cover.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod v1;

pub use artifacts::{Artifact, ArtifactEntry, ListArtifactsOptions};
pub use client::{Client, ConnectOptions, DEFAULT_ADDRESS, RunOptions, new_id};
pub use error::{Error, Failure, Reason};
pub use reading::{Columns, ReadOptions};
pub use v1::{Attempt, LatePolicy, RankAggregation, Run, RunState, Series, StepPolicy};
pub use writer::{Counters, Rejection, Status, WhenFull, Writer, WriterOptions};
