package dev.headrace;

import dev.headrace.v1.LatePolicy;
import dev.headrace.v1.RunState;
import dev.headrace.v1.StepPolicy;
import java.time.Instant;
import java.util.List;
import java.util.Optional;

/**
 * One training job.
 *
 * @param id 32 lower-case hex digits
 * @param experiment the experiment's name
 * @param name a name for people
 * @param state what the job is doing
 * @param stepPolicy applied by reads that ask for no other
 * @param latePolicy applied when points are committed
 * @param createTime when it was created
 * @param endTime when it ended; empty while it runs
 * @param attempts the attempts so far, ascending
 * @param created whether {@link Client#createRun} made it; false when it existed already
 */
public record Run(
    String id,
    String experiment,
    String name,
    RunState state,
    StepPolicy stepPolicy,
    LatePolicy latePolicy,
    Instant createTime,
    Optional<Instant> endTime,
    List<Attempt> attempts,
    boolean created) {
  static Run of(dev.headrace.v1.Run run, boolean created) {
    return new Run(
        run.getRunId(),
        run.getExperiment(),
        run.getName(),
        run.getState(),
        run.getStepPolicy(),
        run.getLatePolicy(),
        Times.instantOf(run.getCreateTime()),
        run.hasEndTime() ? Optional.of(Times.instantOf(run.getEndTime())) : Optional.empty(),
        run.getAttemptsList().stream().map(Attempt::of).toList(),
        created);
  }
}
