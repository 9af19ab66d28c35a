"""What the tests share: a proxy that breaks the wire, and the oracle that counts points."""
