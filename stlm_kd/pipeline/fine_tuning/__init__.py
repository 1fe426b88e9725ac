"""The benchmarks that models are fine-tuned on: data, head and settings of each."""
