"""What the gateway does by itself to what is stored: merging, deleting, purging."""
