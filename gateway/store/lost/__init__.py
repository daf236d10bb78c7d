"""What the database knows of agents that may be lost, or have no successor yet."""
