package dev.headrace;

import io.grpc.Attributes;
import io.grpc.EquivalentAddressGroup;
import io.grpc.NameResolver;
import io.grpc.NameResolverProvider;
import io.grpc.NameResolverRegistry;
import io.grpc.Status;
import io.grpc.StatusOr;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.UnknownHostException;
import java.util.ArrayList;
import java.util.List;

/**
 * Resolves the target {@code headrace:///host:port,host:port} to the addresses of all its hosts, so
 * that calls take turns between them. A host that cannot be resolved is left out while another can.
 */
final class SeveralAddresses extends NameResolver {
  private static final String SCHEME = "headrace";

  static {
    NameResolverRegistry.getDefaultRegistry().register(new Provider());
  }

  private final List<String> hosts;
  private final Args args;
  private Listener2 listener;

  private SeveralAddresses(List<String> hosts, Args args) {
    this.hosts = hosts;
    this.args = args;
  }

  /** Returns the target of a channel to all the hosts. */
  static String targetOf(List<String> hosts) {
    return SCHEME + ":///" + String.join(",", hosts);
  }

  @Override
  public String getServiceAuthority() {
    return hosts.get(0);
  }

  @Override
  public void start(Listener2 listener) {
    this.listener = listener;
    refresh();
  }

  @Override
  public void refresh() {
    args.getOffloadExecutor()
        .execute(
            () -> {
              ResolutionResult result =
                  ResolutionResult.newBuilder().setAddressesOrError(resolve()).build();
              args.getSynchronizationContext().execute(() -> listener.onResult2(result));
            });
  }

  @Override
  public void shutdown() {}

  private StatusOr<List<EquivalentAddressGroup>> resolve() {
    List<EquivalentAddressGroup> addresses = new ArrayList<>();
    Status failure = Status.OK;
    for (String host : hosts) {
      int colon = host.lastIndexOf(':');
      String name = host.substring(0, colon);
      int port = Integer.parseInt(host.substring(colon + 1));
      Attributes authority =
          Attributes.newBuilder().set(EquivalentAddressGroup.ATTR_AUTHORITY_OVERRIDE, host).build();
      try {
        for (InetAddress address : InetAddress.getAllByName(name)) {
          addresses.add(
              new EquivalentAddressGroup(new InetSocketAddress(address, port), authority));
        }
      } catch (UnknownHostException unknown) {
        failure = Status.UNAVAILABLE.withDescription("no such host: " + name).withCause(unknown);
      }
    }
    return addresses.isEmpty() ? StatusOr.fromStatus(failure) : StatusOr.fromValue(addresses);
  }

  private static final class Provider extends NameResolverProvider {
    @Override
    protected boolean isAvailable() {
      return true;
    }

    @Override
    protected int priority() {
      return 5;
    }

    @Override
    public String getDefaultScheme() {
      return SCHEME;
    }

    @Override
    public NameResolver newNameResolver(URI target, Args args) {
      return SCHEME.equals(target.getScheme())
          ? new SeveralAddresses(List.of(target.getPath().substring(1).split(",")), args)
          : null;
    }
  }
}
