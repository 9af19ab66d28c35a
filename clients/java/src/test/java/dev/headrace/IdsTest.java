package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

class IdsTest {
  @Test
  void anIdIsAUuidOfVersion7() {
    String id = Ids.newId();
    assertTrue(id.matches("[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}"), id);
    assertNotEquals(id, Ids.newId());
  }
}
