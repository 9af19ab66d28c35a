package dev.headrace;

import java.util.Optional;

/**
 * How far a writer has come.
 *
 * @param loggedSequence the number of the last record logged
 * @param committedSequence every record up to it is durable
 * @param pendingPoints points logged and not acknowledged
 * @param counters as last told by the gateway
 * @param finished whether the gateway has noted the writer's end
 * @param streams how many streams were opened
 * @param reconnects how often the gateway asked to move
 * @param failure why the writer gave up; empty while it has not
 */
public record WriterStatus(
    long loggedSequence,
    long committedSequence,
    int pendingPoints,
    Counters counters,
    boolean finished,
    int streams,
    int reconnects,
    Optional<HeadraceException> failure) {}
