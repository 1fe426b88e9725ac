"""Fine-tuning benchmarks: data, head and settings of each."""
