//! The writer as its user sees it: log, flush, finish.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::backlog::{Backlog, RECORD_POINTS_MAX};
use crate::client::{new_id, unix_us};
use crate::error::{Failure, Reason};
use crate::stream;
use crate::v1::OpenWriter;
use crate::{Client, Error};

const KEY_CHARACTERS_MAX: usize = 250;
const KEYS_MAX: usize = 100_000;

/// What `log` does when the window is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Waits until the gateway has acknowledged enough.
    #[default]
    Block,
    /// Fails with [`Error::WindowFull`]; the record is not logged.
    Error,
}

/// Is told of rejected points; see [`WriterOptions::on_rejection`].
pub type OnRejection = Arc<dyn Fn(Rejection) + Send + Sync>;

/// A writer to be opened; [`WriterOptions::new`] has the defaults.
#[derive(Clone)]
pub struct WriterOptions {
    /// The run to write to.
    pub run_id: String,
    /// Names the writer, with `incarnation`: 32 lower-case hex digits each. A process
    /// that is to continue another one's writer gives the same two, and logs the same
    /// records again from the first on: those that are committed already are not sent.
    /// Default: new ones.
    pub writer_id: String,
    /// See `writer_id`.
    pub incarnation: String,
    /// Of the process in its job, from 0.
    pub rank: i32,
    /// Which start of the job this is, from 1.
    pub attempt: i32,
    /// The first step this attempt computes anew; `None` hides nothing.
    pub resume_step: Option<i64>,
    /// Keys that no resume step hides.
    pub resume_exempt_keys: Vec<String>,
    /// Points in a batch; default 4,096, at most 8,192.
    pub batch_points_max: usize,
    /// How long a record waits for company; default 50 ms.
    pub linger: Duration,
    /// Points logged and not acknowledged; default 1,048,576.
    pub window_points: usize,
    /// What happens when there are more.
    pub when_full: WhenFull,
    /// Is told of points that the gateway rejected for their content. One call at a
    /// time, by the writer's task, which waits for it: it must not block.
    pub on_rejection: Option<OnRejection>,
}

impl WriterOptions {
    /// The defaults, for this run.
    pub fn new(run_id: impl Into<String>) -> Self {
        Self {
            run_id: run_id.into(),
            writer_id: new_id(),
            incarnation: new_id(),
            rank: 0,
            attempt: 1,
            resume_step: None,
            resume_exempt_keys: Vec::new(),
            batch_points_max: 4_096,
            linger: Duration::from_millis(50),
            window_points: 1 << 20,
            when_full: WhenFull::Block,
            on_rejection: None,
        }
    }
}

/// A sample of rejected points; the other points of their records are stored.
#[derive(Clone, Debug)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// The key, or its index in decimal when it has none.
    pub key: String,
    /// Of the first such point.
    pub step: i64,
    /// The record with the point ends at or before it.
    pub sequence: u64,
    /// The offending field.
    pub field: String,
    /// For people.
    pub detail: String,
    /// How many points this stands for.
    pub points: u64,
}

/// Counts of the writer, since its first stream.
pub use crate::v1::WriterCounters as Counters;

/// How far a writer has come.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The last record logged.
    pub logged_sequence: u64,
    /// Every record up to it is durable.
    pub committed_sequence: u64,
    /// Logged and not acknowledged.
    pub pending_points: usize,
    /// As last told by the gateway.
    pub counters: Counters,
    /// Whether the gateway has noted the writer's end.
    pub finished: bool,
    /// Streams opened so far.
    pub streams: u32,
    /// How often the gateway asked to move.
    pub reconnects: u32,
    /// Why the writer gave up.
    pub failure: Option<Box<Failure>>,
}

/// Logs records of one process into one run. Made by [`Client::open_writer`];
/// dropping it drops what is not acknowledged.
pub struct Writer {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What the writer and its task share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) options: WriterOptions,
    /// Wakes the task.
    pub(crate) wake: Notify,
    /// Wakes all who wait for progress.
    changed: Notify,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) backlog: Backlog,
    keys: HashMap<Box<str>, u32>,
    /// By index.
    pub(crate) names: Vec<Box<str>>,
    /// Points without an index, of which the callback is not told yet.
    refused: Option<Rejection>,
    /// Records up to it do not linger.
    pub(crate) flush_to: u64,
    pub(crate) finishing: bool,
    closed: bool,
    pub(crate) status: Status,
}

