"""What `python -m benchmarks.gpu` measures, part by part."""
