package dev.headrace;

import dev.headrace.v1.CreateRunRequest;
import dev.headrace.v1.LatePolicy;
import dev.headrace.v1.StepPolicy;

/** Describes a run to be created. Immutable. */
public final class RunOptions {
  /** A run with a new id in the experiment {@code Default}. */
  public static final RunOptions DEFAULT = new RunOptions(CreateRunRequest.getDefaultInstance());

  private final CreateRunRequest request;

  private RunOptions(CreateRunRequest request) {
    this.request = request;
  }

  /** Sets the run's id: 32 lower-case hex digits. Default: {@link Ids#newId()} for each run. */
  public RunOptions withRunId(String runId) {
    return new RunOptions(request.toBuilder().setRunId(runId).build());
  }

  /** Sets the experiment's name. */
  public RunOptions withExperiment(String experiment) {
    return new RunOptions(request.toBuilder().setExperiment(experiment).build());
  }

  /** Sets a name for people. Default: a readable one made from the id. */
  public RunOptions withName(String name) {
    return new RunOptions(request.toBuilder().setName(name).build());
  }

  /** Sets which of several points at one step a read returns. Default: {@code LAST}. */
  public RunOptions withStepPolicy(StepPolicy policy) {
    return new RunOptions(request.toBuilder().setStepPolicy(policy).build());
  }

  /** Sets what happens to points whose step is late. Default: {@code ACCEPT}. */
  public RunOptions withLatePolicy(LatePolicy policy) {
    return new RunOptions(request.toBuilder().setLatePolicy(policy).build());
  }

  CreateRunRequest request() {
    return request.getRunId().isEmpty() ? withRunId(Ids.newId()).request : request;
  }
}
