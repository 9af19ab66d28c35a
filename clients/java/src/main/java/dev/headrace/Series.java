package dev.headrace;

/**
 * A series and the summary of its visible points.
 *
 * @param key its key
 * @param rank its rank
 * @param pointCount how many points are visible, repeats included
 * @param lastStep the step of the greatest visible point by (step, time, value)
 * @param lastTimeUnixUs its time, in microseconds since 1970-01-01 UTC
 * @param lastValue its value
 * @param minValue the least visible value, NaN ignored; NaN if all are
 * @param maxValue the greatest, likewise
 */
public record Series(
    String key,
    int rank,
    long pointCount,
    long lastStep,
    long lastTimeUnixUs,
    double lastValue,
    double minValue,
    double maxValue) {
  static Series of(dev.headrace.v1.Series series) {
    return new Series(
        series.getKey(),
        series.getRank(),
        series.getPointCount(),
        series.getLastStep(),
        series.getLastTimeUnixUs(),
        series.getLastValue(),
        series.getMinValue(),
        series.getMaxValue());
  }
}
