/// The conversations of a writer with the gateway.
#pragma once

#include <stop_token>

#include "connection.h"
#include "writer_state.h"

namespace headrace {

/// Opens one stream after the other until the writer is finished, has failed, or is
/// told to stop. Runs on the writer's thread; each stream reads on another.
void RunStreams(Connection& connection, WriterState& state, const std::stop_token& stop);

}  // namespace headrace
