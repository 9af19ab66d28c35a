#include "connection.h"

#include <charconv>
#include <stdexcept>

#include "backoff.h"

namespace headrace {
namespace {

constexpr int kKeepaliveTimeMs = 60'000;  // the gateway permits 20,000
constexpr int kKeepaliveTimeoutMs = 20'000;
constexpr int kReconnectWaitMaxMs = 1'000;
constexpr int kConnectTimeoutMs = 5'000;

std::string_view Trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(' ');
  const std::size_t last = text.find_last_not_of(' ');
  return first == std::string_view::npos ? "" : text.substr(first, last - first + 1);
}

bool TakePrefix(std::string_view& text, std::string_view prefix) {
  const bool has = text.starts_with(prefix);
  text.remove_prefix(has ? prefix.size() : 0);
  return has;
}

bool IsHostAndPort(std::string_view host) {
  const std::size_t colon = host.rfind(':');
  if (colon == std::string_view::npos || colon == 0) {
    return false;
  }
  std::uint16_t port = 0;
  const auto [end, error] = std::from_chars(host.data() + colon + 1, host.end(), port);
  return error == std::errc() && end == host.end();
}

std::shared_ptr<grpc::ChannelCredentials> CredentialsOf(const ConnectOptions& options,
                                                        bool encrypted) {
  if (!encrypted) {
    if (options.tls) {
      throw std::invalid_argument("ConnectOptions.tls needs addresses that begin with https://");
    }
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions tls;
  if (options.tls) {
    tls.pem_root_certs = options.tls->root_certificates;
    tls.pem_cert_chain = options.tls->certificate_chain;
    tls.pem_private_key = options.tls->private_key;
  }
  return grpc::SslCredentials(tls);
}

grpc::ChannelArguments ArgumentsOf() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // no limit of our own
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS,
                   static_cast<int>(Backoff::kFirstWait.count()));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectWaitMaxMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, kReconnectWaitMaxMs);
  arguments.SetLoadBalancingPolicyName("round_robin");
  return arguments;
}

}  // namespace

Addresses ParseAddresses(std::string_view addresses) {
  Addresses parsed;
  while (true) {
    const std::size_t comma = addresses.find(',');
    const std::string_view address = Trimmed(addresses.substr(0, comma));
    std::string_view host = address;
    const bool encrypted = TakePrefix(host, "https://");
    TakePrefix(host, "http://");
    host = host.substr(0, host.size() - (host.ends_with('/') ? 1 : 0));
    if (!IsHostAndPort(host)) {
      throw std::invalid_argument("the address `" + std::string(address) + "` is not host:port");
    }
    if (!parsed.hosts.empty() && encrypted != parsed.encrypted) {
      throw std::invalid_argument("some addresses begin with https:// and some do not");
    }
    parsed.encrypted = encrypted;
    parsed.hosts.emplace_back(host);
    if (comma == std::string_view::npos) {
      return parsed;
    }
    addresses.remove_prefix(comma + 1);
  }
}

Connection::Connection(std::string_view addresses, const ConnectOptions& options)
    : authorization_(options.token.empty() ? "" : "Bearer " + options.token),
      call_timeout_(options.call_timeout) {
  const auto [hosts, encrypted] = ParseAddresses(addresses);
  const auto credentials = CredentialsOf(options, encrypted);
  for (const std::string& host : hosts) {
    auto channel = grpc::CreateCustomChannel("dns:///" + host, credentials, ArgumentsOf());
    gateways_.push_back({.channel = channel,
                         .runs = v1::RunService::NewStub(channel),
                         .metrics = v1::MetricService::NewStub(channel),
                         .artifacts = v1::ArtifactService::NewStub(channel)});
  }
}

const Connection::Gateway& Connection::Next() {
  const std::size_t count = gateways_.size();
  const std::size_t turn = turn_++;
  const Gateway* hopeful = nullptr;  // may turn out to be reached
  for (std::size_t i = 0; i < count; ++i) {
    const Gateway& gateway = gateways_[(turn + i) % count];
    const grpc_connectivity_state state = gateway.channel->GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) {
      return gateway;
    }
    if (hopeful == nullptr && state != GRPC_CHANNEL_TRANSIENT_FAILURE) {
      hopeful = &gateway;
    }
  }
  return hopeful != nullptr ? *hopeful : gateways_[turn % count];
}

void Connection::Prepare(grpc::ClientContext& context, Deadline deadline) const {
  if (!authorization_.empty()) {
    context.AddMetadata("authorization", authorization_);
  }
  if (deadline) {
    context.set_deadline(*deadline);
  }
}

}  // namespace headrace
