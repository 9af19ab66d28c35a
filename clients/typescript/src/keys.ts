/** The key dictionary of a writer. */

const KEY_CHARACTERS_MAX = 250;

/** Key indexes are below this. */
export const KEYS_MAX = 100_000;

/** Gives keys their indexes, in the order in which they come. */
export class KeyDictionary {
  /** By index. */
  readonly names: string[] = [];
  readonly #indexes = new Map<string, number>();

  /** Returns the key's index; undefined when there is none left. */
  indexOf(key: string): number | undefined {
    return this.#indexes.get(key) ?? this.#define(sendable(key));
  }

  #define(key: string): number | undefined {
    const known = this.#indexes.get(key);
    if (known !== undefined || this.names.length === KEYS_MAX) return known;
    const index = this.names.push(key) - 1;
    this.#indexes.set(key, index);
    return index;
  }
}

/**
 * Returns the key as it is sent. One that is too long is cut to what is still too long, but fits a
 * message: the gateway judges it. What is no Unicode becomes U+FFFD.
 */
function sendable(key: string): string {
  const whole = Buffer.from(key).toString();
  if (whole.length <= KEY_CHARACTERS_MAX) return whole;
  return Array.from(whole)
    .slice(0, KEY_CHARACTERS_MAX + 1)
    .join("");
}
