"""FusedSaLSa in trainers that call ``optimizer.step()`` without a closure.

Each module needs its trainer's package, and is imported only where it is used.
"""
