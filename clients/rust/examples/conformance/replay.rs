//! The steps of a scenario.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headrace::{
    Artifact, ArtifactEntry, Client, Error, LatePolicy, ListArtifactsOptions, RankAggregation,
    ReadOptions, Rejection, RunOptions, RunState, StepPolicy, WhenFull, Writer, WriterOptions,
};
use serde_json::{Map, Value, json};

const DEADLINE_MS: u64 = 30_000;

struct Reported {
    writer: Writer,
    rejections: Arc<Mutex<Vec<Value>>>,
}

pub struct Replay {
    client: Client,
    directory: PathBuf,
    writers: HashMap<String, Reported>,
}

impl Replay {
    pub fn new(client: Client, directory: PathBuf) -> Self {
        Self { client, directory, writers: HashMap::new() }
    }

    pub async fn run(mut self, steps: &Value) -> Result<(), Box<dyn StdError>> {
        let mut outcomes = Vec::new();
        for (index, step) in steps.as_array().into_iter().flatten().enumerate() {
            let started = Instant::now();
            let mut outcome = match step["do"].as_str() {
                Some("fault") => {
                    println!("{}", json!({"fault": index}));
                    std::io::stdin().read_line(&mut String::new())?;
                    json!({})
                }
                _ => self
                    .step(step)
                    .await
                    .unwrap_or_else(|error| json!({"error": reason_of(&error)})),
            };
            outcome["elapsed_ms"] = json!(started.elapsed().as_secs_f64() * 1e3);
            outcomes.push(outcome);
        }
        let reports: Map<String, Value> =
            self.writers.iter().map(|(name, writer)| (name.clone(), report(writer))).collect();
        println!("{}", json!({"result": {"steps": outcomes, "writers": reports}}));
        Ok(())
    }

    async fn step(&mut self, step: &Value) -> Result<Value, Error> {
        let run_id = text(step, "run_id");
        match text(step, "do").as_str() {
            "create_run" => {
                let options = RunOptions {
                    run_id: Some(run_id),
                    experiment: text(step, "experiment"),
                    name: text(step, "name"),
                    step_policy: step_policy(step),
                    late_policy: match text(step, "late_policy").as_str() {
                        "REJECT" => LatePolicy::Reject,
                        "ACCEPT" => LatePolicy::Accept,
                        _ => LatePolicy::Unspecified,
                    },
                };
                let (_, created) = self.client.create_run_or_get(options).await?;
                Ok(json!({"created": created}))
            }
            "get_run" => {
                let run = self.client.get_run(&run_id).await?;
                let attempts: Vec<Value> = run
                    .attempts
                    .iter()
                    .map(|one| json!({"attempt": one.attempt, "resume_step": one.resume_step}))
                    .collect();
                let state = run.state().as_str_name().trim_start_matches("RUN_STATE_");
                Ok(json!({"state": state, "attempts": attempts}))
            }
            "finish_run" => {
                let state = RunState::from_str_name(&format!("RUN_STATE_{}", text(step, "state")));
                let attempt = integer(step, "attempt").unwrap_or(0) as i32;
                let applied = self
                    .client
                    .finish_run(&run_id, attempt, state.unwrap_or(RunState::Unspecified))
                    .await?;
                Ok(json!({"applied": applied}))
            }
            "heartbeat_run" => self.client.heartbeat_run(&run_id).await.map(|()| json!({})),
            "open_writer" => self.open_writer(step).map(|()| json!({})),
            "log" => Ok(self.log(step).await),
            "flush" => self.writer(step).flush(deadline(step)).await.map(|()| json!({})),
            "finish" => self.writer(step).finish(deadline(step)).await.map(|()| json!({})),
            "close" => {
                self.writer(step).close();
                Ok(json!({}))
            }
            "read" => self.read(&run_id, step).await,
            "list_series" => self.list_series(&run_id, step).await,
            "upload" => {
                let file = self.directory.join(text(step, "file"));
                let path = text(step, "path");
                Ok(described(&self.client.upload_artifact(&run_id, &path, file, "").await?))
            }
            "download" => {
                let file = self.directory.join(text(step, "file"));
                let path = text(step, "path");
                Ok(described(&self.client.download_artifact(&run_id, &path, file).await?))
            }
            "list_artifacts" => self.list_artifacts(&run_id, step).await,
            other => Err(Error::Configuration(format!("there is no step {other}"))),
        }
    }

