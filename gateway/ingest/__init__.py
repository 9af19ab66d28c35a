"""The ingest path: session → coalescer → chunks → writer."""
