package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class AddressesTest {
  @Test
  void severalOfOneKindAreSeparatedByCommas() {
    assertEquals(
        new Addresses(List.of("a:1", "b:2"), true), Addresses.parse("https://a:1, https://b:2/"));
    assertEquals(
        new Addresses(List.of("127.0.0.1:7420", "[::1]:7420"), false),
        Addresses.parse("127.0.0.1:7420,http://[::1]:7420"));
  }

  @ParameterizedTest
  @ValueSource(strings = {"", "a", "a:b", "::1", "a:1,", "a:1,https://b:2", "https://a:1/path"})
  void anythingElseIsRefused(String addresses) {
    assertThrows(IllegalArgumentException.class, () -> Addresses.parse(addresses));
  }
}
