"""The life of a call, from the plan to the record; independent of HTTP."""
