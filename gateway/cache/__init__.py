"""A cache, in this process or in Redis, of the records that calls look up."""
