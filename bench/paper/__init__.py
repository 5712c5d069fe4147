"""Do the papers' claims hold? `python -m bench paper` measures them; bench/PAPER.md says it."""
