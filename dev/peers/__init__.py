"""What Switchroom is measured against; never imported by it."""
