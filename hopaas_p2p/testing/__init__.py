"""For tests, ours and those of whoever writes a store: conformance suite, fault injection, invariants."""
