#include "backlog.h"

#include <gtest/gtest.h>

namespace headrace {
namespace {

void LogRecords(Backlog& backlog, int records, std::size_t points) {
  for (int record = 0; record < records; ++record) {
    Block& block = backlog.Begin(points);
    for (std::size_t index = 0; index < points; ++index) {
      block.Add(static_cast<std::uint32_t>(index), record, 0, 0.5);
    }
    backlog.End();
  }
}

TEST(Backlog, ResumeInTheMiddleOfABlockSendsTheRestOfIt) {
  Backlog backlog(100);
  LogRecords(backlog, 10, 3);
  backlog.Forget(4);
  EXPECT_EQ(backlog.points(), 18U);
  const auto request = RequestFrom(backlog.Find(5), 5);
  EXPECT_EQ(request->batch().first_sequence(), 5U);
  EXPECT_EQ(request->batch().record_count(), 6U);
  ASSERT_EQ(request->batch().value_size(), 18);
  EXPECT_EQ(request->batch().step(0), 4);
  EXPECT_EQ(request->batch().series_index(17), 2U);
}

TEST(Backlog, AWholeBlockIsSentAsItIs) {
  Backlog backlog(100);
  LogRecords(backlog, 10, 3);
  const auto block = backlog.Find(7);
  EXPECT_EQ(RequestFrom(block, 1).get(), RequestFrom(block, 1).get());
  EXPECT_EQ(RequestFrom(block, 1)->batch().record_count(), 10U);
}

TEST(Backlog, ARecordNeverStraddlesTwoBlocks) {
  Backlog backlog(10);
  LogRecords(backlog, 4, 7);
  LogRecords(backlog, 1, 8'000);
  EXPECT_EQ(RequestFrom(backlog.Find(2), 2)->batch().value_size(), 7);
  EXPECT_EQ(RequestFrom(backlog.Find(5), 5)->batch().value_size(), 8'000);
}

TEST(Backlog, ForgettingEverythingLeavesNothing) {
  Backlog backlog(10);
  LogRecords(backlog, 9, 4);
  backlog.Forget(20);
  EXPECT_EQ(backlog.points(), 0U);
  EXPECT_EQ(backlog.Find(10), nullptr);
}

TEST(Backlog, AMessageOutlivesItsBlock) {
  Backlog backlog(10);
  LogRecords(backlog, 1, 4);
  const auto request = RequestFrom(backlog.Find(1), 1);
  backlog.Forget(1);
  EXPECT_EQ(request->batch().value_size(), 4);
}

}  // namespace
}  // namespace headrace
