"""What needs the manifest and the bucket together: transfers and cleaning up."""
