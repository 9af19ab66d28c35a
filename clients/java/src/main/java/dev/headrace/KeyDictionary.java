package dev.headrace;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** The keys of a writer and their indexes. The writer's lock guards it. */
final class KeyDictionary {
  static final int KEYS_MAX = 100_000;

  /** Says that there is no index left for a key. */
  static final int NONE = -1;

  /**
   * One more than a key may have: what is cut to it is still too long, which the gateway judges,
   * but fits a message.
   */
  static final int CHARACTERS_SENT_MAX = 251;

  private static final int REPLACEMENT = 0xFFFD;

  private final Map<String, Integer> indexes = new HashMap<>();
  private final List<String> names = new ArrayList<>();

  /** Returns the index of a key, which may be new, or {@link #NONE}. */
  int indexOf(String key) {
    Integer known = indexes.get(key);
    return known != null ? known : define(asSent(key));
  }

  /** Returns the keys from {@code index} on. */
  List<String> from(int index) {
    return List.copyOf(names.subList(index, names.size()));
  }

  private int define(String name) {
    Integer known = indexes.get(name);
    if (known != null) {
      return known;
    }
    if (names.size() == KEYS_MAX) {
      return NONE;
    }
    indexes.put(name, names.size());
    names.add(name);
    return names.size() - 1;
  }

  private static String asSent(String key) {
    int[] characters =
        key.codePoints()
            .limit(CHARACTERS_SENT_MAX)
            .map(character -> isUnpaired(character) ? REPLACEMENT : character)
            .toArray();
    return new String(characters, 0, characters.length);
  }

  private static boolean isUnpaired(int character) {
    return Character.MIN_SURROGATE <= character && character <= Character.MAX_SURROGATE;
  }
}
