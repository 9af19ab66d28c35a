"""What the gateway does by itself to what is stored: compaction, cleanup, purges."""
