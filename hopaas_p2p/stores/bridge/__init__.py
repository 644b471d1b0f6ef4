"""A directory that stands for a store elsewhere, and the bridge that carries between the two."""
