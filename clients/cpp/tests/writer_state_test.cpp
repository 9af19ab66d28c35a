#include "writer_state.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <stdexcept>
#include <vector>

namespace headrace {
namespace {

using std::chrono::milliseconds;

/// Options under which every record is ready at once.
WriterOptions Eager() {
  return {.run_id = "00000000000000000000000000000001", .linger = milliseconds(0)};
}

std::error_code LogAtZero(WriterState& state, std::initializer_list<Value> values) {
  return state.Log(0, 0, {values.begin(), values.size()});
}

v1::Opened OpenedAt(std::uint64_t committed) {
  v1::Opened opened;
  opened.set_committed_sequence(committed);
  return opened;
}

v1::WriteMetricsResponse AckOf(std::uint64_t committed) {
  v1::WriteMetricsResponse response;
  response.mutable_ack()->set_committed_sequence(committed);
  return response;
}

TEST(WriterState, KeysGoBeforeTheBatchThatUsesThem) {
  WriterState state(Eager());
  Cursor cursor = state.Opened(OpenedAt(0)).cursor;
  LogAtZero(state, {{"loss", 0.5}, {"accuracy", 0.9}});
  const Outgoing keys = state.Next(cursor);
  ASSERT_TRUE(keys.message->has_keys());
  EXPECT_EQ(keys.message->keys().keys(1).key(), "accuracy");
  const Outgoing batch = state.Next(cursor);
  ASSERT_TRUE(batch.message->has_batch());
  EXPECT_EQ(batch.message->batch().series_index(1), 1U);
  EXPECT_FALSE(state.Next(cursor).message);
}

TEST(WriterState, ARecordLingersUnlessItIsFlushed) {
  WriterOptions options = Eager();
  options.linger = std::chrono::hours(1);
  WriterState state(options);
  Cursor cursor = state.Opened(OpenedAt(0)).cursor;
  LogAtZero(state, {{"loss", 0.5}});
  EXPECT_FALSE(state.Next(cursor).message);
  EXPECT_THROW(state.Flush(milliseconds(0)), Error);
  EXPECT_TRUE(state.Next(cursor).message);
}

TEST(WriterState, ANewStreamGoesOnBehindTheWatermark) {
  WriterState state(Eager());
  Cursor cursor = state.Opened(OpenedAt(0)).cursor;
  for (int i = 0; i < 3; ++i) {
    LogAtZero(state, {{"loss", 0.5}});
  }
  state.Next(cursor);
  state.Next(cursor);
  Cursor again = state.Opened(OpenedAt(2)).cursor;
  EXPECT_TRUE(state.Next(again).message->has_keys());
  EXPECT_EQ(state.Next(again).message->batch().first_sequence(), 3U);
  EXPECT_EQ(state.Status().pending_points, 1U);
}

TEST(WriterState, AWatermarkThatWentBackIsResynced) {
  WriterState state(Eager());
  state.Opened(OpenedAt(5));
  const auto [cursor, resync] = state.Opened(OpenedAt(2));
  EXPECT_TRUE(resync);
  EXPECT_EQ(cursor.sequence, 6U);
}

TEST(WriterState, WhatAPredecessorCommittedIsNotSent) {
  WriterState state(Eager());
  Cursor cursor = state.Opened(OpenedAt(2)).cursor;
  LogAtZero(state, {{"loss", 0.5}});
  LogAtZero(state, {{"loss", 0.5}});
  EXPECT_EQ(state.Status().pending_points, 0U);
  LogAtZero(state, {{"loss", 0.5}});
  state.Next(cursor);
  EXPECT_EQ(state.Next(cursor).message->batch().first_sequence(), 3U);
}

TEST(WriterState, AFullWindowRefusesUntilSomethingIsAcknowledged) {
  WriterOptions options = Eager();
  options.window_points = 3;
  options.when_full = WhenFull::kError;
  WriterState state(options);
  EXPECT_FALSE(LogAtZero(state, {{"a", 1}, {"b", 2}}));
  EXPECT_EQ(LogAtZero(state, {{"a", 1}, {"b", 2}}), Reason::kWindowFull);
  state.Receive(AckOf(1));
  EXPECT_FALSE(LogAtZero(state, {{"a", 1}, {"b", 2}, {"c", 3}, {"d", 4}}));  // alone it may
}

TEST(WriterState, AHugeRecordBecomesSeveral) {
  WriterState state(Eager());
  std::vector<Value> values(kRecordPointsMax + 1, Value("loss", 0.5));
  state.Log(0, 0, values);
  EXPECT_EQ(state.Status().logged_sequence, 2U);
  EXPECT_EQ(state.Status().pending_points, kRecordPointsMax + 1);
}

TEST(WriterState, FinishComesAfterEverythingElse) {
  WriterState state(Eager());
  Cursor cursor = state.Opened(OpenedAt(0)).cursor;
  LogAtZero(state, {{"loss", 0.5}});
  try {
    state.Finish(milliseconds(0));
    FAIL() << "finished without an answer";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kDeadlineExceeded);
  }
  EXPECT_EQ(LogAtZero(state, {{"loss", 0.5}}), Reason::kWriterClosed);
  EXPECT_TRUE(state.Next(cursor).message->has_keys());
  EXPECT_TRUE(state.Next(cursor).message->has_batch());
  const Outgoing last = state.Next(cursor);
  EXPECT_TRUE(last.last);
  EXPECT_EQ(last.message->finish().last_sequence(), 1U);
}

TEST(WriterState, ARejectionIsDeliveredOnceAndBeforeItsFlushReturns) {
  std::vector<Rejection> told;
  WriterOptions options = Eager();
  options.on_rejection = [&](const Rejection& rejection) { told.push_back(rejection); };
  WriterState state(options);
  LogAtZero(state, {{"loss", 0.5}});
  v1::WriteMetricsResponse ack = AckOf(1);
  v1::Rejection* sample = ack.mutable_ack()->add_rejections();
  sample->set_reason(v1::ERROR_REASON_STEP_LATE);
  sample->set_sequence(1);
  sample->set_points(1);
  state.Receive(ack);
  state.Flush(milliseconds(0));
  v1::Opened opened = OpenedAt(1);
  *opened.add_rejections() = *sample;
  state.Opened(opened);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told.front().reason, Reason::kStepLate);
}

