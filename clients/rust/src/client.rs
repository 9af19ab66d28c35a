//! Connecting, and the calls about runs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status};

use crate::Error;
use crate::v1::artifact_service_client::ArtifactServiceClient;
use crate::v1::metric_service_client::MetricServiceClient;
use crate::v1::run_service_client::RunServiceClient;
use crate::v1::{
    CreateRunRequest, FinishRunRequest, GetRunRequest, HeartbeatRunRequest, LatePolicy, Run,
    RunState, StepPolicy,
};

/// Where a gateway listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7420";

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Talks to one gateway, or to several that share a database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    authorization: Option<MetadataValue<Ascii>>,
}

/// How to connect, besides where to.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// A bearer token, sent with every call.
    pub token: Option<String>,
    /// PEM authorities to trust instead of the system's.
    pub tls_ca: Option<String>,
}

/// A run to be created. All fields have defaults.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// 32 lower-case hex digits; default [`new_id`].
    pub run_id: Option<String>,
    /// Default `Default`.
    pub experiment: String,
    /// For people.
    pub name: String,
    /// Default `Last`.
    pub step_policy: StepPolicy,
    /// Default `Accept`.
    pub late_policy: LatePolicy,
}

impl Client {
    /// Prepares a client; does not wait for the gateway. Must be called in a tokio
    /// runtime.
    ///
    /// `addresses` is `host:port` (plain text) or `https://host:port` (TLS), or
    /// several separated by commas: calls and streams are then balanced.
    pub fn connect(addresses: &str) -> Result<Self, Error> {
        Self::connect_with(addresses, ConnectOptions::default())
    }

    /// [`Client::connect`] with options.
    pub fn connect_with(addresses: &str, options: ConnectOptions) -> Result<Self, Error> {
        let endpoints = addresses
            .split(',')
            .map(|address| endpoint(address.trim(), options.tls_ca.as_deref()))
            .collect::<Result<Vec<_>, _>>()?;
        let authorization = match options.token.filter(|token| !token.is_empty()) {
            Some(token) => Some(format!("Bearer {token}").parse().map_err(|_| {
                Error::Configuration("the token has characters that no token has".into())
            })?),
            None => None,
        };
        let channel = match endpoints.as_slice() {
            [one] => one.connect_lazy(),
            _ => Channel::balance_list(endpoints.into_iter()),
        };
        Ok(Self { channel, authorization })
    }

    /// Creates a run, or returns the one that has this id; `true` when it was created.
    ///
    /// Fails with `RunExists` when that one has other policies. Its experiment stays what it is.
    pub async fn create_run_or_get(&self, options: RunOptions) -> Result<(Run, bool), Error> {
        let request = CreateRunRequest {
            run_id: options.run_id.unwrap_or_else(new_id),
            experiment: options.experiment,
            name: options.name,
            step_policy: options.step_policy.into(),
            late_policy: options.late_policy.into(),
            ..CreateRunRequest::default()
        };
        let response = unary(self.runs().create_run(self.call(request))).await?;
        Ok((response.run.unwrap_or_default(), response.created))
    }

    /// Creates a run, or returns the one that has this id.
    pub async fn create_run(&self, options: RunOptions) -> Result<Run, Error> {
        self.create_run_or_get(options).await.map(|(run, _)| run)
    }

    /// Reads a run. Fails with `RunNotFound`.
    pub async fn get_run(&self, run_id: &str) -> Result<Run, Error> {
        let request = GetRunRequest { run_id: run_id.into() };
        let response = unary(self.runs().get_run(self.call(request))).await?;
        Ok(response.run.unwrap_or_default())
    }

    /// Ends a run. `attempt` 0 means 1; `state` is `Finished`, `Failed` or `Killed`.
    /// Returns false when a newer attempt exists: nothing was changed.
    pub async fn finish_run(
        &self,
        run_id: &str,
        attempt: i32,
        state: RunState,
    ) -> Result<bool, Error> {
        let request = FinishRunRequest {
            run_id: run_id.into(),
            attempt,
            state: state.into(),
            ..FinishRunRequest::default()
        };
        Ok(unary(self.runs().finish_run(self.call(request))).await?.applied)
    }

    /// Says that the run's job is alive. Not needed while a writer is open.
    pub async fn heartbeat_run(&self, run_id: &str) -> Result<(), Error> {
        let request = HeartbeatRunRequest { run_id: run_id.into() };
        unary(self.runs().heartbeat_run(self.call(request))).await.map(|_| ())
    }

    fn runs(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel.clone())
    }

    pub(crate) fn metrics(&self) -> MetricServiceClient<Channel> {
        MetricServiceClient::new(self.channel.clone())
    }

    pub(crate) fn artifacts(&self) -> ArtifactServiceClient<Channel> {
        ArtifactServiceClient::new(self.channel.clone())
    }

    /// A request with the token and the deadline of a unary call.
    pub(crate) fn call<T>(&self, message: T) -> Request<T> {
        let mut request = self.streaming(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// A request with the token.
    pub(crate) fn streaming<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }
}

pub(crate) async fn unary<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    Ok(call.await?.into_inner())
}

fn endpoint(address: &str, tls_ca: Option<&str>) -> Result<Endpoint, Error> {
    let host = address.trim_start_matches("https://").trim_start_matches("http://");
    if host.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(Error::Configuration(format!("the address {address:?} is not host:port")));
    }
    let encrypted = address.starts_with("https://");
    let scheme = if encrypted { "https" } else { "http" };
    let refused = |error: tonic::transport::Error| Error::Configuration(error.to_string());
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{host}"))
        .map_err(refused)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_PERIOD)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_adaptive_window(true);
    if encrypted {
        let tls = match tls_ca {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        endpoint = endpoint.tls_config(tls).map_err(refused)?;
    }
    Ok(endpoint)
}

/// Makes an id for a run, a writer or an incarnation: a UUID of version 7 as 32
/// lower-case hex digits.
#[must_use]
pub fn new_id() -> String {
    let milliseconds = u128::from(unix_us() / 1_000) & 0xffff_ffff_ffff;
    let random = rand::random::<u128>() & !(0xf_ffff_ffff_ffff << 76 | 0b11 << 62);
    format!("{:032x}", milliseconds << 80 | 0x7 << 76 | 0b10 << 62 | random)
}

/// Microseconds since 1970-01-01 UTC.
pub(crate) fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_uuid_of_version_7() {
        let id = new_id();
        assert_eq!(id.len(), 32);
        assert_eq!(&id[12..13], "7");
        assert!(matches!(&id[16..17], "8" | "9" | "a" | "b"));
        assert_ne!(id, new_id());
    }

    #[test]
    fn an_address_without_a_port_is_refused() {
        assert!(endpoint("gateway", None).is_err());
        assert!(endpoint("gateway:7420", None).is_ok());
        assert!(endpoint("https://gateway:7420", None).is_ok());
    }
}