    fn writer(&self, step: &Value) -> &Writer {
        &self.writers[&text(step, "writer")].writer
    }

    fn open_writer(&mut self, step: &Value) -> Result<(), Error> {
        let rejections = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&rejections);
        let mut options = WriterOptions {
            writer_id: text(step, "writer_id"),
            incarnation: text(step, "incarnation"),
            rank: integer(step, "rank").unwrap_or(0) as i32,
            attempt: integer(step, "attempt").unwrap_or(1) as i32,
            resume_step: integer(step, "resume_step"),
            resume_exempt_keys: strings(&step["resume_exempt_keys"]),
            on_rejection: Some(Arc::new(move |rejection: Rejection| {
                into.lock().unwrap().push(json!({
                    "reason": rejection.reason.as_str_name().trim_start_matches("ERROR_REASON_"),
                    "key": rejection.key,
                    "step": rejection.step,
                    "points": rejection.points,
                }));
            })),
            ..WriterOptions::new(text(step, "run_id"))
        };
        if let Some(points) = integer(step, "batch_points_max") {
            options.batch_points_max = points as usize;
        }
        if let Some(linger_ms) = integer(step, "linger_ms") {
            options.linger = Duration::from_millis(linger_ms.unsigned_abs());
        }
        if let Some(points) = integer(step, "window_points") {
            options.window_points = points as usize;
        }
        if step["when_full"] == "error" {
            options.when_full = WhenFull::Error;
        }
        let writer = self.client.open_writer(options)?;
        self.writers.insert(text(step, "writer"), Reported { writer, rejections });
        Ok(())
    }

    async fn log(&self, step: &Value) -> Value {
        let writer = self.writer(step);
        let mut outcome = Tally::default();
        if let Some(points) = step["points"].as_array() {
            for point in points {
                let values: Vec<(&str, f64)> = point[1]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(key, value)| (key.as_str(), number(value)))
                    .collect();
                outcome.add(writer.log(point[0].as_i64().unwrap(), values).await);
            }
        } else {
            let keys = match step["keys"].as_u64() {
                Some(count) => (0..count).map(|index| format!("key/{index}")).collect(),
                None => strings(&step["keys"]),
            };
            let first = integer(step, "first_step").unwrap();
            for position in first..first + integer(step, "count").unwrap() {
                let values = keys
                    .iter()
                    .enumerate()
                    .map(|(index, key)| (key, position as f64 + index as f64 / 8.0));
                outcome.add(writer.log(position, values).await);
            }
        }
        json!({"logged": outcome.logged, "refused": outcome.refused, "error": outcome.error})
    }

    async fn read(&self, run_id: &str, step: &Value) -> Result<Value, Error> {
        let aggregation = format!("RANK_AGGREGATION_{}", text(step, "rank_aggregation"));
        let options = ReadOptions {
            keys: strings(&step["keys"]),
            ranks: step["ranks"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|rank| Some(rank.as_i64()? as i32))
                .collect(),
            rank_aggregation: RankAggregation::from_str_name(&aggregation)
                .unwrap_or(RankAggregation::Unspecified),
            first_step: integer(step, "first_step"),
            last_step: integer(step, "last_step"),
            step_policy: step_policy(step),
            max_points: integer(step, "max_points").unwrap_or(0) as u32,
            include_hidden: step["include_hidden"].as_bool().unwrap_or(false),
        };
        let series: Vec<Value> = self
            .client
            .read_metrics(run_id, options)
            .await?
            .into_iter()
            .map(|one| {
                let values: Vec<Value> = one.values.into_iter().map(spelt).collect();
                json!({"key": one.key, "rank": one.rank, "steps": one.steps, "values": values})
            })
            .collect();
        Ok(json!({"series": series}))
    }

    async fn list_series(&self, run_id: &str, step: &Value) -> Result<Value, Error> {
        let page_size = integer(step, "page_size").unwrap_or(0) as i32;
        let series: Vec<Value> = self
            .client
            .list_series(run_id, &text(step, "key_prefix"), page_size)
            .await?
            .into_iter()
            .map(|one| {
                json!({
                    "key": one.key, "rank": one.rank, "point_count": one.point_count,
                    "last_step": one.last_step, "last_value": spelt(one.last_value),
                    "min_value": spelt(one.min_value), "max_value": spelt(one.max_value),
                })
            })
            .collect();
        Ok(json!({"series": series}))
    }

    async fn list_artifacts(&self, run_id: &str, step: &Value) -> Result<Value, Error> {
        let options = ListArtifactsOptions {
            folder: text(step, "folder"),
            recursive: step["recursive"].as_bool().unwrap_or(false),
            page_size: integer(step, "page_size").unwrap_or(0) as i32,
        };
        let entries: Vec<String> = self
            .client
            .list_artifacts(run_id, options)
            .await?
            .into_iter()
            .map(|entry| match entry {
                ArtifactEntry::Artifact(artifact) => artifact.path,
                ArtifactEntry::Folder(folder) => folder + "/",
            })
            .collect();
        Ok(json!({"entries": entries}))
    }
}

