"""Running tasks beside each other, each with an owner."""
