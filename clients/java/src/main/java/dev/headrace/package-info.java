/**
 * Writes training metrics to a Headrace gateway, exactly once, reads them back as columns, and
 * moves artifacts.
 *
 * <pre>{@code
 * try (Client client = Client.connect("127.0.0.1:7420")) {
 *   Run run = client.createRun(RunOptions.DEFAULT.withExperiment("digits"));
 *   Writer writer = client.openWriter(WriterOptions.forRun(run.id()));
 *   for (long step = 0; step < 100; step++) {
 *     writer.log(step, Map.of("loss", loss));
 *   }
 *   writer.finish(Duration.ofSeconds(30));
 * }
 * }</pre>
 *
 * <p>{@link dev.headrace.Writer#log} does not wait for the gateway: a thread of the writer batches,
 * sends, and, when the connection or the gateway is gone, tries again for as long as the writer
 * lives. What {@code flush} and {@code finish} have confirmed is committed.
 *
 * <p>A {@link dev.headrace.Client} and a {@link dev.headrace.Writer} may be used by any number of
 * threads. A call that waits ends early when its thread is interrupted: it throws a {@link
 * dev.headrace.HeadraceException} with the status {@code CANCELLED} and leaves the thread
 * interrupted. No argument may be null.
 *
 * <p>The enumerations of the contract, {@link dev.headrace.v1.ErrorReason}, {@link
 * dev.headrace.v1.RunState}, {@link dev.headrace.v1.StepPolicy}, {@link dev.headrace.v1.LatePolicy}
 * and {@link dev.headrace.v1.RankAggregation}, are those that protoc generates.
 */
package dev.headrace;