#[derive(Default)]
struct Tally {
    logged: u64,
    refused: u64,
    error: Option<String>,
}

impl Tally {
    fn add(&mut self, result: Result<(), Error>) {
        match result {
            Ok(()) => self.logged += 1,
            Err(error) => {
                self.refused += 1;
                self.error.get_or_insert_with(|| reason_of(&error));
            }
        }
    }
}

fn report(reported: &Reported) -> Value {
    let status = reported.writer.status();
    json!({
        "committed_sequence": status.committed_sequence,
        "counters": {
            "accepted_points": status.counters.accepted_points,
            "late_points": status.counters.late_points,
            "repeated_points": status.counters.repeated_points,
            "rejected_points": status.counters.rejected_points,
            "lost_records": status.counters.lost_records,
        },
        "rejections": *reported.rejections.lock().unwrap(),
        "error": status.failure.map(|failure| reason_of(&Error::Gateway(failure))),
        "finished": status.finished,
        "streams": status.streams,
        "reconnects": status.reconnects,
        "refused_points": 0,
    })
}

fn reason_of(error: &Error) -> String {
    match error {
        Error::Gateway(failure) if !failure.reason_name().is_empty() => {
            failure.reason_name().into()
        }
        Error::Gateway(failure) => screaming(&format!("{:?}", failure.code)),
        Error::WindowFull => "WINDOW_FULL".into(),
        Error::WriterClosed => "WRITER_CLOSED".into(),
        Error::DeadlineExceeded => "DEADLINE_EXCEEDED".into(),
        other => other.to_string(),
    }
}

/// `DeadlineExceeded` as `DEADLINE_EXCEEDED`.
fn screaming(name: &str) -> String {
    let mut spelt = String::new();
    for (place, letter) in name.char_indices() {
        if place > 0 && letter.is_ascii_uppercase() {
            spelt.push('_');
        }
        spelt.push(letter.to_ascii_uppercase());
    }
    spelt
}

fn described(artifact: &Artifact) -> Value {
    let mut digest = String::new();
    for byte in &artifact.digest {
        write!(digest, "{byte:02x}").unwrap();
    }
    json!({"size": artifact.size, "digest": digest, "deduplicated": artifact.deduplicated})
}

fn deadline(step: &Value) -> Duration {
    Duration::from_millis(step["deadline_ms"].as_u64().unwrap_or(DEADLINE_MS))
}

fn step_policy(step: &Value) -> StepPolicy {
    StepPolicy::from_str_name(&format!("STEP_POLICY_{}", text(step, "step_policy")))
        .unwrap_or(StepPolicy::Unspecified)
}

fn text(step: &Value, field: &str) -> String {
    step[field].as_str().unwrap_or_default().to_owned()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|one| Some(one.as_str()?.to_owned())).collect()
}

fn integer(step: &Value, field: &str) -> Option<i64> {
    step[field].as_i64()
}

/// A value as the scenarios write it.
pub fn number(value: &Value) -> f64 {
    match value.as_str() {
        Some("NaN") => f64::NAN,
        Some("Infinity") => f64::INFINITY,
        Some("-Infinity") => f64::NEG_INFINITY,
        _ => value.as_f64().unwrap_or_default(),
    }
}

fn spelt(value: f64) -> Value {
    if value.is_finite() {
        json!(value)
    } else if value.is_nan() {
        json!("NaN")
    } else if value > 0.0 {
        json!("Infinity")
    } else {
        json!("-Infinity")
    }
}
