"""For people who write a store, and for our own tests: conformance suite, fault injection, invariants."""
