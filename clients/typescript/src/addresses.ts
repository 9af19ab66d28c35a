/** What addresses may look like. */

const FORM = /^(?:(https?):\/\/)?((?:\[[0-9a-fA-F:.]+\]|[^\s:/,]+):\d{1,5})\/?$/;

/** Where gateways listen, and whether they speak TLS. */
export interface Addresses {
  hosts: string[];
  encrypted: boolean;
}

/** Reads `host:port` or `https://host:port`, or several of one kind separated by commas. */
export function parseAddresses(text: string): Addresses {
  const parsed = text.split(",").map((address) => {
    const [, scheme, host] = FORM.exec(address.trim()) ?? [];
    if (host === undefined) {
      throw new TypeError(`the address ${JSON.stringify(address)} is not host:port`);
    }
    return { host, encrypted: scheme === "https" };
  });
  const encrypted = parsed.every((address) => address.encrypted);
  if (!encrypted && parsed.some((address) => address.encrypted)) {
    throw new TypeError(`some addresses begin with https:// and some do not: ${text}`);
  }
  return { hosts: parsed.map((address) => address.host), encrypted };
}
