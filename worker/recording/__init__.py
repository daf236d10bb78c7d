"""Records a call: who said what when, on the call's clock, in blocks that go to a file."""
