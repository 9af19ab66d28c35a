package dev.headrace;

import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;

/**
 * Where gateways are.
 *
 * @param hosts each {@code host:port}
 * @param encrypted whether they speak TLS
 */
record Addresses(List<String> hosts, boolean encrypted) {
  private static final String ENCRYPTED = "https://";
  private static final String PLAIN = "http://";
  private static final Pattern HOST_AND_PORT = Pattern.compile("([^:/\\[\\]]+|\\[[^/\\]]+]):\\d+");

  /**
   * Reads {@code host:port} (plain text) or {@code https://host:port} (TLS), or several of one kind
   * separated by commas.
   *
   * @throws IllegalArgumentException it is something else
   */
  static Addresses parse(String addresses) {
    List<String> hosts = new ArrayList<>();
    int encrypted = 0;
    for (String address : addresses.split(",", -1)) {
      String host = address.strip();
      if (host.startsWith(ENCRYPTED)) {
        host = host.substring(ENCRYPTED.length());
        encrypted++;
      } else if (host.startsWith(PLAIN)) {
        host = host.substring(PLAIN.length());
      }
      host = host.endsWith("/") ? host.substring(0, host.length() - 1) : host;
      if (!HOST_AND_PORT.matcher(host).matches()) {
        throw new IllegalArgumentException(
            "an address is host:port or https://host:port: '" + address.strip() + "'");
      }
      hosts.add(host);
    }
    if (encrypted != 0 && encrypted != hosts.size()) {
      throw new IllegalArgumentException(
          "some addresses begin with https:// and some do not: '" + addresses + "'");
    }
    return new Addresses(List.copyOf(hosts), encrypted != 0);
  }
}
