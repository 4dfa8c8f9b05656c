"""What is learned: stain separation, tile encoders, slide aggregators, evaluation, report.

Importing this package loads no torch.
"""
