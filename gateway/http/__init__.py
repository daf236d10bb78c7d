"""HTTP for every endpoint: bodies, errors, idempotency, OpenAPI; knows nothing about calls."""