impl Client {
    /// Makes a writer. Does not wait for the gateway: failures are reported by `log`,
    /// `flush` and `finish`. Must be called in a tokio runtime.
    pub fn open_writer(&self, options: WriterOptions) -> Result<Writer, Error> {
        if options.run_id.is_empty() {
            return Err(Error::Configuration("run_id is required".into()));
        }
        if !(1..=RECORD_POINTS_MAX).contains(&options.batch_points_max) {
            return Err(Error::Configuration("batch_points_max must be 1 to 8,192".into()));
        }
        let shared = Arc::new(Shared {
            client: self.clone(),
            wake: Notify::new(),
            changed: Notify::new(),
            state: Mutex::new(State {
                backlog: Backlog::new(options.batch_points_max),
                keys: HashMap::new(),
                names: Vec::new(),
                refused: None,
                flush_to: 0,
                finishing: false,
                closed: false,
                status: Status::default(),
            }),
            options,
        });
        let task = tokio::spawn(stream::run(Arc::clone(&shared)));
        Ok(Writer { shared, task })
    }
}

impl Writer {
    /// Logs one record: values at a step, now. Steps may come in any order, and again.
    /// Returns at once, unless the window is full and `when_full` is `Block`.
    ///
    /// Fails with [`Error::WindowFull`], [`Error::WriterClosed`], or the failure for
    /// which the writer gave up; the record is then not logged.
    pub async fn log<K, I>(&self, step: i64, values: I) -> Result<(), Error>
    where
        K: AsRef<str>,
        I: IntoIterator<Item = (K, f64), IntoIter: ExactSizeIterator>,
    {
        self.log_at(step, unix_us() as i64, values).await
    }

    /// [`Writer::log`] at a time of the caller's, in microseconds since 1970-01-01 UTC.
    pub async fn log_at<K, I>(&self, step: i64, time_unix_us: i64, values: I) -> Result<(), Error>
    where
        K: AsRef<str>,
        I: IntoIterator<Item = (K, f64), IntoIter: ExactSizeIterator>,
    {
        let values = values.into_iter();
        loop {
            let changed = self.shared.changed.notified();
            {
                let mut state = self.shared.lock();
                match self.shared.admit(&state, values.len()) {
                    Err(Error::WindowFull) if self.shared.options.when_full == WhenFull::Block => {}
                    Err(error) => return Err(error),
                    Ok(()) => {
                        self.shared.append(&mut state, step, time_unix_us, values);
                        return Ok(());
                    }
                }
            }
            changed.await;
        }
    }

    /// [`Writer::log`] for code that is not async: never waits, fails with
    /// [`Error::WindowFull`] instead.
    pub fn try_log<K, I>(&self, step: i64, values: I) -> Result<(), Error>
    where
        K: AsRef<str>,
        I: IntoIterator<Item = (K, f64), IntoIter: ExactSizeIterator>,
    {
        let values = values.into_iter();
        let mut state = self.shared.lock();
        self.shared.admit(&state, values.len())?;
        self.shared.append(&mut state, step, unix_us() as i64, values);
        Ok(())
    }

    /// Waits until everything logged before is committed.
    ///
    /// Fails with [`Error::DeadlineExceeded`], or the failure for which the writer
    /// gave up.
    pub async fn flush(&self, deadline: Duration) -> Result<(), Error> {
        let target = {
            let mut state = self.shared.lock();
            state.flush_to = state.flush_to.max(state.backlog.last_sequence);
            state.backlog.last_sequence
        };
        self.shared.wake.notify_one();
        self.wait(deadline, |status| status.committed_sequence >= target).await
    }

    /// Waits until everything is committed and the gateway has noted that the writer
    /// ends. `log` fails from the call on. When the deadline passes first, the writer
    /// goes on in the background; `finish` may be called again.
    pub async fn finish(&self, deadline: Duration) -> Result<(), Error> {
        self.shared.lock().finishing = true;
        self.shared.wake.notify_one();
        self.wait(deadline, |status| status.finished).await
    }

