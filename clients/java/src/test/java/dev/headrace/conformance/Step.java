package dev.headrace.conformance;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonPrimitive;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.BiFunction;
import java.util.function.Function;
import java.util.stream.IntStream;
import java.util.stream.StreamSupport;

/** The fields of a scenario's step. Those that are absent have the default of their type. */
record Step(JsonObject fields) {
  boolean has(String name) {
    return fields.has(name);
  }

  String text(String name) {
    return has(name) ? fields.get(name).getAsString() : "";
  }

  int number(String name) {
    return has(name) ? fields.get(name).getAsInt() : 0;
  }

  long step(String name) {
    return fields.get(name).getAsLong();
  }

  boolean flag(String name) {
    return has(name) && fields.get(name).getAsBoolean();
  }

  List<JsonElement> list(String name) {
    return has(name)
        ? StreamSupport.stream(fields.getAsJsonArray(name).spliterator(), false).toList()
        : List.of();
  }

  /** Returns the constant of a generated enumeration whose name ends with this field. */
  <E extends Enum<E>> E constant(String name, Class<E> type, String prefix) {
    return Enum.valueOf(type, prefix + (has(name) ? text(name) : "UNSPECIFIED"));
  }

  /** Returns the options changed by this field, if it is there. */
  <O, V> O apply(O options, String name, Function<String, V> value, BiFunction<O, V, O> with) {
    return has(name) ? with.apply(options, value.apply(name)) : options;
  }

  /** Returns {@code keys}: names, or a number of them. */
  String[] keys() {
    if (fields.get("keys") instanceof JsonPrimitive count) {
      return IntStream.range(0, count.getAsInt()).mapToObj(i -> "key/" + i).toArray(String[]::new);
    }
    return texts("keys");
  }

  String[] texts(String name) {
    return list(name).stream().map(JsonElement::getAsString).toArray(String[]::new);
  }

  /** Returns a number as the scenarios write it. */
  static double valueOf(JsonElement value) {
    return value.getAsDouble(); // also of "NaN", "Infinity" and "-Infinity"
  }

  /** Returns numbers as the scenarios write them. */
  static Object written(double value) {
    return Double.isFinite(value) ? value : Double.toString(value);
  }

  static List<Object> written(double[] values) {
    List<Object> written = new ArrayList<>(values.length);
    Arrays.stream(values).forEach(value -> written.add(written(value)));
    return written;
  }
}
