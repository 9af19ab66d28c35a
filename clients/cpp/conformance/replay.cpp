#include "replay.h"

#include <array>
#include <chrono>
#include <cmath>
#include <iostream>
#include <limits>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace headrace::conformance {
namespace {

constexpr std::array<std::string_view, 4> kStepPolicies{"", "LAST", "FIRST", "ALL"};
constexpr std::array<std::string_view, 3> kLatePolicies{"", "ACCEPT", "REJECT"};
constexpr std::array<std::string_view, 6> kRunStates{"",       "RUNNING", "FINISHED",
                                                     "FAILED", "KILLED",  "LOST"};
constexpr std::array<std::string_view, 5> kRankAggregations{"", "MEAN", "MIN", "MAX", "SUM"};

/// The value of an enum that the step's field names.
template <typename Enum, std::size_t kCount>
Enum Named(const Json& step, const char* field, const std::array<std::string_view, kCount>& names,
           Enum otherwise = {}) {
  const std::string name = step.value(field, "");
  for (std::size_t i = 1; i < kCount; ++i) {
    if (names[i] == name) {
      return static_cast<Enum>(i);
    }
  }
  return otherwise;
}

template <typename Type>
std::optional<Type> Optional(const Json& step, const char* field) {
  return step.contains(field) ? std::optional(step[field].get<Type>()) : std::nullopt;
}

/// A number as the scenarios write it.
Json ToJson(double value) {
  if (std::isnan(value)) {
    return "NaN";
  }
  if (std::isinf(value)) {
    return value > 0 ? "Infinity" : "-Infinity";
  }
  return value;
}

double ToDouble(const Json& value) {
  if (!value.is_string()) {
    return value.get<double>();
  }
  if (value == "NaN") {
    return std::numeric_limits<double>::quiet_NaN();
  }
  const double infinity = std::numeric_limits<double>::infinity();
  return value == "Infinity" ? infinity : -infinity;
}

Json ToJson(const Artifact& artifact) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string hex;
  for (const std::uint8_t byte : artifact.digest) {
    hex += kDigits[byte >> 4U];
    hex += kDigits[byte & 0xFU];
  }
  return {{"size", artifact.size}, {"digest", hex}, {"deduplicated", artifact.deduplicated}};
}

std::vector<std::string> KeysOf(const Json& step) {
  if (!step.contains("keys")) {
    return {};
  }
  if (step["keys"].is_array()) {
    return step["keys"].get<std::vector<std::string>>();
  }
  std::vector<std::string> keys;
  for (int i = 0; i < step["keys"].get<int>(); ++i) {
    keys.push_back("key/" + std::to_string(i));
  }
  return keys;
}

