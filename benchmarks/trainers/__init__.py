"""The trainers that `benchmarks/train.py` sets against each other, and what makes their steps take turns."""
