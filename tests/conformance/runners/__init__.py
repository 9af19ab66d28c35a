"""The runners of the two Python clients; see clients/scenarios/README.md."""
