"""Content in S3. The only importer of aioboto3 (and of the aiobotocore beneath it)."""
