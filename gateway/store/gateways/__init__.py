"""What several gateways share: who follows which calls, wake-ups, and the rates of calls."""
