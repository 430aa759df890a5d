"""The command `evaluate`: what is evaluated, suites, heads."""
