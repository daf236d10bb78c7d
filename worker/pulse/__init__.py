"""How a worker notices that a job has died or hangs, and reports the loss of its agent."""