std::chrono::milliseconds DeadlineOf(const Json& step) {
  return std::chrono::milliseconds(step.value("deadline_ms", 30'000));
}

Json ReportOf(ReportedWriter& reported) {
  const WriterStatus status = reported.writer->Status();
  const std::lock_guard lock(reported.mutex);
  return {{"committed_sequence", status.committed_sequence},
          {"counters",
           {{"accepted_points", status.counters.accepted_points},
            {"late_points", status.counters.late_points},
            {"repeated_points", status.counters.repeated_points},
            {"rejected_points", status.counters.rejected_points},
            {"lost_records", status.counters.lost_records}}},
          {"rejections", reported.rejections},
          {"error", status.error ? Json(status.error->code().message()) : Json()},
          {"finished", status.finished},
          {"streams", status.streams},
          {"reconnects", status.reconnects},
          {"refused_points", 0}};
}

}  // namespace

void Replay::Run(const Json& steps) {
  Json outcomes = Json::array();
  for (std::size_t index = 0; index < steps.size(); ++index) {
    const auto started = std::chrono::steady_clock::now();
    Json outcome;
    try {
      outcome = Play(index, steps[index]);
    } catch (const std::system_error& error) {
      outcome["error"] = error.code().message();
    }
    const std::chrono::duration<double, std::milli> elapsed =
        std::chrono::steady_clock::now() - started;
    outcome["elapsed_ms"] = elapsed.count();
    outcomes.push_back(std::move(outcome));
  }
  Json reports = Json::object();
  for (const auto& [name, writer] : writers_) {
    reports[name] = ReportOf(*writer);
  }
  const Json result{{"result", {{"steps", outcomes}, {"writers", reports}}}};
  std::cout << result.dump() << std::endl;
}

Json Replay::Play(std::size_t index, const Json& step) {
  const std::string what = step.at("do");
  const std::string run_id = step.value("run_id", "");
  if (what == "fault") {
    std::cout << Json{{"fault", index}}.dump() << std::endl;
    std::string line;
    std::getline(std::cin, line);
  } else if (what == "create_run") {
    return CreateRun(step);
  } else if (what == "get_run") {
    return GetRun(step);
  } else if (what == "finish_run") {
    const auto state = Named<RunState>(step, "state", kRunStates, RunState::kFinished);
    return {{"applied", client_.FinishRun(run_id, step.value("attempt", 1), state)}};
  } else if (what == "heartbeat_run") {
    client_.HeartbeatRun(run_id);
  } else if (what == "open_writer") {
    OpenWriter(step);
  } else if (what == "log") {
    return Log(step);
  } else if (what == "flush") {
    WriterOf(step).Flush(DeadlineOf(step));
  } else if (what == "finish") {
    WriterOf(step).Finish(DeadlineOf(step));
  } else if (what == "close") {
    WriterOf(step).Close();
  } else if (what == "read") {
    return Read(step);
  } else if (what == "list_series") {
    return ListSeries(step);
  } else if (what == "upload") {
    return ToJson(
        client_.UploadArtifact(run_id, step["path"], directory_ / step["file"].get<std::string>()));
  } else if (what == "download") {
    return ToJson(client_.DownloadArtifact(run_id, step["path"],
                                           directory_ / step["file"].get<std::string>()));
  } else if (what == "list_artifacts") {
    return ListArtifacts(step);
  } else {
    throw std::invalid_argument("there is no step " + what);
  }
  return Json::object();
}

Json Replay::CreateRun(const Json& step) {
  const headrace::Run run = client_.CreateRun({
      .run_id = step["run_id"],
      .experiment = step.value("experiment", ""),
      .name = step.value("name", ""),
      .step_policy = Named<StepPolicy>(step, "step_policy", kStepPolicies),
      .late_policy = Named<LatePolicy>(step, "late_policy", kLatePolicies),
  });
  return {{"created", run.created}};
}

Json Replay::GetRun(const Json& step) {
  const headrace::Run run = client_.GetRun(step["run_id"]);
  Json attempts = Json::array();
  for (const Attempt& attempt : run.attempts) {
    attempts.push_back(
        {{"attempt", attempt.attempt},
         {"resume_step", attempt.resume_step ? Json(*attempt.resume_step) : Json()}});
  }
  return {{"state", kRunStates.at(static_cast<std::size_t>(run.state))}, {"attempts", attempts}};
}

void Replay::OpenWriter(const Json& step) {
  auto reported = std::make_unique<ReportedWriter>();
  WriterOptions options{
      .run_id = step["run_id"],
      .writer_id = step["writer_id"],
      .incarnation = step["incarnation"],
      .rank = step.value("rank", 0),
      .attempt = step.value("attempt", 1),
      .resume_step = Optional<std::int64_t>(step, "resume_step"),
      .resume_exempt_keys = step.value("resume_exempt_keys", std::vector<std::string>()),
      .on_rejection =
          [told = reported.get()](const Rejection& rejection) {
            const std::lock_guard lock(told->mutex);
            told->rejections.push_back({{"reason", make_error_code(rejection.reason).message()},
                                        {"key", rejection.key},
                                        {"step", rejection.step},
                                        {"points", rejection.points}});
          },
  };
  options.batch_points_max = step.value("batch_points_max", options.batch_points_max);
  options.window_points = step.value("window_points", options.window_points);
  options.linger = std::chrono::milliseconds(step.value("linger_ms", options.linger.count()));
  options.when_full =
      step.value("when_full", "block") == "error" ? WhenFull::kError : WhenFull::kBlock;
  reported->writer = client_.OpenWriter(std::move(options));
  writers_[step["writer"]] = std::move(reported);
}

Json Replay::Log(const Json& step) {
  Writer& writer = WriterOf(step);
  std::uint64_t logged = 0;
  std::uint64_t refused = 0;
  std::error_code first;
  const auto record = [&](std::int64_t at, std::span<const Value> values) {
    const std::error_code error = writer.Log(at, values);
    ++(error ? refused : logged);
    first = first ? first : error;
  };
  std::vector<Value> values;
  if (step.contains("points")) {
    for (const Json& point : step["points"]) {
      const auto& record_values = point[1].get_ref<const Json::object_t&>();
      values.clear();
      for (const auto& [key, value] : record_values) {
        values.emplace_back(key, ToDouble(value));
      }
      record(point[0], values);
    }
  } else {
    const std::vector<std::string> keys = KeysOf(step);
    for (const std::string& key : keys) {
      values.emplace_back(key, 0.0);
    }
    const std::int64_t begin = step["first_step"];
    const std::int64_t end = begin + step["count"].get<std::int64_t>();
    for (std::int64_t at = begin; at < end; ++at) {
      for (std::size_t k = 0; k < values.size(); ++k) {
        values[k].second = static_cast<double>(at) + static_cast<double>(k) / 8;
      }
      record(at, values);
    }
  }
  Json outcome{{"logged", logged}, {"refused", refused}};
  if (first) {
    outcome["error"] = first.message();
  }
  return outcome;
}

Json Replay::Read(const Json& step) {
  const auto columns = client_.ReadMetrics(
      step["run_id"],
      {
          .keys = KeysOf(step),
          .ranks = step.value("ranks", std::vector<std::int32_t>()),
          .rank_aggregation = Named<RankAggregation>(step, "rank_aggregation", kRankAggregations),
          .first_step = Optional<std::int64_t>(step, "first_step"),
          .last_step = Optional<std::int64_t>(step, "last_step"),
          .step_policy = Named<StepPolicy>(step, "step_policy", kStepPolicies),
          .max_points = step.value("max_points", 0U),
          .include_hidden = step.value("include_hidden", false),
      });
  Json series = Json::array();
  for (const Columns& one : columns) {
    Json values = Json::array();
    for (const double value : one.values) {
      values.push_back(ToJson(value));
    }
    series.push_back(
        {{"key", one.key}, {"rank", one.rank}, {"steps", one.steps}, {"values", values}});
  }
  return {{"series", series}};
}

Json Replay::ListSeries(const Json& step) {
  const auto listed = client_.ListSeries(
      step["run_id"],
      {.key_prefix = step.value("key_prefix", ""), .page_size = step.value("page_size", 0)});
  Json series = Json::array();
  for (const Series& one : listed) {
    series.push_back({{"key", one.key},
                      {"rank", one.rank},
                      {"point_count", one.point_count},
                      {"last_step", one.last_step},
                      {"last_value", ToJson(one.last_value)},
                      {"min_value", ToJson(one.min_value)},
                      {"max_value", ToJson(one.max_value)}});
  }
  return {{"series", series}};
}

Json Replay::ListArtifacts(const Json& step) {
  const auto listed =
      client_.ListArtifacts(step["run_id"], {.folder = step.value("folder", ""),
                                             .recursive = step.value("recursive", false),
                                             .page_size = step.value("page_size", 0)});
  Json entries = Json::array();
  for (const ArtifactEntry& entry : listed) {
    if (const auto* folder = std::get_if<Folder>(&entry)) {
      entries.push_back(folder->path + "/");
    } else {
      entries.push_back(std::get<Artifact>(entry).path);
    }
  }
  return {{"entries", entries}};
}

Writer& Replay::WriterOf(const Json& step) { return *writers_.at(step["writer"])->writer; }

}  // namespace headrace::conformance
