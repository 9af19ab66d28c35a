package dev.headrace;

import java.time.Instant;
import java.util.OptionalLong;

/**
 * One (re)start of a run's job.
 *
 * @param attempt its number, from 1
 * @param resumeStep the first step it computes anew; empty: hides nothing
 * @param startTime when the gateway first heard of it
 */
public record Attempt(int attempt, OptionalLong resumeStep, Instant startTime) {
  static Attempt of(dev.headrace.v1.Attempt attempt) {
    return new Attempt(
        attempt.getAttempt(),
        attempt.hasResumeStep() ? OptionalLong.of(attempt.getResumeStep()) : OptionalLong.empty(),
        Times.instantOf(attempt.getStartTime()));
  }
}