    /// Drops the writer without finishing it. What is not acknowledged is lost to this
    /// process; a later writer with the same ids continues. Idempotent.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.task.abort();
        self.shared.changed.notify_waiters();
    }

    /// Tells how far the writer has come.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.shared.lock();
        let mut status = state.status.clone();
        status.logged_sequence = state.backlog.last_sequence;
        status.pending_points = state.backlog.points;
        status
    }

    async fn wait(
        &self,
        deadline: Duration,
        reached: impl Fn(&Status) -> bool,
    ) -> Result<(), Error> {
        let waiting = async {
            loop {
                let changed = self.shared.changed.notified();
                {
                    let state = self.shared.lock();
                    if let Some(failure) = &state.status.failure {
                        return Err(Error::Gateway(failure.clone()));
                    }
                    if reached(&state.status) {
                        return Ok(());
                    }
                    if state.closed {
                        return Err(Error::WriterClosed);
                    }
                }
                changed.await;
            }
        };
        tokio::time::timeout(deadline, waiting).await.unwrap_or(Err(Error::DeadlineExceeded))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// The state; a panic elsewhere leaves it as it was between two records.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn announce(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn open_message(&self) -> OpenWriter {
        OpenWriter {
            run_id: self.options.run_id.clone(),
            writer_id: self.options.writer_id.clone(),
            incarnation: self.options.incarnation.clone(),
            rank: self.options.rank,
            attempt: self.options.attempt,
            resume_step: self.options.resume_step,
            resume_exempt_keys: self.options.resume_exempt_keys.clone(),
        }
    }

    fn admit(&self, state: &State, points: usize) -> Result<(), Error> {
        if let Some(failure) = &state.status.failure {
            return Err(Error::Gateway(failure.clone()));
        }
        if state.closed || state.finishing {
            return Err(Error::WriterClosed);
        }
        let pending = state.backlog.points;
        if pending > 0 && pending + points > self.options.window_points {
            return Err(Error::WindowFull);
        }
        Ok(())
    }

    fn append<K: AsRef<str>>(
        &self,
        state: &mut State,
        step: i64,
        time_unix_us: i64,
        values: impl ExactSizeIterator<Item = (K, f64)>,
    ) {
        let State { backlog, keys, names, refused, status, .. } = state;
        let mut rest = values.len();
        let mut left = 0; // points that the record still takes
        let mut ready = false;
        for (key, value) in values {
            if left == 0 {
                left = rest.min(RECORD_POINTS_MAX);
                ready |= backlog.begin(left).is_empty();
            }
            let block = backlog.current();
            let key = key.as_ref();
            let index = keys.get(key).copied().or_else(|| define(keys, names, key));
            if let Some(index) = index {
                block.push(index, step, time_unix_us, value);
            } else {
                let told = refused.get_or_insert_with(|| exhausted(key, step));
                told.points += 1;
                told.sequence = backlog.last_sequence + 1;
                ready = true;
            }
            rest -= 1;
            left -= 1;
            if left == 0 {
                ready |= backlog.end();
            }
        }
        if backlog.last_sequence <= status.committed_sequence {
            backlog.forget(status.committed_sequence); // logged by a predecessor
        }
        if ready {
            self.wake.notify_one();
        }
    }

    /// Delivers what the client itself has refused. The task does so before it sends the
    /// records in question, so that `flush` returns after it.
    pub(crate) fn tell_refused(&self) {
        let refused = self.lock().refused.take();
        if let (Some(refused), Some(told)) = (refused, &self.options.on_rejection) {
            told(refused);
        }
    }
}

fn exhausted(key: &str, step: i64) -> Rejection {
    Rejection {
        reason: Reason::KeysExhausted,
        key: key.to_owned(),
        step,
        sequence: 0,
        field: "keys".into(),
        detail: format!("a writer has at most {KEYS_MAX} keys"),
        points: 0,
    }
}

/// The index of a key that is new, or not as it is sent; `None` when there is none
/// left. A key that is too long is cut to what is still too long, but fits a message:
/// the gateway judges it.
fn define(keys: &mut HashMap<Box<str>, u32>, names: &mut Vec<Box<str>>, key: &str) -> Option<u32> {
    let sent = match key.char_indices().nth(KEY_CHARACTERS_MAX + 1) {
        Some((end, _)) => &key[..end],
        None => key,
    };
    if let Some(index) = keys.get(sent) {
        return Some(*index);
    }
    if names.len() == KEYS_MAX {
        return None;
    }
    let index = names.len() as u32;
    keys.insert(sent.into(), index);
    names.push(sent.into());
    Some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn points_of_keys_beyond_the_last_are_told_of_before_they_are_sent_and_not_by_log() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        let mut options = WriterOptions::new(new_id());
        options.on_rejection = Some(Arc::new(move |one| telling.lock().unwrap().push(one)));
        let writer = Client::connect("127.0.0.1:1").unwrap().open_writer(options).unwrap();
        {
            let State { keys, names, .. } = &mut *writer.shared.lock();
            for index in 0..KEYS_MAX {
                define(keys, names, &index.to_string()).unwrap();
            }
        }
        for step in 0..2 {
            writer.try_log(step, [("0", 1.0), ("one more", 2.0)]).unwrap();
        }
        assert!(told.lock().unwrap().is_empty());
        writer.shared.tell_refused();
        writer.shared.tell_refused();
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].reason, Reason::KeysExhausted);
        let sample = (told[0].key.as_str(), told[0].step, told[0].sequence, told[0].points);
        assert_eq!(sample, ("one more", 0, 2, 2));
    }
}
