//! Streams metrics with nothing but tonic's output: `stub_stream HOST:PORT`.
#![allow(clippy::wildcard_imports)]
use headrace::v1::write_metrics_request::Message;
use headrace::v1::write_metrics_response::Message::Finished;
use headrace::v1::{
    metric_service_client::MetricServiceClient, run_service_client::RunServiceClient, *,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("which address?")?;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?;
    let channel = endpoint.connect().await?;
    let [run_id, writer_id, incarnation] =
        rand::random::<[u128; 3]>().map(|id| format!("{id:032x}"));
    let run = CreateRunRequest { run_id: run_id.clone(), ..Default::default() };
    RunServiceClient::new(channel.clone()).create_run(run).await?;
    let writer = OpenWriter { run_id, writer_id, incarnation, ..Default::default() };
    let keys = DefineKeys { keys: vec![KeyDefinition { index: 0, key: "loss".into() }] };
    let mut messages = vec![Message::Open(writer.clone()), Message::Keys(keys)];
    for n in 1..=100 {
        let mut batch = MetricBatch { first_sequence: n, record_count: 1, ..Default::default() };
        batch.series_index.push(0);
        batch.step.push(n as i64);
        batch.time_unix_us.push(1_767_225_600_000_000);
        batch.value.push(1.0 / n as f64);
        messages.push(Message::Batch(batch));
    }
    messages.push(Message::Finish(FinishWriter { last_sequence: 100 }));
    let requests = messages.into_iter().map(|one| WriteMetricsRequest { message: Some(one) });
    let mut client = MetricServiceClient::new(channel);
    let mut responses = client.write_metrics(tokio_stream::iter(requests)).await?.into_inner();
    while let Some(response) = responses.message().await? {
        if let Some(Finished(finished)) = response.message {
            println!("{} {}", writer.run_id, finished.counters.unwrap_or_default().accepted_points);
        }
    }
    Ok(())
}
