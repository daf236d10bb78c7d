"""Tools that the product never imports: the stack, a phone, the demo, the benchmarks."""
