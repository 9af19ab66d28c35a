package dev.headrace;

/**
 * Some keys of a writer, looked up once for the records that have them all. Made by {@link
 * Writer#keys}; of use to that writer only.
 */
public final class Keys {
  private final Writer writer;
  private final String[] names;
  private final int[] indexes;

  Keys(Writer writer, String[] names, int[] indexes) {
    this.writer = writer;
    this.names = names;
    this.indexes = indexes;
  }

  /** Returns how many there are. */
  public int size() {
    return indexes.length;
  }

  boolean isOf(Writer other) {
    return writer == other;
  }

  String name(int position) {
    return names[position];
  }

  int index(int position) {
    return indexes[position];
  }
}
