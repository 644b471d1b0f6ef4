"""For authors of stores, and for our own tests: conformance suite, fault injection."""
