"""Claims about what the gateway stands on: stores, settings, security, lifecycle, runs."""
