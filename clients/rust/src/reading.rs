//! Reading columns and listing series.

use crate::client::unary;
use crate::v1::read_metrics_response::Message;
use crate::v1::{ListSeriesRequest, RankAggregation, ReadMetricsRequest, Series, StepPolicy};
use crate::{Client, Error};

/// What [`Client::read_metrics`] returns; the default is everything.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// None: all.
    pub keys: Vec<String>,
    /// None: all.
    pub ranks: Vec<i32>,
    /// How the ranks of a key become one series; default: not at all.
    pub rank_aggregation: RankAggregation,
    /// Inclusive.
    pub first_step: Option<i64>,
    /// Inclusive.
    pub last_step: Option<i64>,
    /// Default: the run's.
    pub step_policy: StepPolicy,
    /// Of each series, chosen so that ends and extremes survive; 0: all.
    pub max_points: u32,
    /// Points of earlier attempts too that later ones hide.
    pub include_hidden: bool,
}

/// The points of one series, ascending in step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// The metric's key.
    pub key: String,
    /// -1 when aggregated over ranks.
    pub rank: i32,
    /// Only with `include_hidden`, otherwise 0.
    pub attempt: i32,
    /// The steps.
    pub steps: Vec<i64>,
    /// Microseconds since 1970-01-01 UTC.
    pub time_unix_us: Vec<i64>,
    /// The values.
    pub values: Vec<f64>,
}

impl Client {
    /// Reads points of a run from one consistent snapshot, ordered by key and rank.
    /// Has no deadline of its own.
    pub async fn read_metrics(
        &self,
        run_id: &str,
        options: ReadOptions,
    ) -> Result<Vec<Columns>, Error> {
        let request = ReadMetricsRequest {
            run_id: run_id.into(),
            keys: options.keys,
            ranks: options.ranks,
            rank_aggregation: options.rank_aggregation.into(),
            first_step: options.first_step,
            last_step: options.last_step,
            step_policy: options.step_policy.into(),
            max_points: options.max_points,
            include_hidden: options.include_hidden,
            follow: false,
        };
        let mut stream = unary(self.metrics().read_metrics(self.streaming(request))).await?;
        let mut series: Vec<Columns> = Vec::new();
        while let Some(response) = stream.message().await? {
            let Some(Message::Columns(piece)) = response.message else {
                continue;
            };
            let same = series.last().is_some_and(|last| {
                last.key == piece.key && last.rank == piece.rank && last.attempt == piece.attempt
            });
            if !same {
                series.push(Columns {
                    key: piece.key,
                    rank: piece.rank,
                    attempt: piece.attempt,
                    ..Columns::default()
                });
            }
            if let Some(into) = series.last_mut() {
                into.steps.extend(piece.step);
                into.time_unix_us.extend(piece.time_unix_us);
                into.values.extend(piece.value);
            }
        }
        Ok(series)
    }

    /// Lists the series of a run whose keys begin with `key_prefix`, with their
    /// summaries, ordered by key and rank; all pages, each of `page_size` (0: the
    /// gateway's default).
    pub async fn list_series(
        &self,
        run_id: &str,
        key_prefix: &str,
        page_size: i32,
    ) -> Result<Vec<Series>, Error> {
        let mut request = ListSeriesRequest {
            run_id: run_id.into(),
            key_prefix: key_prefix.into(),
            page_size,
            page_token: String::new(),
        };
        let mut series = Vec::new();
        loop {
            let page = unary(self.metrics().list_series(self.call(request.clone()))).await?;
            series.extend(page.series);
            if page.next_page_token.is_empty() {
                return Ok(series);
            }
            request.page_token = page.next_page_token;
        }
    }
}
