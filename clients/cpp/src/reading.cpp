#include "headrace/reading.h"

#include <google/protobuf/repeated_field.h>

#include "connection.h"

namespace headrace {
namespace {

v1::ReadMetricsRequest RequestOf(const std::string& run_id, const ReadOptions& options) {
  v1::ReadMetricsRequest request;
  request.set_run_id(run_id);
  request.mutable_keys()->Assign(options.keys.begin(), options.keys.end());
  request.mutable_ranks()->Assign(options.ranks.begin(), options.ranks.end());
  request.set_rank_aggregation(static_cast<v1::RankAggregation>(options.rank_aggregation));
  if (options.first_step) {
    request.set_first_step(*options.first_step);
  }
  if (options.last_step) {
    request.set_last_step(*options.last_step);
  }
  request.set_step_policy(static_cast<v1::StepPolicy>(options.step_policy));
  request.set_max_points(options.max_points);
  request.set_include_hidden(options.include_hidden);
  return request;
}

/// Adds a message's points to the series it continues, or to a new one.
void Join(std::vector<Columns>& series, const v1::SeriesColumns& piece) {
  if (series.empty() || series.back().key != piece.key() || series.back().rank != piece.rank() ||
      series.back().attempt != piece.attempt()) {
    Columns& fresh = series.emplace_back();
    fresh.key = piece.key();
    fresh.rank = piece.rank();
    fresh.attempt = piece.attempt();
  }
  Columns& into = series.back();
  into.steps.insert(into.steps.end(), piece.step().begin(), piece.step().end());
  into.time_unix_us.insert(into.time_unix_us.end(), piece.time_unix_us().begin(),
                           piece.time_unix_us().end());
  into.values.insert(into.values.end(), piece.value().begin(), piece.value().end());
}

}  // namespace

std::vector<Columns> Client::ReadMetrics(const std::string& run_id,
                                         const ReadOptions& options) const {
  grpc::ClientContext context;
  Connection::Deadline deadline;
  if (options.timeout) {
    deadline = After<std::chrono::system_clock>(*options.timeout);
  }
  connection_->Prepare(context, deadline);
  const auto reader =
      connection_->Next().metrics->ReadMetrics(&context, RequestOf(run_id, options));
  std::vector<Columns> series;
  v1::ReadMetricsResponse response;
  while (reader->Read(&response)) {
    if (response.has_columns()) {
      Join(series, response.columns());
    }
  }
  Check(reader->Finish());
  return series;
}

std::vector<Series> Client::ListSeries(const std::string& run_id,
                                       const ListSeriesOptions& options) const {
  std::vector<Series> series;
  v1::ListSeriesRequest request;
  request.set_run_id(run_id);
  request.set_key_prefix(options.key_prefix);
  request.set_page_size(options.page_size);
  do {
    const auto page = connection_->Unary<v1::ListSeriesResponse>(
        [&](const auto& gateway, auto* context, auto* answer) {
          return gateway.metrics->ListSeries(context, request, answer);
        });
    for (const v1::Series& one : page.series()) {
      series.push_back({.key = one.key(),
                        .rank = one.rank(),
                        .point_count = one.point_count(),
                        .last_step = one.last_step(),
                        .last_time_unix_us = one.last_time_unix_us(),
                        .last_value = one.last_value(),
                        .min_value = one.min_value(),
                        .max_value = one.max_value()});
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return series;
}

}  // namespace headrace
