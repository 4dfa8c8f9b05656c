"""Slide identity, leakage-free splits and their audit: tables and pixels, never torch."""
