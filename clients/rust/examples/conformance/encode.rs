//! The wire vectors: from proto JSON to bytes. prost reads no JSON.

use std::error::Error;
use std::fmt::Write;

use headrace::v1::write_metrics_request::Message;
use headrace::v1::{
    DefineKeys, FinishWriter, Heartbeat, KeyDefinition, MetricBatch, OpenWriter, Resync,
    WriteMetricsRequest,
};
use prost::Message as _;
use serde_json::Value;

use crate::replay::number;

pub fn print_encoded(text: &str) -> Result<(), Box<dyn Error>> {
    let vectors: Vec<Value> = serde_json::from_str(text)?;
    for vector in vectors {
        let (kind, fields) = vector["message"]
            .as_object()
            .and_then(|message| message.iter().next())
            .ok_or("empty")?;
        let message = match kind.as_str() {
            "open" => Message::Open(OpenWriter {
                run_id: string(&fields["runId"]),
                writer_id: string(&fields["writerId"]),
                incarnation: string(&fields["incarnation"]),
                rank: integer(&fields["rank"]) as i32,
                attempt: integer(&fields["attempt"]) as i32,
                resume_step: fields.get("resumeStep").map(integer),
                resume_exempt_keys: list(&fields["resumeExemptKeys"], string),
            }),
            "keys" => Message::Keys(DefineKeys {
                keys: list(&fields["keys"], |definition| KeyDefinition {
                    index: integer(&definition["index"]) as u32,
                    key: string(&definition["key"]),
                }),
            }),
            "batch" => Message::Batch(MetricBatch {
                first_sequence: unsigned(&fields["firstSequence"]),
                record_count: integer(&fields["recordCount"]) as u32,
                series_index: list(&fields["seriesIndex"], |index| integer(index) as u32),
                step: list(&fields["step"], integer),
                time_unix_us: list(&fields["timeUnixUs"], integer),
                value: list(&fields["value"], number),
            }),
            "heartbeat" => Message::Heartbeat(Heartbeat {}),
            "finish" => {
                Message::Finish(FinishWriter { last_sequence: unsigned(&fields["lastSequence"]) })
            }
            "resync" => {
                Message::Resync(Resync { first_sequence: unsigned(&fields["firstSequence"]) })
            }
            other => return Err(format!("there is no message {other}").into()),
        };
        let bytes = WriteMetricsRequest { message: Some(message) }.encode_to_vec();
        let mut hex = String::new();
        for byte in bytes {
            write!(hex, "{byte:02x}")?;
        }
        println!("{hex}");
    }
    Ok(())
}

fn list<T>(value: &Value, element: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().into_iter().flatten().map(element).collect()
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn integer(value: &Value) -> i64 {
    value.as_str().map_or_else(|| value.as_i64(), |text| text.parse().ok()).unwrap_or_default()
}

fn unsigned(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}
