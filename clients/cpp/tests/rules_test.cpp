#include <gtest/gtest.h>

#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "backoff.h"
#include "connection.h"
#include "digest.h"
#include "headrace/v1/error_reason.pb.h"
#include "key_dictionary.h"
#include "status_details.pb.h"

namespace headrace {
namespace {

TEST(NewId, IsAUuidOfVersion7) {
  const std::regex form("[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}");
  EXPECT_TRUE(std::regex_match(NewId(), form)) << NewId();
  EXPECT_NE(NewId(), NewId());
}

TEST(PartSize, FollowsFromTheSize) {
  EXPECT_EQ(PartSize(17 * kMebibyte), 16 * kMebibyte);
  EXPECT_EQ(PartSize(1'024 * kMebibyte), 16 * kMebibyte);
  EXPECT_EQ(PartSize(1'024 * kMebibyte + 1), 64 * kMebibyte);
  EXPECT_EQ(PartSize(5 * 1'024 * 1'024 * kMebibyte), 1'024 * kMebibyte);
}

TEST(Sha256, OfAnEmptyFileAndOfOneThatIsTooShort) {
  std::istringstream empty("");
  EXPECT_EQ(Sha256Of(empty, 0).substr(0, 4), "\xe3\xb0\xc4\x42");
  std::istringstream shorter("abc");
  EXPECT_EQ(Sha256Of(shorter, 4), "");
}

TEST(Addresses, AreOfOneKindAndHavePorts) {
  const Addresses parsed = ParseAddresses("https://a:1, https://b:2/");
  EXPECT_TRUE(parsed.encrypted);
  EXPECT_EQ(parsed.hosts, (std::vector<std::string>{"a:1", "b:2"}));
  EXPECT_EQ(ParseAddresses("[::1]:7420").hosts.front(), "[::1]:7420");
  for (const char* bad : {"a", "a:", ":1", "a:x", "a:1,https://b:2", "", "a:1,"}) {
    EXPECT_THROW(ParseAddresses(bad), std::invalid_argument) << bad;
  }
}

TEST(Backoff, WaitsGrowAndStayBelowTheirLimit) {
  Backoff backoff;
  const Error unavailable(StatusCode::kUnavailable, "");
  for (int i = 0; i < 100; ++i) {
    const auto wait = backoff.Next(unavailable);
    ASSERT_TRUE(wait);
    EXPECT_GE(*wait, Backoff::kFirstWait / 2);
    EXPECT_LE(*wait, Backoff::kWaitMax);
  }
  EXPECT_GE(*backoff.Next(unavailable), Backoff::kWaitMax / 2);
  const Error patient(Reason::kOverloaded, "", {}, std::chrono::minutes(1));
  EXPECT_EQ(*backoff.Next(patient), std::chrono::minutes(1));
}

TEST(Backoff, FailuresThatResumingDoesNotCureEnd) {
  Backoff backoff;
  const Error gap(Reason::kSequenceGap, "");
  for (int i = 0; i < Backoff::kResumesMax; ++i) {
    EXPECT_TRUE(backoff.Next(gap));
  }
  EXPECT_FALSE(backoff.Next(gap));
  EXPECT_FALSE(Backoff().Next(Error(Reason::kWriterFenced, "")));
  EXPECT_FALSE(Backoff().Next(Error(StatusCode::kUnimplemented, "")));
}

TEST(Reason, IsTheContractsAndHasARemedy) {
  const std::set<std::string> resumed{"SEQUENCE_GAP",    "UNKNOWN_KEY_INDEX", "TRANSFER_STALLED",
                                      "DIGEST_MISMATCH", "UPLOAD_NOT_FOUND",  "UPLOAD_INCOMPLETE"};
  const std::set<std::string> later{"OVERLOADED", "STORE_UNAVAILABLE", "DRAINING", "INTERNAL",
                                    "BLOB_STORE_UNAVAILABLE"};
  EXPECT_EQ(static_cast<int>(Reason::kFollowerLagged), v1::ErrorReason_MAX)
      << "the contract has reasons that headrace/error.h does not have";
  const auto* descriptor = v1::ErrorReason_descriptor();
  for (int i = 0; i < descriptor->value_count(); ++i) {
    const std::error_code code(descriptor->value(i)->number(), reason_category());
    const std::string name = code.message();
    EXPECT_EQ("ERROR_REASON_" + name, descriptor->value(i)->name());
    const Retry expected = resumed.contains(name) ? Retry::kResume
                           : later.contains(name) ? Retry::kLater
                                                  : Retry::kNever;
    EXPECT_EQ(RetryOf(code), expected) << name;
  }
  EXPECT_EQ(make_error_code(Reason::kUploadIncomplete).message(), "UPLOAD_INCOMPLETE");
  EXPECT_EQ(make_error_code(Reason::kWindowFull).message(), "WINDOW_FULL");
  EXPECT_EQ(make_error_code(StatusCode::kUnauthenticated).message(), "UNAUTHENTICATED");
}

grpc::Status Failed(const std::string& reason) {
  status_details::Status details;
  status_details::ErrorInfo info;
  info.set_reason(reason);
  (*info.mutable_metadata())["field"] = "run_id";
  details.add_details()->set_type_url("type.googleapis.com/google.rpc.ErrorInfo");
  details.mutable_details(0)->set_value(info.SerializeAsString());
  status_details::RetryInfo retry;
  retry.mutable_retry_delay()->set_nanos(250'000'000);
  details.add_details()->set_type_url("type.googleapis.com/google.rpc.RetryInfo");
  details.mutable_details(1)->set_value(retry.SerializeAsString());
  return {grpc::StatusCode::NOT_FOUND, "no such run", details.SerializeAsString()};
}

TEST(ErrorOf, HasTheReasonAndTheDetailsOfTheGateway) {
  const Error error = ErrorOf(Failed("RUN_NOT_FOUND"));
  EXPECT_EQ(error.code(), Reason::kRunNotFound);
  EXPECT_EQ(error.reason(), Reason::kRunNotFound);
  EXPECT_EQ(error.metadata().at("field"), "run_id");
  EXPECT_EQ(error.retry_after(), std::chrono::milliseconds(250));
  EXPECT_NE(std::string(error.what()).find("no such run"), std::string::npos);
}

TEST(ErrorOf, FallsBackToTheStatusForAReasonOfANewerGateway) {
  const Error error = ErrorOf(Failed("NEVER_HEARD_OF"));
  EXPECT_EQ(error.code(), StatusCode::kNotFound);
  EXPECT_EQ(error.reason(), Reason::kUnspecified);
  EXPECT_NE(std::string(error.what()).find("NEVER_HEARD_OF"), std::string::npos);
}

TEST(KeyDictionary, LongKeysShareAnIndex) {
  KeyDictionary keys;
  std::string key;
  for (int i = 0; i < 300; ++i) {
    key += "ß";
  }
  EXPECT_EQ(keys.IndexOf(key), keys.IndexOf(key + "x"));
  EXPECT_EQ(keys.names().front().size(), 2 * (KeyDictionary::kCharactersMax + 1));
}

TEST(KeyDictionary, BytesThatAreNotUtf8AreReplaced) {
  const std::string mark = "\xEF\xBF\xBD";
  EXPECT_EQ(ValidUtf8("größe/火/🎛", 99), "größe/火/🎛");
  EXPECT_EQ(ValidUtf8("a\xff", 99), "a" + mark);
  EXPECT_EQ(ValidUtf8("\xc0\xaf", 99), mark + mark);                        // overlong
  EXPECT_EQ(ValidUtf8("\xed\xa0\x80", 99), mark + mark + mark);             // a surrogate
  EXPECT_EQ(ValidUtf8("\xf4\x90\x80\x80", 99), mark + mark + mark + mark);  // beyond
  EXPECT_EQ(ValidUtf8("\xe7\x81", 99), mark + mark);                        // cut
}

TEST(KeyDictionary, HasAnEnd) {
  KeyDictionary keys;
  for (std::size_t i = 0; i < KeyDictionary::kKeysMax; ++i) {
    ASSERT_EQ(keys.IndexOf(std::to_string(i)), i);
  }
  EXPECT_FALSE(keys.IndexOf("one more"));
  EXPECT_EQ(keys.IndexOf("7"), 7U);
}

}  // namespace
}  // namespace headrace