TEST(WriterState, PointsOfKeysBeyondTheLastAreReported) {
  std::vector<Rejection> told;
  WriterOptions options = Eager();
  options.window_points = KeyDictionary::kKeysMax * 2;
  options.on_rejection = [&](const Rejection& rejection) { told.push_back(rejection); };
  WriterState state(options);
  std::vector<std::string> keys;
  for (std::size_t i = 0; i < KeyDictionary::kKeysMax + 2; ++i) {
    keys.push_back(std::to_string(i));
  }
  const std::vector<Value> values = [&] {
    std::vector<Value> all;
    for (const std::string& key : keys) {
      all.emplace_back(key, 0.5);
    }
    return all;
  }();
  state.Log(7, 0, values);
  Cursor cursor;
  state.Next(cursor);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told.front().reason, Reason::kKeysExhausted);
  EXPECT_EQ(told.front().points, 2U);
  EXPECT_EQ(told.front().step, 7);
}

TEST(WriterState, WhatEndedTheWriterIsReportedFromThenOn) {
  WriterState state(Eager());
  state.GiveUp(Error(Reason::kWriterFenced, "a newer stream was opened"));
  EXPECT_EQ(LogAtZero(state, {{"loss", 0.5}}), Reason::kWriterFenced);
  EXPECT_THROW(state.Flush(milliseconds(0)), Error);
  EXPECT_EQ(state.Status().error->reason(), Reason::kWriterFenced);
}

TEST(WriterState, ImpossibleOptionsAreRefused) {
  EXPECT_THROW(WriterState(WriterOptions{}), std::invalid_argument);
  WriterOptions options = Eager();
  options.batch_points_max = kRecordPointsMax + 1;
  EXPECT_THROW(WriterState{options}, std::invalid_argument);
}

}  // namespace
}  // namespace headrace
