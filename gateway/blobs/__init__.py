"""S3. The only importer of aioboto3."""
