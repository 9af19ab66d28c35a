"""Training scripts that log with Headrace, and a demo that runs sixty of them."""
