package dev.headrace;

import dev.headrace.v1.RankAggregation;
import dev.headrace.v1.ReadMetricsRequest;
import dev.headrace.v1.StepPolicy;
import java.util.List;

/** Chooses what {@link Client#readMetrics} returns. Immutable. */
public final class ReadOptions {
  /** All visible points of all series, by the run's step policy. */
  public static final ReadOptions ALL = new ReadOptions(ReadMetricsRequest.getDefaultInstance());

  private final ReadMetricsRequest request;

  private ReadOptions(ReadMetricsRequest request) {
    this.request = request;
  }

  /** Reads these keys only; none means all. */
  public ReadOptions withKeys(String... keys) {
    return with(request.toBuilder().clearKeys().addAllKeys(List.of(keys)));
  }

  /** Reads these ranks only; none means all. */
  public ReadOptions withRanks(Integer... ranks) {
    return with(request.toBuilder().clearRanks().addAllRanks(List.of(ranks)));
  }

  /** Makes one series of the ranks of each key, step by step, after the step policy. */
  public ReadOptions withRankAggregation(RankAggregation aggregation) {
    return with(request.toBuilder().setRankAggregation(aggregation));
  }

  /** Sets the least step, inclusive. */
  public ReadOptions withFirstStep(long step) {
    return with(request.toBuilder().setFirstStep(step));
  }

  /** Sets the greatest step, inclusive. */
  public ReadOptions withLastStep(long step) {
    return with(request.toBuilder().setLastStep(step));
  }

  /** Chooses among several points at one step otherwise than the run does. */
  public ReadOptions withStepPolicy(StepPolicy policy) {
    return with(request.toBuilder().setStepPolicy(policy));
  }

  /**
   * Reads at most so many points of each series, so that ends and extremes survive; 0 means all.
   */
  public ReadOptions withMaxPoints(int points) {
    if (points < 0) {
      throw new IllegalArgumentException("maxPoints is at least 0: " + points);
    }
    return with(request.toBuilder().setMaxPoints(points));
  }

  /** Reads also the points of earlier attempts that later ones hide. */
  public ReadOptions withIncludeHidden(boolean includeHidden) {
    return with(request.toBuilder().setIncludeHidden(includeHidden));
  }

  ReadMetricsRequest request(String runId) {
    return request.toBuilder().setRunId(runId).build();
  }

  private static ReadOptions with(ReadMetricsRequest.Builder request) {
    return new ReadOptions(request.build());
  }
}
