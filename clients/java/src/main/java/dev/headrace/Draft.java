package dev.headrace;

/** The points of the record that is being logged. One for a writer, whose lock guards it. */
final class Draft {
  private int[] indexes = new int[0];
  private double[] values = new double[0];
  private int points;
  private int refusedPoints;
  private String refusedKey = "";

  /** Begins another record of at most so many points. */
  void begin(int pointsMax) {
    if (pointsMax > indexes.length) {
      indexes = new int[pointsMax];
      values = new double[pointsMax];
    }
    points = 0;
    refusedPoints = 0;
  }

  /** Adds a point; one whose key has no index is only counted. */
  void add(int index, String key, double value) {
    if (index == KeyDictionary.NONE) {
      refusedKey = refusedPoints == 0 ? key : refusedKey;
      refusedPoints++;
      return;
    }
    indexes[points] = index;
    values[points] = value;
    points++;
  }

  int points() {
    return points;
  }

  int[] indexes() {
    return indexes;
  }

  double[] values() {
    return values;
  }

  int refusedPoints() {
    return refusedPoints;
  }

  /** Returns the first key without an index. */
  String refusedKey() {
    return refusedKey;
  }
}
