/// Replays a scenario of clients/scenarios through this client; that folder's README has
/// the protocol.
#include <google/protobuf/util/json_util.h>

#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "headrace/v1/metric_service.pb.h"
#include "replay.h"

namespace {

std::string ReadText(const std::string& name) {
  std::ifstream file(name);
  return {std::istreambuf_iterator<char>(file), {}};
}

nlohmann::json ReadJson(const std::string& name) { return nlohmann::json::parse(ReadText(name)); }

/// Prints each message's bytes in hex, one a line.
void Encode(const std::string& name) {
  for (const auto& vector : ReadJson(name)) {
    headrace::v1::WriteMetricsRequest request;
    const std::string text = vector.at("message").dump();
    if (!google::protobuf::util::JsonStringToMessage(text, &request).ok()) {
      throw std::runtime_error("no WriteMetricsRequest: " + text);
    }
    std::cout << std::hex << std::setfill('0');
    for (const char byte : request.SerializeAsString()) {
      std::cout << std::setw(2) << static_cast<unsigned>(static_cast<unsigned char>(byte));
    }
    std::cout << '\n';
  }
}

}  // namespace

int main(int count, char** words) try {
  std::map<std::string, std::string> options{{"--address", std::string(headrace::kDefaultAddress)},
                                             {"--directory", "."}};
  for (int i = 1; i + 1 < count; i += 2) {
    options[words[i]] = words[i + 1];
  }
  if (options.contains("--encode")) {
    Encode(options["--encode"]);
    return 0;
  }
  headrace::ConnectOptions connect{.token = options["--token"]};
  if (options.contains("--tls-ca")) {
    connect.tls = {.root_certificates = ReadText(options["--tls-ca"])};
  }
  auto client = headrace::Client::Connect(options["--address"], connect);
  headrace::conformance::Replay replay(std::move(client), options["--directory"]);
  replay.Run(ReadJson(options["--scenario"]).at("steps"));
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
