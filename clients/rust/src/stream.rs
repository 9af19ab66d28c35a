//! The writer's task: one conversation with the gateway after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::backoff::Backoff;
use crate::error::{Failure, Reason};
use crate::v1::write_metrics_request::Message as Ask;
use crate::v1::write_metrics_response::Message as Answer;
use crate::v1::{
    DefineKeys, FinishWriter, Heartbeat, KeyDefinition, Opened, Rejection as Sample, Resync,
    WriteMetricsRequest, WriteMetricsResponse, WriterCounters,
};
use crate::writer::{Rejection, Shared};

const HEARTBEAT_DEFAULT_MS: u32 = 15_000;
/// 500 keys of 251 characters of 4 bytes stay below the message limit of 1 MiB.
const KEYS_PER_MESSAGE: usize = 500;
/// Messages between the writer and the transport, of at most 230 kB each.
const MESSAGES_IN_FLIGHT: usize = 4;
const NOT_MOVING: i64 = -1;

/// How a conversation ended.
enum Ending {
    /// The gateway asked to move, after so long.
    Moved(Duration),
    Failed(Failure),
}

/// Opens one stream after the other until the writer is finished or has failed.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut retries = Backoff::default();
    loop {
        let before = shared.lock().status.committed_sequence;
        let ending = converse(&shared).await;
        {
            let state = shared.lock();
            if state.status.finished {
                return;
            }
            if state.status.committed_sequence > before {
                retries.progress();
            }
        }
        let wait = match ending {
            Ending::Moved(wait) => wait,
            Ending::Failed(failure) => {
                let Some(wait) = retries.next(&failure) else {
                    shared.lock().status.failure = Some(Box::new(failure));
                    shared.announce();
                    return;
                };
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Holds one conversation, from `open` to its end.
async fn converse(shared: &Shared) -> Ending {
    match try_converse(shared).await {
        Ok(ending) => ending,
        Err(status) => Ending::Failed(status.into()),
    }
}

async fn try_converse(shared: &Shared) -> Result<Ending, Status> {
    let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
    let _ = sender.send(request(Ask::Open(shared.open_message()))).await;
    let call = shared.client.streaming(ReceiverStream::new(receiver));
    let mut answers = shared.client.metrics().write_metrics(call).await?.into_inner();
    let Some(Answer::Opened(opened)) = answers.message().await?.and_then(|first| first.message)
    else {
        return Err(Status::unimplemented("expected `opened`"));
    };
    let (next, resync) = take_opened(shared, &opened);
    if resync {
        let _ = sender.send(request(Ask::Resync(Resync { first_sequence: next }))).await;
    }
    let interval_ms = match opened.limits.map_or(0, |limits| limits.heartbeat_interval_ms) {
        0 => HEARTBEAT_DEFAULT_MS,
        told => told,
    };
    let heartbeat = Duration::from_millis(u64::from(interval_ms)) * 2 / 3;
    let move_after_ms = AtomicI64::new(NOT_MOVING);
    // Answers are read while requests are blocked, or neither side could proceed.
    let receiving = receive(shared, &mut answers, &move_after_ms);
    let sending = send(shared, sender, next, heartbeat, &move_after_ms);
    tokio::pin!(receiving, sending);
    let end = tokio::select! {
        end = &mut receiving => end,
        () = &mut sending => receiving.await,
    };
    match (move_after_ms.load(Ordering::Relaxed), end) {
        (NOT_MOVING, Ok(())) => Ok(Ending::Failed(Failure::new(
            Reason::Unspecified,
            Code::Ok,
            "the stream ended before the writer finished",
        ))),
        (NOT_MOVING, Err(status)) => Err(status),
        (limit_ms, _) => Ok(Ending::Moved(
            Duration::from_millis(limit_ms.unsigned_abs()).mul_f64(rand::random_range(0.0..=1.0)),
        )),
    }
}

/// Reads answers to the end of the stream.
async fn receive(
    shared: &Shared,
    answers: &mut Streaming<WriteMetricsResponse>,
    move_after_ms: &AtomicI64,
) -> Result<(), Status> {
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(Answer::Ack(ack)) => {
                progress(shared, ack.committed_sequence, ack.counters, ack.rejections);
            }
            Some(Answer::Finished(finished)) => {
                progress(shared, finished.committed_sequence, finished.counters, Vec::new());
                shared.lock().status.finished = true;
                shared.announce();
            }
            Some(Answer::Reconnect(reconnect)) => {
                shared.lock().status.reconnects += 1;
                move_after_ms.store(i64::from(reconnect.retry_after_ms), Ordering::Relaxed);
                shared.wake.notify_one();
            }
            Some(Answer::Opened(_)) | None => {}
        }
    }
    Ok(())
}

/// Sends keys and batches from record `next` on, until there is nothing more to send
/// on this stream, or nobody takes it.
async fn send(
    shared: &Shared,
    sender: mpsc::Sender<WriteMetricsRequest>,
    mut next: u64,
    heartbeat: Duration,
    move_after_ms: &AtomicI64,
) {
    let mut keys_sent = 0;
    let mut quiet_since = Instant::now();
    while move_after_ms.load(Ordering::Relaxed) == NOT_MOVING {
        let (names, step) = next_message(shared, next, keys_sent);
        shared.tell_refused();
        for message in define_keys(&names, keys_sent) {
            if sender.send(request(message)).await.is_err() {
                return;
            }
        }
        keys_sent += names.len();
        let wait = match step {
            Next::Send(message) => {
                let last = matches!(message, Ask::Finish(_));
                if let Ask::Batch(batch) = &message {
                    next = batch.first_sequence + u64::from(batch.record_count);
                }
                if sender.send(request(message)).await.is_err() || last {
                    return;
                }
                quiet_since = Instant::now();
                continue;
            }
            Next::Wait(wait) => wait,
        };
        if quiet_since.elapsed() >= heartbeat {
            if sender.send(request(Ask::Heartbeat(Heartbeat {}))).await.is_err() {
                return;
            }
            quiet_since = Instant::now();
        }
        let wait = wait.min(heartbeat.saturating_sub(quiet_since.elapsed()));
        tokio::select! {
            () = shared.wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

enum Next {
    Send(Ask),
    Wait(Duration),
}

/// Decides what to send: a batch that begins with the record `next`, after the names
/// of new keys, or `finish`, or nothing for a while.
fn next_message(shared: &Shared, next: u64, keys_sent: usize) -> (Vec<Box<str>>, Next) {
    let mut state = shared.lock();
    let state = &mut *state;
    let committed = state.status.committed_sequence;
    let next = next.max(committed + 1);
    let last_sequence = state.backlog.last_sequence;
    let Some(block) = state.backlog.find(next) else {
        if state.finishing {
            // A successor may end with fewer records than are committed already.
            let last_sequence = last_sequence.max(committed);
            return (Vec::new(), Next::Send(Ask::Finish(FinishWriter { last_sequence })));
        }
        return (Vec::new(), Next::Wait(Duration::MAX));
    };
    if !block.sealed && !state.finishing && state.flush_to < block.first_sequence {
        let left = shared.options.linger.saturating_sub(block.started.elapsed());
        if !left.is_zero() {
            return (Vec::new(), Next::Wait(left));
        }
    }
    block.sealed = true;
    (state.names[keys_sent..].to_vec(), Next::Send(Ask::Batch(block.batch(next))))
}

fn define_keys(names: &[Box<str>], first_index: usize) -> impl Iterator<Item = Ask> + '_ {
    names.chunks(KEYS_PER_MESSAGE).enumerate().map(move |(number, chunk)| {
        let first = first_index + number * KEYS_PER_MESSAGE;
        let keys = chunk
            .iter()
            .enumerate()
            .map(|(place, key)| KeyDefinition {
                index: (first + place) as u32,
                key: key.to_string(),
            })
            .collect();
        Ask::Keys(DefineKeys { keys })
    })
}

fn request(message: Ask) -> WriteMetricsRequest {
    WriteMetricsRequest { message: Some(message) }
}

/// Takes in the answer to `open`; returns the record to go on with, and whether that
/// needs a `resync`: the gateway has lost records that are forgotten here.
fn take_opened(shared: &Shared, opened: &Opened) -> (u64, bool) {
    let known = {
        let mut state = shared.lock();
        state.status.streams += 1;
        state.status.committed_sequence
    };
    progress(shared, opened.committed_sequence, opened.counters, opened.rejections.clone());
    (known.max(opened.committed_sequence) + 1, opened.committed_sequence < known)
}

/// Takes in a watermark and what was told with it.
fn progress(
    shared: &Shared,
    committed: u64,
    counters: Option<WriterCounters>,
    samples: Vec<Sample>,
) {
    let known = shared.lock().status.committed_sequence;
    if let Some(told) = &shared.options.on_rejection {
        // What stands at or below the known watermark came with an earlier ack.
        for sample in samples.into_iter().filter(|sample| sample.sequence > known) {
            told(Rejection {
                reason: sample.reason(),
                key: sample.key,
                step: sample.step,
                sequence: sample.sequence,
                field: sample.field,
                detail: sample.detail,
                points: sample.points,
            });
        }
    }
    let mut state = shared.lock();
    state.status.committed_sequence = known.max(committed);
    state.status.counters = counters.unwrap_or_default();
    let committed = state.status.committed_sequence;
    state.backlog.forget(committed);
    drop(state);
    shared.announce();
}
