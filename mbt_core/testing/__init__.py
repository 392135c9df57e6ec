"""For authors of plugins: the conformance suite, and a package to start from."""
