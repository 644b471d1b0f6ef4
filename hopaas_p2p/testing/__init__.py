"""A conformance suite and fault injection, for authors of stores and for our own tests."""
