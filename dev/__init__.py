"""Tools around the product, never imported by it: the stack, a phone, the demo, the benches."""
