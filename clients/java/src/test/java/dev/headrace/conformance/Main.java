package dev.headrace.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.util.JsonFormat;
import dev.headrace.Client;
import dev.headrace.ConnectOptions;
import dev.headrace.v1.WriteMetricsRequest;
import io.grpc.TlsChannelCredentials;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;

/**
 * Replays a scenario of {@code clients/scenarios} through this client; that folder's README has the
 * protocol.
 */
public final class Main {
  private Main() {}

  /** Runs {@code --scenario FILE} or {@code --encode FILE}. */
  public static void main(String[] arguments) throws IOException {
    Map<String, String> options = new HashMap<>();
    for (int i = 0; i < arguments.length; i += 2) {
      options.put(arguments[i], arguments[i + 1]);
    }
    if (options.containsKey("--encode")) {
      encode(read(options.get("--encode")).getAsJsonArray());
      return;
    }
    JsonElement scenario = read(options.get("--scenario"));
    ConnectOptions connecting =
        ConnectOptions.DEFAULT.withToken(options.getOrDefault("--token", ""));
    if (options.containsKey("--tls-ca")) {
      File authority = new File(options.get("--tls-ca"));
      connecting =
          connecting.withTls(TlsChannelCredentials.newBuilder().trustManager(authority).build());
    }
    String address = options.getOrDefault("--address", Client.DEFAULT_ADDRESS);
    try (Client client = Client.connect(address, connecting)) {
      BufferedReader input =
          new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
      Path directory = Path.of(options.getOrDefault("--directory", "."));
      new Replay(client, directory, input).run(scenario.getAsJsonObject().getAsJsonArray("steps"));
    }
  }

  private static JsonElement read(String file) throws IOException {
    return JsonParser.parseString(Files.readString(Path.of(file)));
  }

  private static void encode(JsonArray vectors) throws IOException {
    for (JsonElement vector : vectors) {
      WriteMetricsRequest.Builder request = WriteMetricsRequest.newBuilder();
      JsonFormat.parser().merge(vector.getAsJsonObject().get("message").toString(), request);
      restoreNegativeZeros(vector.getAsJsonObject().getAsJsonObject("message"), request);
      System.out.println(HexFormat.of().formatHex(request.build().toByteArray()));
    }
  }

  /** protobuf's JSON parser reads -0.0 as 0.0. */
  private static void restoreNegativeZeros(
      JsonObject message, WriteMetricsRequest.Builder request) {
    if (!request.hasBatch() || !message.getAsJsonObject("batch").has("value")) {
      return;
    }
    JsonArray values = message.getAsJsonObject("batch").getAsJsonArray("value");
    for (int i = 0; i < values.size(); i++) {
      if (values.get(i).getAsString().equals("-0.0")) {
        request.getBatchBuilder().setValue(i, -0.0);
      }
    }
  }
}
