package dev.headrace;

import dev.headrace.v1.WriterCounters;

/**
 * Counts of a writer since its first stream, as last told by the gateway.
 *
 * @param acceptedPoints points stored
 * @param latePoints stored points whose step was at or below the greatest of their series
 * @param repeatedPoints stored points whose step their series had already; a lower bound
 * @param rejectedPoints points rejected
 * @param lostRecords records that a restored database has lost
 */
public record Counters(
    long acceptedPoints,
    long latePoints,
    long repeatedPoints,
    long rejectedPoints,
    long lostRecords) {
  static Counters of(WriterCounters counters) {
    return new Counters(
        counters.getAcceptedPoints(),
        counters.getLatePoints(),
        counters.getRepeatedPoints(),
        counters.getRejectedPoints(),
        counters.getLostRecords());
  }
}
