package dev.headrace;

import dev.headrace.v1.ErrorReason;

/**
 * A sample of points that the gateway rejected for their content; the other points of their records
 * are stored.
 *
 * @param reason why
 * @param key the key, or its index in decimal when it has none
 * @param step the step of the first such point
 * @param sequence the record with the point ends at or before it
 * @param field the offending field
 * @param detail for people
 * @param points how many points this stands for
 */
public record Rejection(
    ErrorReason reason,
    String key,
    long step,
    long sequence,
    String field,
    String detail,
    long points) {
  static Rejection of(dev.headrace.v1.Rejection sample) {
    return new Rejection(
        sample.getReason(),
        sample.getKey(),
        sample.getStep(),
        sample.getSequence(),
        sample.getField(),
        sample.getDetail(),
        sample.getPoints());
  }
}
