"""Published hallucination benchmarks, scored by their official rules; comparisons, gates and runs."""
