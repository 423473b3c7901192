"""A folder for PYTHONPATH: nothing but what the start of a Python program needs may lie here."""
