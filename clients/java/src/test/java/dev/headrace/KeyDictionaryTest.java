package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.List;
import org.junit.jupiter.api.Test;

class KeyDictionaryTest {
  private final KeyDictionary dictionary = new KeyDictionary();

  @Test
  void aKeyHasOneIndex() {
    assertEquals(0, dictionary.indexOf("loss"));
    assertEquals(1, dictionary.indexOf("accuracy"));
    assertEquals(0, dictionary.indexOf("loss"));
    assertEquals(List.of("accuracy"), dictionary.from(1));
  }

  @Test
  void longKeysAreCutToWhatIsStillTooLong() {
    int first = dictionary.indexOf("火".repeat(300));
    assertEquals(first, dictionary.indexOf("火".repeat(300) + "x"));
    assertEquals(List.of("火".repeat(KeyDictionary.CHARACTERS_SENT_MAX)), dictionary.from(first));
  }

  @Test
  void whatIsNoUnicodeIsReplaced() {
    dictionary.indexOf("a\ud800b😀");
    assertEquals(List.of("a\ufffdb😀"), dictionary.from(0));
  }

  @Test
  void thereAreSoManyKeysAndNoMore() {
    for (int i = 0; i < KeyDictionary.KEYS_MAX; i++) {
      assertEquals(i, dictionary.indexOf("key/" + i));
    }
    assertEquals(KeyDictionary.NONE, dictionary.indexOf("another"));
    assertEquals(7, dictionary.indexOf("key/7"));
  }
}
