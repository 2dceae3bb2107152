"""S3 as tests use it: a signed client, and SeaweedFS behind a proxy that logs and injects faults."""
