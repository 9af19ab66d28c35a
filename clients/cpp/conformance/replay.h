/// The steps of a scenario as calls of the client.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "headrace/client.h"

namespace headrace::conformance {

using Json = nlohmann::json;

/// A writer and the rejections it was told of.
struct ReportedWriter {
  std::mutex mutex;
  Json rejections = Json::array();
  std::optional<Writer> writer;  // gone before what its callback uses
};

/// Plays the steps and prints faults and the result.
class Replay {
 public:
  Replay(Client client, std::filesystem::path directory)
      : client_(std::move(client)), directory_(std::move(directory)) {}

  void Run(const Json& steps);

 private:
  /// Returns the step's outcome. Throws what the client throws.
  Json Play(std::size_t index, const Json& step);

  Json CreateRun(const Json& step);
  Json GetRun(const Json& step);
  void OpenWriter(const Json& step);
  Json Log(const Json& step);
  Json Read(const Json& step);
  Json ListSeries(const Json& step);
  Json ListArtifacts(const Json& step);
  Writer& WriterOf(const Json& step);

  Client client_;
  const std::filesystem::path directory_;
  std::map<std::string, std::unique_ptr<ReportedWriter>> writers_;
};

}  // namespace headrace::conformance
