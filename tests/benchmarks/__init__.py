"""Benchmarks: figures, never assertions. ``make bench`` runs them and writes build/bench.json."""
